"""BLEU-1 to BLEU-4 over the whole corpus, as the COCO caption evaluation computes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raycap.metrics.corpus import Corpus
from raycap.metrics.ngrams import Captions, Grams, Ints, ReferenceGrams
from raycap.metrics.scores import Floats, Score, ScoreFacts

LONGEST = 4
# The reference implementation's constants; they make 0 / 0 a score of nearly 0.
_SMALL, _TINY = 1e-9, 1e-15


@dataclass(frozen=True)
class Bleu:
    """BLEU-1 to -4: n-grams that the references have too, with a penalty for short captions."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = tuple(
        ScoreFacts(
            f"bleu_{n}",
            f"BLEU-{n}",
            f"phrases of up to {n} word{'s' * (n > 1)} that the references have too, from 0 to 1",
            format="{:.3f}",
            headline=n == LONGEST,
            picture_rank=5 if n == LONGEST else 0,
        )
        for n in range(1, LONGEST + 1)
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """One score for each length of n-gram."""
        parts = count_ngrams(corpus.numbers, corpus.grams, corpus.reference_grams)
        signature = corpus.signature(length="closest")
        return tuple(
            Score(facts, parts, _up_to(n), signature) for n, facts in enumerate(self.scores, 1)
        )


def count_ngrams(captions: Captions, grams: list[Grams], references: ReferenceGrams) -> Floats:
    """Counts [pictures, 10]: for each n the number of matching n-grams, then for each n the number
    of n-grams of the caption, then the length of the caption and of the closest reference."""
    pictures = np.arange(captions.count)
    lengths = captions.lengths
    found = []
    for n, ours in enumerate(grams, start=1):
        rows, theirs = references.matches(n, ours, pictures)
        most = np.zeros(len(ours.count), np.int64)  # highest count in one reference
        np.maximum.at(most, rows, references.grams[n - 1].count[theirs])
        found.append(np.bincount(ours.caption, np.minimum(ours.count, most), captions.count))
    written = [np.maximum(lengths - n, 0) for n in range(LONGEST)]
    columns = [*found, *written, lengths, _closest_lengths(lengths, references)]
    return np.column_stack(columns).astype(np.float64)


def _closest_lengths(lengths: Ints, references: ReferenceGrams) -> Ints:
    """The length of the reference that is closest in length; the shorter one of two."""
    scale = int(references.lengths.max(initial=0)) + 1
    distance = np.abs(references.lengths - lengths[references.picture])
    first = np.cumsum(references.per_picture) - references.per_picture
    nearest: Ints = np.minimum.reduceat(distance * scale + references.lengths, first)
    return nearest % scale


def _up_to(n: int) -> Callable[[Floats], Floats]:
    """The function that computes BLEU-n from sums of `count_ngrams`."""

    def bleu(sums: Floats) -> Floats:
        found, written = sums[..., :n], sums[..., LONGEST : LONGEST + n]
        precision = np.prod((found + _TINY) / (written + _SMALL), axis=-1) ** (1 / n)
        ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        return np.asarray(precision * np.exp(np.minimum(0, 1 - 1 / ratio)))

    return bleu
