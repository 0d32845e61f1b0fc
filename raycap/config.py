"""Every knob of a run: one frozen, typed tree, loaded from YAML and changed by dotted flags.

The sections are the rooms' own option classes. Where a room has alternatives, the choice *is* the options of the
thing chosen, and a YAML file names it with `kind`. Nothing here belongs to one command: one file serves them all.
"""

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from raycap.bulk.options import Caption, Extract
from raycap.cluster import Cluster
from raycap.decoders import DECODERS, DecoderChoice, TopDown
from raycap.encoders import ENCODERS, EncoderOptions, ResNet50
from raycap.errors import UserError
from raycap.evaluation import Evaluate, MetricOptions
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.report import Report
from raycap.search import SEARCHES, SearchChoice
from raycap.sources import SOURCES, Source
from raycap.training import Train
from raycap.tuning import Tune
from raycap.uris import has_scheme
from raycap.variants import chosen, merged
from raycap.vocabulary import Words


@dataclass(frozen=True)
class Inspect:
    """What `raycap inspect` writes."""

    out: str = "inspection.json"
    """The report, a JSON file; the rows that cannot be read are listed beside it in *.failed.jsonl."""
    limit: int | None = None
    """Look at the first so many rows only."""
    examples: int = 3
    """Keys shown for each reason and each group of copies."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"limit is {self.limit}: give at least 1, or leave it out to look at every row"
            )
        if has_scheme(self.out):
            raise UserError(f"out is {self.out}: the report goes to a disc, so give a path")
        if not self.out.endswith(".json"):
            raise UserError(
                f"out is {self.out!r}: the report is a JSON file, so give a name that ends in .json"
            )


@dataclass(frozen=True)
class Config:
    """The tree. Each field is a section, a YAML key and a family of flags."""

    source: Source | None = None
    fetch: Fetch = field(default_factory=Fetch)
    reading: Reading = field(default_factory=Reading)
    vocabulary: Words = field(default_factory=Words)
    encoder: EncoderOptions = field(default_factory=ResNet50)
    decoder: DecoderChoice = field(default_factory=TopDown)
    search: SearchChoice | None = (
        None  # none: the captioner's own; where one is trained, a beam search
    )
    train: Train = field(default_factory=Train)
    tune: Tune = field(default_factory=Tune)
    cluster: Cluster = field(default_factory=Cluster)
    inspect: Inspect = field(default_factory=Inspect)
    extract: Extract = field(default_factory=Extract)
    caption: Caption = field(default_factory=Caption)
    evaluate: Evaluate = field(default_factory=Evaluate)
    metric: MetricOptions = field(default_factory=MetricOptions)
    report: Report = field(default_factory=Report)


# Options that no longer exist: the default that they had, and why they were removed. Files of earlier versions name
# them: the default is ignored, any other value is refused.
REMOVED: dict[str, tuple[Any, str]] = {
    "decoder.scaled_words": (False, "it lowered the loss and made captions no better"),
    "report.extremes": (8, "a page shows the 8 best and the 8 worst"),
    "report.thumbnail": (320, "pictures on a page are 320 pixels; report.megabytes limits them"),
    "report.seed": (0, "a page always draws the same pictures"),
}
# Values that no longer exist: option and value, and what to do instead.
REMOVED_VALUES: dict[tuple[str, Any], str] = {
    ("caption.txt_mode", mode): (
        "this version no longer joins texts: give skip or overwrite, or write into another folder "
        "(without --txt-beside) and join the files yourself"
    )
    for mode in ("append", "prepend")
}

# The rooms with alternatives: section -> kind -> options.
CHOICES: dict[str, Mapping[str, Any]] = {
    "source": SOURCES,
    "encoder": ENCODERS,
    "decoder": DECODERS,
    "search": SEARCHES,
}


def kind_of(section: str, options: object) -> str:
    """The name under which a part stands in its room's dict."""
    return next(name for name, part in CHOICES[section].items() if part is type(options))


def part_named(section: str, kind: str) -> Any:
    """The option class of that name, or a refusal that lists what there is."""
    if kind not in CHOICES[section]:
        raise UserError(f"there is no {section} '{kind}'{nearest(kind, CHOICES[section])}")
    return CHOICES[section][kind]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal: the closest known name, and all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" known: {', '.join(known)}"


def load(path: str, run: str = "") -> Config:
    """Read a YAML file into the tree, refusing what it does not know; `run` chooses one where it holds several."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    return loads(text, path, run)


def loads(text: str, name: str = "the config", run: str = "") -> Config:
    """As `load`, from text; `name` is what messages call it."""
    data = parse(text, name)
    try:
        return from_plain(chosen({} if data is None else data, run))
    except UserError as refusal:
        raise UserError(f"{name}: {refusal}") from refusal


def parse(text: str, name: str) -> Any:
    """What a YAML text says."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from error


def dumps(config: Config) -> str:
    """The tree as YAML that `loads` reads back to the same tree."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=116)


def to_plain(config: Config) -> dict[str, Any]:
    """The tree as mappings of words, numbers and lists."""
    sections = {
        section.name: getattr(config, section.name) for section in dataclasses.fields(config)
    }
    return {
        name: part_to_plain(name, options)
        for name, options in sections.items()
        if options is not None
    }


def from_plain(data: Any) -> Config:
    """What `to_plain` made, or a part of it; the rest gets its defaults."""
    return typing.cast(Config, _build(Config, data, ""))


def with_parameters(config: Config, parameters: Mapping[str, Any]) -> Config:
    """The config with other values of some options, by their dotted names, as in {"train.lr": 0.01}. A part of
    another kind begins from that kind's defaults."""
    changed: dict[str, Any] = {}
    for key, value in parameters.items():
        *sections, name = key.split(".")
        inner = changed
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    try:
        return from_plain(merged(to_plain(config), changed))
    except UserError as refusal:
        point = ", ".join(f"{key} {value}" for key, value in parameters.items())
        raise UserError(f"{refusal} (at {point})") from refusal


def part_to_plain(section: str, options: Any) -> dict[str, Any]:
    """One section as a mapping of words, numbers and lists, with its `kind` where it was a choice."""
    kind = {"kind": kind_of(section, options)} if section in CHOICES else {}
    # Through JSON: tuples become lists, which safe YAML can say.
    return kind | typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(options))))


def part_from_plain(section: str, data: Any, name: str) -> Any:
    """What `part_to_plain` wrote, as options again; `name` is what messages call the file."""
    try:
        return _value(_hints(Config)[section], data, section)
    except UserError as refusal:
        raise UserError(f"{name}: {refusal}") from refusal


def without_removed(section: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a section that an earlier version wrote, without those that no longer exist and had their
    default."""
    kept = dict(data)
    for dotted, (default, _) in REMOVED.items():
        name = dotted.removeprefix(f"{section}.")
        if name != dotted and name in kept and kept[name] == default:
            del kept[name]
    return kept


def _build(part: Any, data: Any, place: str) -> Any:
    """A dataclass from a mapping; `place` is the dotted path so far."""
    if not isinstance(data, Mapping):
        raise UserError(
            f"{place or 'the top level'} is {data!r}: a mapping of option to value belongs there"
        )
    hints = _hints(part)
    values = {}
    for key, value in data.items():
        dotted = f"{place}.{key}" if place else str(key)
        if dotted in REMOVED:
            default, reason = REMOVED[dotted]
            if value != default:
                raise UserError(
                    f"{dotted} is {value!r}, and this version no longer has that option ({reason}): leave it out, "
                    "or use raycap 0.1 for what was trained with it"
                )
            continue
        if key not in hints:
            raise UserError(f"there is no option '{dotted}'{nearest(str(key), hints)}")
        if isinstance(value, str) and (dotted, value) in REMOVED_VALUES:
            raise UserError(f"{dotted} is {value!r}: {REMOVED_VALUES[dotted, value]}")
        values[key] = _value(hints[key], value, dotted)
    missing = [f.name for f in dataclasses.fields(part) if _required(f) and f.name not in values]
    if missing:
        raise UserError(f"{place} lacks {', '.join(missing)}")
    try:
        return part(**values)
    except UserError as refusal:
        named = not place or str(refusal).startswith(f"{place}.")
        raise UserError(str(refusal) if named else f"{place}: {refusal}") from refusal


def _value(hint: Any, value: Any, dotted: str) -> Any:
    if dotted in CHOICES:
        if value is None:
            return None
        kind, options = _split_kind(value, dotted)
        return _build(part_named(dotted, kind), options, dotted)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, dotted)
    try:
        # Strict as JSON is strict: no "5" for 5, no yes for a word, but a list for a tuple and 1 for 1.0.
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(detail["msg"].lower() for detail in error.errors()))
        raise UserError(f"{dotted} is {value!r}: {wanted}") from error
    except TypeError as error:  # a YAML date, for one, has no JSON form
        raise UserError(
            f"{dotted} is {value!r}, a {type(value).__name__}: put it in quotes if it is a word"
        ) from error


def _split_kind(value: Any, section: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise UserError(
            f"{section} must name its kind, as in '{section}: {{kind: {next(iter(CHOICES[section]))}}}'"
        )
    return value["kind"], {key: option for key, option in value.items() if key != "kind"}


def _required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


@functools.cache
def _hints(part: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(part)
    return {option.name: hints[option.name] for option in dataclasses.fields(part) if option.init}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: 3e-4 is a number, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise UserError(
                    f"line {key_node.start_mark.line + 1}: the key {key!r} is not a word"
                )
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
