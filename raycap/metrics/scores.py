"""The result of a metric: a description of each score, its values for the corpus and for each
picture, and bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreFacts:
    """The description of a score: how to show it, and which of two values is better."""

    name: str
    """In tables, options and logs: `bleu_4`."""
    label: str
    """For people: BLEU-4."""
    meaning: str
    """One sentence for the legend of a page."""
    better: Literal["higher", "lower", "neither"] = "higher"
    format: str = "{:.2f}"
    """How a page shows the value."""
    headline: bool = False
    """Whether it is shown in short lists of scores, such as a training log."""
    picture_rank: int = 0
    """Pages can sort pictures by scores that have a rank. The score with the lowest rank selects
    the best and worst captions. 0: the score of a single picture is not meaningful."""
    log_name: str = ""
    """Its name in the log of a training run, if it differs."""

    def shown(self, value: float) -> str:
        """The value as a page shows it."""
        return self.format.format(value)

    def sort_key(self, value: float) -> float:
        """A number to sort by: lower is better."""
        return value if self.better == "lower" else -value

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return self.sort_key(value) < self.sort_key(than)


@dataclass(frozen=True)
class Score:
    """One score of the captions of a corpus.

    `parts` has one row for each picture. `combine` computes the score from a sum of rows: of one
    picture, of all pictures, or of a bootstrap resample. So scores that are not means over
    pictures, such as BLEU, have intervals too.
    """

    facts: ScoreFacts
    parts: Floats  # [pictures, K]
    combine: Callable[[Floats], Floats]  # [..., K] -> [...]
    # How the score was computed. Only scores with the same signature can be compared.
    signature: str
    # False for scores such as distinct captions: a resample has some pictures twice, which changes
    # their meaning.
    can_resample: bool = True

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def value(self) -> float:
        """The score of the whole corpus."""
        return float(self.combine(self.parts.sum(axis=0)))

    @property
    def per_picture(self) -> Floats:
        """The score of each picture, in the order of the corpus."""
        return self.combine(self.parts)


def mean_score(
    facts: ScoreFacts, per_picture: Floats, signature: str, can_resample: bool = True
) -> Score:
    """A score whose value for the corpus is the mean over pictures."""
    parts = np.column_stack([per_picture, np.ones(len(per_picture))])
    return Score(facts, parts, _mean, signature, can_resample)


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def bootstrap(scores: Sequence[Score], samples: int = 1000, seed: int = 0) -> Floats:
    """The values [scores, samples] of all scores in resamples of the pictures. All scores use the
    same resamples."""
    pictures = len(scores[0].parts)
    random = np.random.default_rng(seed)
    values = np.empty((len(scores), samples))
    for sample in range(samples):
        drawn = random.integers(0, pictures, pictures)
        times = np.bincount(drawn, minlength=pictures).astype(np.float64)  # [pictures]
        sums: dict[int, Floats] = {}  # by the identity of the parts, which BLEU-1 to -4 share
        for row, score in enumerate(scores):
            if id(score.parts) not in sums:
                sums[id(score.parts)] = times @ score.parts
            values[row, sample] = score.combine(sums[id(score.parts)])
    return values


def middle(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    score: Score, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """The bootstrap interval of the corpus score; None if it cannot be resampled."""
    if not score.can_resample:
        return None
    return middle(bootstrap([score], samples, seed)[0], level)


@dataclass(frozen=True)
class Comparison:
    """The difference between two scores on the same pictures: the first minus the second."""

    difference: float
    low: float
    high: float
    chance: float  # two-sided p-value: how often chance alone gives a difference of this size


def compare(
    ours: Score, theirs: Score, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two scores with a paired bootstrap: both use the same resamples."""
    _check_comparable(ours, theirs)
    first, second = bootstrap([ours, theirs], samples, seed)
    return compare_resamples(ours, theirs, first - second, level)


def compare_resamples(
    ours: Score, theirs: Score, differences: Floats, level: float = 0.95
) -> Comparison:
    """Like `compare`, from the differences in the same resamples."""
    _check_comparable(ours, theirs)
    low, high = middle(differences, level)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    chance = min(1.0, 2 * (tail + 1) / (len(differences) + 1))
    return Comparison(ours.value - theirs.value, low, high, chance)


def _check_comparable(ours: Score, theirs: Score) -> None:
    if (ours.name, ours.signature) != (theirs.name, theirs.signature):
        raise ValueError(
            f"{ours.name} ({ours.signature}) and {theirs.name} ({theirs.signature}) do not compare"
        )
