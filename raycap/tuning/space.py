"""What a sweep varies: ranges of options, by their dotted names, some only where another has a certain value."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raycap.refusal import Refusal

Kind = Literal["choice", "uniform", "log_uniform", "integer"]
Parameters = dict[str, Any]  # of one trial: the option's dotted name, and its value
CORNERS_LOOKED_AT = 2000
# What the features are made by; each choice of these has a feature table of its own.
SEEN = ("source", "reading", "encoder", "train.augmentation", "train.start_from")
# What may change in the middle of a run: neither its weights' shapes nor its length depend on it.
MOVABLE = (
    "train.lr",
    "train.embedding_lr",
    "train.encoder_lr",
    "train.self_critical.lr",
    "train.optimiser.weight_decay",
    "train.optimiser.clip",
    "train.objective.label_smoothing",
    "train.objective.attention_penalty",
    "train.objective.scheduled_sampling",
    "decoder.grid_dropout",
    "decoder.embedding_dropout",
    "decoder.layer_dropout",
    "decoder.output_dropout",
)


@dataclass(frozen=True)
class Range:
    """The values that an option may take, where `when` holds."""

    key: str
    kind: Kind
    values: tuple[Any, ...]  # all of a choice; else the lowest and the highest
    when: Mapping[str, tuple[Any, ...]]  # each of these options has one of these values

    def __post_init__(self) -> None:
        if not self.values:
            raise Refusal(f"{self.key} has no value to choose from")
        if self.kind == "choice":
            return
        number = int if self.kind == "integer" else float
        if len(self.values) != 2 or any(type(value) is not number for value in self.values):
            raise Refusal(f"{self.key}: {self.kind} is {list(self.values)}: give the lowest and the highest number")
        low, high = self.values
        if not low < high or not math.isfinite(high - low):
            raise Refusal(f"{self.key}: {self.kind} is {list(self.values)}: the lowest comes first")
        if self.kind == "log_uniform" and low <= 0:
            raise Refusal(f"{self.key}: log_uniform begins at {low}: its logarithm needs more than 0")

    def counts(self, chosen: Parameters) -> bool:
        """Whether `when` holds."""
        return all(chosen.get(key) in wanted for key, wanted in self.when.items())

    def draw(self, chance: np.random.Generator) -> Any:
        """One value."""
        if self.kind == "choice":
            return self.values[chance.integers(len(self.values))]
        low, high = self.values
        if self.kind == "integer":
            return int(chance.integers(low, high + 1))
        if self.kind == "log_uniform":
            return self.near(math.exp(chance.uniform(math.log(low), math.log(high))))
        return self.near(chance.uniform(low, high))

    def near(self, number: float) -> float:
        """The number as people write it, and within the range."""
        low, high = self.values
        return float(min(max(float(f"{number:.5g}"), low), high))


@dataclass(frozen=True)
class Space:
    """Ranges, each after those that decide whether it counts."""

    ranges: tuple[Range, ...]

    def sample(self, value: Callable[[Range], Any]) -> Parameters:
        """One point; `value` says where in each range."""
        return next(self.points(lambda one: (value(one),)))

    def points(self, values: Callable[[Range], Sequence[Any]]) -> Iterator[Parameters]:
        """Every combination of the values; a range that does not count where others are chosen is left out."""

        def further(place: int, before: Parameters) -> Iterator[Parameters]:
            if place == len(self.ranges):
                yield before
                return
            one = self.ranges[place]
            counts = one.key not in before and one.counts(before)
            for value in values(one) if counts else ():
                yield from further(place + 1, {**before, one.key: value})
            if not counts:
                yield from further(place + 1, before)

        return further(0, {})

    def grid(self) -> list[Parameters]:
        """Every combination."""
        for one in self.ranges:
            if one.kind not in ("choice", "integer"):
                raise Refusal(f"{one.key} is {one.kind}: a grid needs a choice there, or take another searcher")
        return list(self.points(_all))

    def drawn(self, count: int, seed: int) -> list[Parameters]:
        """So many points, by chance."""
        chance = np.random.default_rng(seed)
        return [self.sample(lambda one: one.draw(chance)) for _ in range(count)]

    def corners(self) -> Iterator[Parameters]:
        """Each range at each of its ends, wherever it counts; of a great many, the first."""
        deciding = {key for one in self.ranges for key in one.when}

        def with_end(one: Range, value: Any) -> Iterator[Parameters]:
            def values(other: Range) -> Sequence[Any]:
                if other is one:
                    return (value,)
                return other.values if other.key in deciding else other.values[:1]

            return self.points(values)

        every = (with_end(one, value) for one in self.ranges for value in one.values)
        return itertools.islice(itertools.chain.from_iterable(every), CORNERS_LOOKED_AT)

    def encodings(self) -> Iterator[Parameters]:
        """Each choice of what the features are made by."""
        deciding: set[str] = set()
        for one in reversed(self.ranges):  # each comes after those that it depends on
            if is_under(one.key, SEEN) or one.key in deciding:
                deciding |= set(one.when)
        return self.points(
            lambda one: (
                _all(one) if is_under(one.key, SEEN) else one.values if one.key in deciding else one.values[:1]
            )
        )

    def moved(self, parameters: Parameters, chance: np.random.Generator) -> Parameters:
        """Other rates for a run under way: most go up or down by a fifth, some are drawn anew."""
        anew = {}
        for key, value in parameters.items():
            fitting = [one for one in self.movable if one.key == key and one.counts(parameters)]
            if fitting and isinstance(value, float):
                factor = (0.8, 1.2)[chance.integers(2)]
                anew[key] = fitting[0].draw(chance) if chance.random() < 0.25 else fitting[0].near(value * factor)
        return {**parameters, **anew}

    @property
    def movable(self) -> list[Range]:
        """The ranges that a run under way may be moved in."""
        return [one for one in self.ranges if one.kind in ("uniform", "log_uniform") and one.key in MOVABLE]

    def to_plain(self) -> dict[str, Any]:
        """For a run's identity."""
        kept: dict[str, Any] = {}
        for one in self.ranges:
            when = {key: list(values) for key, values in one.when.items()}
            kept.setdefault(one.key, []).append({one.kind: list(one.values), **({"when": when} if when else {})})
        return kept


def _all(one: Range) -> Sequence[Any]:
    return range(one.values[0], one.values[1] + 1) if one.kind == "integer" else one.values


def is_under(key: str, places: Collection[str]) -> bool:
    """Whether an option is one of these, or stands below one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)
