"""ROUGE-L as the COCO caption evaluation computes it: the longest common subsequence with each reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.errors import UserError
from raycap.metrics.answers import Answer, mean_answer
from raycap.metrics.corpus import Corpus


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L: tokens shared in the same order, best precision and best recall over the references."""

    beta: float = 1.2
    """How much more recall counts than precision; the COCO evaluation takes 1.2."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UserError(f"beta is {self.beta}: it must be above 0")

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """The mean over pictures."""
        pairs = zip(corpus.tokens, corpus.reference_tokens, strict=True)
        scores = np.array([self._score(caption, references) for caption, references in pairs])
        return (mean_answer("rouge_l", scores, corpus.signature(beta=self.beta)),)

    def _score(self, caption: str, references: Sequence[str]) -> float:
        ours = caption.split(
            " "
        )  # as there: a caption without tokens is one empty token, "1 1/2" is one
        precision = recall = 0.0
        for reference in references:
            theirs = reference.split(" ")
            common = longest_common(ours, theirs)
            precision = max(precision, common / len(ours))
            recall = max(recall, common / len(theirs))
        if not precision:
            return 0.0
        return (1 + self.beta**2) * precision * recall / (recall + self.beta**2 * precision)


def longest_common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as the bits of one number.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004): a bit is 0 where the row's value rises.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(theirs):
        places[token] = places.get(token, 0) | 1 << place
    every = (1 << len(theirs)) - 1
    row = every
    for token in ours:
        if token in places:
            rises = row & places[token]
            row = (row + rises | row - rises) & every
    return len(theirs) - row.bit_count()
