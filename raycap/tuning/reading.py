"""A search space from its YAML file, refused where the config has no such option or the option no such value."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from raycap.config import Config, from_plain, nearest, parse, to_plain
from raycap.refusal import Refusal
from raycap.tuning.space import SEEN, Kind, Parameters, Range, Space, is_under
from raycap.variants import merged

# The sections of the config that a training run depends on, without what must be the same for all trials.
SECTIONS = ("source", "reading", "vocabulary", "encoder", "decoder", "search", "train")
FIXED = {
    "train.out": "each trial has a folder of its own",
    "train.fresh": "a trial that died goes on from its folder",
    "train.features": "it follows from the source and the encoder",
    "train.validation.best_by": "trials could not be compared",
    "train.validation_split": "trials could not be compared",
    "train.workers": "the result does not depend on it; see tune.cpus and tune.gpus",
    "train.cache": "the result does not depend on it",
    "train.trackers": "the result does not depend on it",
}


def read_space(path: str, config: Config) -> Space:
    """The space in a YAML file, after a look at its corners: an option that is not there or cannot have a value is
    refused now, and not by the trial that would come to it."""
    if not path:
        raise Refusal("what is to be searched? Give --space FILE.yaml; configs/space.yaml is one")
    try:
        data = parse(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"cannot read the search space {path}: {error}") from error
    try:
        if not isinstance(data, Mapping) or not data:
            raise Refusal("give a mapping of options to ranges, as 'train.lr: {log_uniform: [1e-4, 1e-2]}'")
        space = Space(_ordered([one for key, given in data.items() for one in _ranges(key, given)]))
        _check(space, config)
    except Refusal as refusal:
        raise Refusal(f"{path}: {refusal}") from refusal
    return space


def _ranges(key: str, given: Any) -> Iterator[Range]:
    """Those of one option: a list has one for each case."""
    for one in given if isinstance(given, list) else [given]:
        kinds = [kind for kind in get_args(Kind) if isinstance(one, Mapping) and kind in one]
        if len(kinds) != 1 or set(one) - {kinds[0], "when"}:
            unknown = sorted(set(one) - {*get_args(Kind), "when"}) if isinstance(one, Mapping) else []
            guess = [f"{word!r} is no range{nearest(word, get_args(Kind))}" for word in unknown] or [
                "give one range"
            ]
            raise Refusal(f"{key} is {one!r}: {guess[0]}, as '{{choice: [16, 32]}}' or '{{uniform: [0.1, 0.5]}}'")
        values, when = one[kinds[0]], one.get("when", {})
        if not isinstance(values, list) or not isinstance(when, Mapping):
            raise Refusal(f"{key} is {one!r}: a range is a list, and `when` a mapping of options to values")
        cases = {other: tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
        if kinds[0] in ("uniform", "log_uniform"):  # [1, 8] are numbers such as 3.7 too
            values = [float(value) if type(value) is int else value for value in values]
        yield Range(key, cast(Kind, kinds[0]), tuple(values), cases)


def _ordered(ranges: list[Range]) -> tuple[Range, ...]:
    """Deciding ranges first."""
    choices: dict[str, list[Any]] = {one.key: [] for one in ranges}
    for one in ranges:
        choices[one.key] += one.values if one.kind == "choice" else ()
    for one in ranges:
        for key, values in one.when.items():
            if key not in choices:
                raise Refusal(
                    f"{one.key} is tried when {key} has a value, which is not searched{nearest(key, choices)}"
                )
            if wrong := [value for value in values if value not in choices[key]]:
                raise Refusal(f"{one.key} is tried when {key} is {wrong[0]!r}, which is none of its choices")
    placed: list[Range] = []
    while left := [one for one in ranges if one not in placed]:
        waiting = {one.key for one in left}
        ready = [one for one in left if not waiting & set(one.when)]
        if not ready:
            raise Refusal(f"{left[0].key} and {left[-1].key} decide about each other")
        placed += ready
    return tuple(placed)


def _check(space: Space, config: Config) -> None:
    for one in space.ranges:
        reasons = [reason for place, reason in FIXED.items() if is_under(one.key, (place,))]
        if reasons:
            raise Refusal(f"{one.key} cannot be searched: {reasons[0]}")
        if not is_under(one.key, SECTIONS):
            raise Refusal(f"{one.key} is not of a training run{nearest(one.key.split('.')[0], SECTIONS)}")
        if is_under(one.key, SEEN) and one.kind not in ("choice", "integer"):
            raise Refusal(f"{one.key} is {one.kind}: features are made for each value, so give a choice")
    for corner in space.corners():
        config_of(config, corner)


def config_of(config: Config, parameters: Parameters) -> Config:
    """The config with these options; a part of another kind begins from that kind's defaults."""
    own: dict[str, Any] = {}
    for key, value in parameters.items():
        *places, name = key.split(".")
        inner = own
        for place in places:
            inner = inner.setdefault(place, {})
        inner[name] = value
    try:
        return from_plain(merged(to_plain(config), own))
    except Refusal as refusal:
        point = ", ".join(f"{key} {value}" for key, value in parameters.items())
        raise Refusal(f"{refusal} (at {point})") from refusal
