"""Options as plain data and back: frozen dataclasses as the mappings that YAML files and captioner
folders hold.

    from_plain(ENCODERS, {"kind": "pixels", "size": 32}, "encoder")  ->  Pixels(size=32)
    to_plain(Pixels(size=32), ENCODERS)  ->  {"kind": "pixels", "size": 32, ...}

Where a part has alternatives, a plain dict holds them by name (ENCODERS, SOURCES, ...), and `kind`
says which one it is.
"""

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raycap.errors import UserError

# Options that no longer exist: the default that they had, and why they were removed. Files of
# earlier versions name them. The default is ignored; any other value is refused.
REMOVED: dict[str, tuple[Any, str]] = {
    "decoder.scaled_words": (False, "it lowered the loss and made captions no better"),
    "report.extremes": (8, "a page shows the 8 best and the 8 worst"),
    "report.thumbnail": (320, "pictures on a page are 320 pixels; report.megabytes limits them"),
    "report.seed": (0, "a page always draws the same pictures"),
    "extract.shuffle_seed": (None, "every run makes all rows, so their order changes nothing"),
    **{
        f"{command}.part_seconds": (30.0, "every chunk is committed as soon as it is finished")
        for command in ("caption", "extract")
    },
    "caption.min_score": (None, "it is flags.min_score, which sets the flag low_score"),
    "caption.shuffle_seed": (None, "every run makes all rows, so their order changes nothing"),
}

# Values that no longer exist: option and value, and what to do instead.
REMOVED_VALUES: dict[tuple[str, Any], str] = {
    ("caption.txt_mode", mode): (
        "this version no longer joins texts: give skip or overwrite, or write into another folder "
        "(without --txt-beside) and join the files yourself"
    )
    for mode in ("append", "prepend")
}

# A dataclass, or the alternatives by name.
Shape = Any


def to_plain(options: Any, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options as a mapping of words, numbers and lists, with their `kind` if they are one of
    several kinds."""
    # Through JSON: tuples become lists, which safe YAML can hold.
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options)))
    return plain if kinds is None else {"kind": kind_of(options, kinds), **plain}


def from_plain(shape: Shape, data: Any, name: str) -> Any:
    """The options that `to_plain` wrote. Missing ones get their defaults; unknown ones raise
    UserError.

    `shape` is a dataclass, or a dict of alternatives. `name` is what messages call the options:
    `encoder`.
    """
    if not isinstance(shape, Mapping):
        return _build(shape, data, name)
    if data is None:
        return None
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        example = f"{name}: {{kind: {next(iter(shape))}}}"
        raise UserError(f"{name} must name its kind, as in '{example}'")
    others = {option: value for option, value in data.items() if option != "kind"}
    return _build(choose(shape, data["kind"], name), others, name)


def choose(kinds: Mapping[str, Any], kind: str, name: str) -> Any:
    """The option class of that kind; UserError lists what there is."""
    if kind not in kinds:
        raise UserError(f"there is no {name} '{kind}'{nearest(kind, kinds)}")
    return kinds[kind]


def kind_of(options: object, kinds: Mapping[str, Any]) -> str:
    """The name of the options' class among the alternatives."""
    return next(name for name, part in kinds.items() if part is type(options))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name, and all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{guess} known: {', '.join(known)}"


def without_removed(section: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that no longer exist and had their default."""
    kept = dict(data)
    for dotted, (default, _) in REMOVED.items():
        name = dotted.removeprefix(f"{section}.")
        if name != dotted and name in kept and kept[name] == default:
            del kept[name]
    return kept


def _build(part: Any, data: Any, place: str) -> Any:
    """A dataclass from a mapping. `place` is the dotted name of the options: `encoder`, or "" for
    the whole file."""
    if not isinstance(data, Mapping):
        where = place or "the top level"
        raise UserError(f"{where} is {data!r}: a mapping of option to value belongs there")
    hints = hints_of(part)
    values = {}
    for key, value in data.items():
        dotted = f"{place}.{key}"
        if dotted in REMOVED:
            default, reason = REMOVED[dotted]
            if value != default:
                raise UserError(
                    f"{dotted} is {value!r}, and this version no longer has that option "
                    f"({reason}): leave it out, or use raycap 0.1 for what was made with it"
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
    except UserError as error:
        if str(error).startswith((f"{place}.", "--")):
            raise
        raise UserError(f"{place}: {error}") from error


def _value(hint: Any, value: Any, dotted: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, dotted)
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        [_, inner] = typing.get_args(hint)
        return {name: _value(inner, each, f"{dotted}.{name}") for name, each in value.items()}
    if isinstance(value, Mapping):  # one of several types
        parts = [part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)]
        if parts:
            return _build(parts[0], value, dotted)
    try:
        # Strict as JSON is strict: no "5" for 5, no yes for a word, but a list for a tuple and 1
        # for 1.0.
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(detail["msg"].lower() for detail in error.errors()))
        raise UserError(f"{dotted} is {value!r}: {wanted}") from error
    except TypeError as error:  # a YAML date, for one, has no JSON form
        raise UserError(
            f"{dotted} is {value!r}, a {type(value).__name__}: put it in quotes if it is a word"
        ) from error


def _required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


@functools.cache
def hints_of(part: Any) -> dict[str, Any]:
    """The options of a dataclass and their types."""
    hints = typing.get_type_hints(part)
    return {option.name: hints[option.name] for option in dataclasses.fields(part) if option.init}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
