"""The result of a metric: facts about each score, its value for a corpus and for each picture, and
how certain it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreFacts:
    """What others need to know to show a score, to sort by it, or to name the better of two."""

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
    """Whether it is shown where there is room for a few scores only, such as a training log."""
    picture_rank: int = 0
    """Pages sort pictures by scores that have a rank; the score of the lowest rank decides which
    captions are best and worst. 0: the score of a single picture says little."""
    log_name: str = ""
    """Its name in the log of a training run, where it has another one there."""

    def shown(self, value: float) -> str:
        """The value as a page shows it."""
        return self.format.format(value)

    def sort_key(self, value: float) -> float:
        """The lower the better."""
        return value if self.better == "lower" else -value

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return self.sort_key(value) < self.sort_key(than)


@dataclass(frozen=True)
class Score:
    """One score of the captions of a corpus.

    It is made from sums over pictures: `combine` turns sums of rows of `parts` into the score of
    one picture, of all, or of a resample. So BLEU, which is no mean over pictures, has intervals
    too.
    """

    facts: ScoreFacts
    parts: Floats  # [pictures, K]
    combine: Callable[[Floats], Floats]  # [..., K] -> [...]
    # How the score was made. Only scores with the same signature can be compared.
    signature: str
    # False where a resample, which has pictures twice, means something else: distinct captions.
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
    """The scores [scores, samples] in resamples of the pictures; all scores see the same
    resamples."""
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
    """Bootstrap interval of the corpus score; None where resampling makes no sense."""
    if not score.can_resample:
        return None
    return middle(bootstrap([score], samples, seed)[0], level)


@dataclass(frozen=True)
class Comparison:
    """Ours minus theirs on the same pictures."""

    difference: float
    low: float
    high: float
    chance: float  # two-sided p-value: how often chance alone gives a difference of this size


def compare(
    ours: Score, theirs: Score, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Paired bootstrap: both are resampled alike, so what is hard for both cancels out."""
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
