"""ROUGE-L as the COCO caption evaluation computes it: the longest common subsequence with each
reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raycap.errors import UserError
from raycap.metrics.corpus import Corpus
from raycap.metrics.scores import Score, ScoreFacts, mean_score


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L: tokens shared in the same order; best precision and best recall over references."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "rouge_l",
            "ROUGE-L",
            "words that a reference has in the same order, from 0 to 1",
            format="{:.3f}",
            headline=True,
            picture_rank=6,
        ),
    )
    beta: float = 1.2
    """How much more recall counts than precision; the COCO evaluation takes 1.2."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UserError(f"beta is {self.beta}: it must be above 0")

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The mean over pictures."""
        pairs = zip(corpus.tokens, corpus.reference_tokens, strict=True)
        per_picture = np.array([self._of_one(ours, theirs) for ours, theirs in pairs])
        return (mean_score(self.scores[0], per_picture, corpus.signature(beta=self.beta)),)

    def _of_one(self, caption: str, references: Sequence[str]) -> float:
        # As in the reference implementation: a caption without tokens is one empty token, and
        # "1 1/2" is one token.
        ours = caption.split(" ")
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
    """The length of the longest common subsequence. Each row of the table is the bits of a number.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004): a bit is 0 where the row's value
    rises.
    """
    positions: dict[str, int] = {}
    for position, token in enumerate(theirs):
        positions[token] = positions.get(token, 0) | 1 << position
    every = (1 << len(theirs)) - 1
    row = every
    for token in ours:
        if token in positions:
            rises = row & positions[token]
            row = (row + rises | row - rises) & every
    return len(theirs) - row.bit_count()
