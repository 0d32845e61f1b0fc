"""The answer of every metric: one score for the corpus, one for each picture, and how sure the first one is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What a metric says of the captions of a corpus.

    A corpus score is made from sums over pictures: `whole` turns sums of rows of `parts` into the score, be it for
    one picture, for all, or for a resample. That is what lets BLEU, which is no mean, have intervals too.
    """

    name: str
    parts: Floats  # [pictures, K]
    whole: Callable[[Floats], Floats]  # [..., K] -> [...]
    signature: str  # two scores may be compared where it is the same
    resamples: bool = True  # False where a resample with doubled pictures would not mean the same (distinct captions)

    @property
    def score(self) -> float:
        """The corpus score."""
        return float(self.whole(self.parts.sum(axis=0)))

    @property
    def scores(self) -> Floats:
        """Each picture's score, in the order of the corpus."""
        return self.whole(self.parts)


def mean_answer(name: str, scores: Floats, signature: str, resamples: bool = True) -> Answer:
    """The answer of a metric whose corpus score is the mean over pictures."""
    return Answer(
        name, np.column_stack([scores, np.ones(len(scores))]), _mean, signature, resamples
    )


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def interval(
    answer: Answer, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of the corpus score over the pictures; None where resampling makes no sense."""
    if not answer.resamples:
        return None
    return bounds(resampled([answer], samples, seed)[0], level)


@dataclass(frozen=True)
class Comparison:
    """Ours minus theirs on the same pictures."""

    difference: float
    low: float
    high: float
    chance: float  # two-sided: how often a difference of this size would come by chance


def compare(
    ours: Answer, theirs: Answer, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Paired bootstrap: both corpora are resampled alike, so what is hard for both does not blur it."""
    _refuse_unlike(ours, theirs)
    first, second = resampled([ours, theirs], samples, seed)
    return compared(ours, theirs, first - second, level)


def compared(ours: Answer, theirs: Answer, differences: Floats, level: float = 0.95) -> Comparison:
    """As `compare`, from the differences in the same resamples."""
    _refuse_unlike(ours, theirs)
    low, high = bounds(differences, level)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Comparison(
        ours.score - theirs.score, low, high, min(1.0, 2 * (tail + 1) / (len(differences) + 1))
    )


def _refuse_unlike(ours: Answer, theirs: Answer) -> None:
    if (ours.name, ours.signature) != (theirs.name, theirs.signature):
        raise ValueError(
            f"{ours.name} ({ours.signature}) and {theirs.name} ({theirs.signature}) do not compare"
        )


def resampled(answers: Sequence[Answer], samples: int = 1000, seed: int = 0) -> Floats:
    """The corpus scores [answers, samples] in resamples of the pictures, the same resamples for every answer."""
    pictures = len(answers[0].parts)
    random = np.random.default_rng(seed)
    scores = np.empty((len(answers), samples))
    for sample in range(samples):
        times = np.bincount(
            random.integers(0, pictures, pictures), minlength=pictures
        )  # [pictures]
        sums: dict[int, Floats] = {}  # by the parts, which BLEU-1 to -4 share
        for place, answer in enumerate(answers):
            if id(answer.parts) not in sums:
                sums[id(answer.parts)] = times.astype(np.float64) @ answer.parts
            scores[place, sample] = answer.whole(sums[id(answer.parts)])
    return scores


def bounds(scores: Floats, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle `level` of the scores of resamples."""
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
