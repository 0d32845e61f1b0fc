"""The search space of a sweep: ranges of values for options. A range may apply only if another
option has a certain value."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from raycap.config import parse
from raycap.errors import UserError
from raycap.options import nearest

Kind = Literal["choice", "uniform", "log_uniform", "integer"]
Parameters = dict[str, Any]  # of one trial: dotted names of options, and their values
CORNERS_CHECKED = 2000
# The sections of the config that a training run depends on.
SECTIONS = ("source", "reading", "vocabulary", "encoder", "decoder", "search", "train")
# Options that cannot be searched, and why.
FIXED = {
    "train.out": "each trial has a folder of its own",
    "train.fresh": "a trial that died continues in its folder",
    "train.features": "it follows from the source and the encoder",
    "train.validation.best_by": "trials could not be compared",
    "train.validation_split": "trials could not be compared",
    "train.workers": "the result does not depend on it; see tune.cpus and tune.gpus",
    "train.cache": "the result does not depend on it",
    "train.trackers": "the result does not depend on it",
}
# Options that features depend on. Each combination of their values needs its own feature table.
OF_FEATURES = ("source", "reading", "encoder", "train.augmentation", "train.start_from")


@dataclass(frozen=True)
class Range:
    """The values that an option may have if the conditions in `when` hold."""

    key: str
    kind: Kind
    values: tuple[Any, ...]  # all values of a choice; otherwise the lowest and the highest value
    when: Mapping[str, tuple[Any, ...]]  # option -> the values it must have

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError(f"{self.key} has no value to choose from")
        if self.kind == "choice":
            return
        number = int if self.kind == "integer" else float
        given = f"{self.key}: {self.kind} is {list(self.values)}"
        if len(self.values) != 2 or any(type(value) is not number for value in self.values):
            raise UserError(f"{given}: give the lowest and the highest number")
        low, high = self.values
        if not low < high or not math.isfinite(high - low):
            raise UserError(f"{given}: the lowest comes first")
        if self.kind == "log_uniform" and low <= 0:
            raise UserError(
                f"{self.key}: log_uniform begins at {low}: its logarithm needs more than 0"
            )

    def applies(self, chosen: Parameters) -> bool:
        """Whether the conditions in `when` hold."""
        return all(chosen.get(key) in wanted for key, wanted in self.when.items())

    def draw(self, random: np.random.Generator) -> Any:
        """One value at random."""
        if self.kind == "choice":
            return self.values[random.integers(len(self.values))]
        low, high = self.values
        if self.kind == "integer":
            return int(random.integers(low, high + 1))
        if self.kind == "log_uniform":
            return self.rounded(math.exp(random.uniform(math.log(low), math.log(high))))
        return self.rounded(random.uniform(low, high))

    def rounded(self, number: float) -> float:
        """The number rounded to five digits, and limited to the range."""
        low, high = self.values
        return float(min(max(float(f"{number:.5g}"), low), high))

    def all_values(self) -> Sequence[Any]:
        """All values of a choice or of an integer range."""
        if self.kind == "integer":
            return range(self.values[0], self.values[1] + 1)
        return self.values


@dataclass(frozen=True)
class Space:
    """A search space. Each range comes after those that its conditions depend on."""

    ranges: tuple[Range, ...]

    def points(self, values: Callable[[Range], Sequence[Any]]) -> Iterator[Parameters]:
        """All combinations of the values that `values` gives for each range. Ranges that do not
        apply are left out."""

        def extended(points: Iterator[Parameters], one: Range) -> Iterator[Parameters]:
            for point in points:
                if one.key in point or not one.applies(point):
                    yield point
                else:
                    for value in values(one):
                        yield {**point, one.key: value}

        points: Iterator[Parameters] = iter([{}])
        for one in self.ranges:
            points = extended(points, one)
        return points

    def point(self, value: Callable[[Range], Any]) -> Parameters:
        """The point with one value for each range that applies."""
        return next(self.points(lambda one: (value(one),)))

    def drawn(self, count: int, seed: int) -> list[Parameters]:
        """`count` random points."""
        random = np.random.default_rng(seed)
        return [self.point(lambda one: one.draw(random)) for _ in range(count)]

    def grid(self) -> list[Parameters]:
        """All combinations. Raises UserError for ranges of real numbers."""
        for one in self.ranges:
            if one.kind not in ("choice", "integer"):
                raise UserError(
                    f"{one.key} is {one.kind}: a grid needs a choice there, or take another "
                    "searcher"
                )
        return list(self.points(Range.all_values))

    def corners(self) -> Iterator[Parameters]:
        """Points that have each range at its lowest and highest value (or each choice at each
        value); at most CORNERS_CHECKED."""
        deciding = {key for one in self.ranges for key in one.when}

        def with_value(one: Range, value: Any) -> Iterator[Parameters]:
            def values(other: Range) -> Sequence[Any]:
                if other is one:
                    return (value,)
                return other.values if other.key in deciding else other.values[:1]

            return self.points(values)

        corners = (with_value(one, value) for one in self.ranges for value in one.values)
        return itertools.islice(itertools.chain.from_iterable(corners), CORNERS_CHECKED)

    def feature_points(self) -> Iterator[Parameters]:
        """One point for each combination of the options that features depend on."""
        deciding: set[str] = set()
        for one in reversed(self.ranges):  # each comes after those that it depends on
            if is_under(one.key, OF_FEATURES) or one.key in deciding:
                deciding |= set(one.when)

        def values(one: Range) -> Sequence[Any]:
            if is_under(one.key, OF_FEATURES):
                return one.all_values()
            return one.values if one.key in deciding else one.values[:1]

        return self.points(values)

    def to_plain(self) -> dict[str, Any]:
        """The space as JSON, for the identity of a sweep."""
        plain: dict[str, Any] = {}
        for one in self.ranges:
            described: dict[str, Any] = {one.kind: list(one.values)}
            if one.when:
                described["when"] = {key: list(values) for key, values in one.when.items()}
            plain.setdefault(one.key, []).append(described)
        return plain


def is_under(key: str, sections: Collection[str]) -> bool:
    """Whether an option is one of these, or below one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def read_space(path: str, try_point: Callable[[Parameters], object]) -> Space:
    """Read a search space from a YAML file.

    `try_point` makes a config from a point, or raises UserError. It is called for the corners of
    the space, so that unknown options and invalid values are found now and not in a later trial.
    """
    if not path:
        raise UserError(
            "what is to be searched? Give --space FILE.yaml; configs/space.yaml is one"
        )
    try:
        data = parse(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the search space {path}: {error}") from error
    try:
        if not isinstance(data, Mapping) or not data:
            raise UserError(
                "give a mapping of options to ranges, as 'train.lr: {log_uniform: [1e-4, 1e-2]}'"
            )
        ranges: list[Range] = []
        for key, given in data.items():
            # An option may have several ranges, each with conditions of its own.
            cases = given if isinstance(given, list) else [given]
            ranges += [_range(key, case) for case in cases]
        space = Space(_in_order(ranges))
        for one in space.ranges:
            _check_option(one)
        for corner in space.corners():
            try_point(corner)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return space


def _range(key: str, given: Any) -> Range:
    """One range as the file has it, such as {choice: [16, 32], when: {decoder.kind:
    recurrent}}."""
    known = get_args(Kind)
    kinds = [kind for kind in known if isinstance(given, Mapping) and kind in given]
    unknown = sorted(set(given) - {*known, "when"}) if isinstance(given, Mapping) else []
    if len(kinds) != 1 or unknown:
        reason = "give one range"
        if unknown:
            reason = f"{unknown[0]!r} is no range{nearest(unknown[0], known)}"
        raise UserError(
            f"{key} is {given!r}: {reason}, as '{{choice: [16, 32]}}' or '{{uniform: [0.1, 0.5]}}'"
        )
    kind = cast(Kind, kinds[0])
    values, when = given[kind], given.get("when", {})
    if not isinstance(values, list) or not isinstance(when, Mapping):
        raise UserError(
            f"{key} is {given!r}: a range is a list, and `when` a mapping of options to values"
        )
    if kind in ("uniform", "log_uniform"):  # [1, 8] includes numbers such as 3.7
        values = [float(value) if type(value) is int else value for value in values]
    conditions = {
        other: tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for other, wanted in when.items()
    }
    return Range(key, kind, tuple(values), conditions)


def _in_order(ranges: list[Range]) -> tuple[Range, ...]:
    """Each range after those that its conditions depend on."""
    choices: dict[str, list[Any]] = {one.key: [] for one in ranges}
    for one in ranges:
        if one.kind == "choice":
            choices[one.key] += one.values
    for one in ranges:
        for key, wanted in one.when.items():
            if key not in choices:
                raise UserError(
                    f"{one.key} is tried when {key} has a value, which is not searched"
                    f"{nearest(key, choices)}"
                )
            wrong = [value for value in wanted if value not in choices[key]]
            if wrong:
                raise UserError(
                    f"{one.key} is tried when {key} is {wrong[0]!r}, which is none of its choices"
                )
    ordered: list[Range] = []
    left = list(ranges)
    while left:
        waiting = {one.key for one in left}
        ready = [one for one in left if not waiting & set(one.when)]
        if not ready:
            raise UserError(f"{left[0].key} and {left[-1].key} decide about each other")
        ordered += ready
        left = [one for one in left if one not in ready]
    return tuple(ordered)


def _check_option(one: Range) -> None:
    """Raise UserError for an option that cannot be searched."""
    for section, reason in FIXED.items():
        if is_under(one.key, (section,)):
            raise UserError(f"{one.key} cannot be searched: {reason}")
    if not is_under(one.key, SECTIONS):
        section = one.key.split(".")[0]
        raise UserError(f"{one.key} is no option of a training run{nearest(section, SECTIONS)}")
    if is_under(one.key, OF_FEATURES) and one.kind not in ("choice", "integer"):
        raise UserError(
            f"{one.key} is {one.kind}: features are made for each value, so give a choice"
        )
