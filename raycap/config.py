"""The config: all options of a run as one frozen, typed tree, read from YAML and changed by dotted
flags.

Each section is the option class of a package. Where a package has alternatives (sources, encoders,
...), the section holds the options of the one chosen, and a YAML file names it with `kind`. One
file serves all commands.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raycap import options
from raycap.bulk.options import CaptionOptions, ExtractOptions
from raycap.captioners.combining import Combine
from raycap.captioners.kinds import CAPTIONERS, CaptionerChoice
from raycap.cluster import Cluster
from raycap.decoders import DECODERS, DecoderChoice, TopDown
from raycap.encoders import ENCODERS, EncoderOptions, ResNet50
from raycap.errors import UserError
from raycap.evaluation import Evaluate, MetricOptions
from raycap.fetch import Fetch
from raycap.finishing import Finish
from raycap.flags import Flags
from raycap.images import Reading
from raycap.report import Report
from raycap.search import SEARCHES, SearchChoice
from raycap.sources import SOURCES, Source
from raycap.training import Train
from raycap.training.options import FINE_TUNING
from raycap.tuning import Tune
from raycap.uris import has_scheme
from raycap.variants import chosen, merged
from raycap.vocabulary import VocabularyOptions


@dataclass(frozen=True)
class Inspect:
    """What `raycap inspect` writes."""

    out: str = "inspection.json"
    """The report, a JSON file. Rows that cannot be read are listed beside it in *.failed.jsonl."""
    limit: int | None = None
    """Only the first N rows of the source."""
    examples: int = 3
    """Keys shown for each reason and each group of copies."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"--limit is {self.limit}: give at least 1, or leave it out to look at every row"
            )
        if has_scheme(self.out):
            raise UserError(
                f"--out is {self.out}: the report goes to a local disk, so give a path"
            )
        if not self.out.endswith(".json"):
            raise UserError(
                f"--out is {self.out!r}: the report is a JSON file, so give a name that ends in "
                ".json"
            )


@dataclass(frozen=True)
class Config:
    """All options. Each field is a section: a key of the YAML file and a family of flags."""

    source: Source | None = None
    fetch: Fetch = field(default_factory=Fetch)
    reading: Reading = field(default_factory=Reading)
    vocabulary: VocabularyOptions = field(default_factory=VocabularyOptions)
    encoder: EncoderOptions = field(default_factory=ResNet50)
    decoder: DecoderChoice = field(default_factory=TopDown)
    # None: the captioner's own search; when a captioner is trained, a beam search.
    search: SearchChoice | None = None
    train: Train = field(default_factory=Train)
    tune: Tune = field(default_factory=Tune)
    cluster: Cluster = field(default_factory=Cluster)
    inspect: Inspect = field(default_factory=Inspect)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    # None: found from the model.
    captioner: CaptionerChoice | None = None
    finish: Finish = field(default_factory=Finish)
    flags: Flags = field(default_factory=Flags)
    combine: Combine = field(default_factory=Combine)
    evaluate: Evaluate = field(default_factory=Evaluate)
    metric: MetricOptions = field(default_factory=MetricOptions)
    report: Report = field(default_factory=Report)


# The sections with alternatives: section -> kind -> option class.
CHOICES: dict[str, Mapping[str, Any]] = {
    "source": SOURCES,
    "encoder": ENCODERS,
    "decoder": DECODERS,
    "search": SEARCHES,
    "captioner": CAPTIONERS,
}


def load(path: str, run: str = "", changes: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file. `run` chooses one of the runs in it, if it holds several. `changes` are
    merged over what it says. Raises UserError for unknown options."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    return loads(text, path, run, changes)


def loads(
    text: str,
    name: str = "the config",
    run: str = "",
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """As `load`, from text. `name` is what messages call the file."""
    data = parse(text, name)
    try:
        data = chosen({} if data is None else data, run)
        return from_plain(merged(data, changes) if changes else data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def parse(text: str, name: str) -> Any:
    """The data in a YAML text."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from error


def dumps(config: Config) -> str:
    """The config as YAML, which `loads` reads back to the same config."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=116)


def to_plain(config: Config) -> dict[str, Any]:
    """The config as mappings of words, numbers and lists."""
    plain = {}
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        if part is not None:
            plain[section.name] = options.to_plain(part, CHOICES.get(section.name))
    return plain


def from_plain(data: Any) -> Config:
    """The config that `to_plain` wrote, or a part of it; the rest gets its defaults."""
    if not isinstance(data, Mapping):
        raise UserError(f"the top level is {data!r}: a mapping of option to value belongs there")
    shapes = options.hints_of(Config)
    sections = {}
    for name, value in data.items():
        if name not in shapes:
            raise UserError(f"there is no option '{name}'{options.nearest(str(name), shapes)}")
        if name == "train" and isinstance(value, Mapping) and value.get("model"):
            value = merged(FINE_TUNING, value)
        sections[name] = options.from_plain(CHOICES.get(name, shapes[name]), value, name)
    return Config(**sections)


def with_parameters(config: Config, parameters: Mapping[str, Any]) -> Config:
    """The config with other values of some options, by their dotted names: {"train.lr": 0.01}.

    A part of another kind begins with that kind's defaults.
    """
    changed: dict[str, Any] = {}
    for key, value in parameters.items():
        *sections, name = key.split(".")
        inner = changed
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    try:
        return from_plain(merged(to_plain(config), changed))
    except UserError as error:
        point = ", ".join(f"{key} {value}" for key, value in parameters.items())
        raise UserError(f"{error} (at {point})") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: 3e-4 is a number, and a repeated key is an error."""

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
