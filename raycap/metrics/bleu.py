"""BLEU-1 to BLEU-4 over the whole corpus, as the COCO caption evaluation computes them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raycap.metrics.answers import Answer, Floats
from raycap.metrics.corpus import Corpus
from raycap.metrics.ngrams import Captions, Grams, Ints, ReferenceGrams

LONGEST = 4
_SMALL, _TINY = 1e-9, 1e-15  # the reference implementation's; they make 0 / 0 a score of nearly 0


@dataclass(frozen=True)
class Bleu:
    """BLEU-1, -2, -3 and -4: n-grams that the references hold too, with a penalty for captions that are short."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """One answer for each length of n-gram."""
        parts = counted(corpus.numbers, corpus.grams, corpus.reference_grams)
        signature = corpus.signature(length="closest")
        return tuple(
            Answer(f"bleu_{n}", parts, _up_to(n), signature) for n in range(1, LONGEST + 1)
        )


def counted(captions: Captions, grams: list[Grams], references: ReferenceGrams) -> Floats:
    """[pictures, 10]: for each n the n-grams found in a reference, then those written; both lengths."""
    pictures = np.arange(captions.count)
    lengths = captions.lengths
    found = []
    for n, ours in enumerate(grams, start=1):
        rows, theirs = references.matches(n, ours, pictures)
        most = np.zeros(len(ours.count), np.int64)  # the most often that one reference holds it
        np.maximum.at(most, rows, references.grams[n - 1].count[theirs])
        found.append(np.bincount(ours.caption, np.minimum(ours.count, most), captions.count))
    written = [np.maximum(lengths - n, 0) for n in range(LONGEST)]
    return np.column_stack([*found, *written, lengths, _closest(lengths, references)]).astype(
        np.float64
    )


def _closest(lengths: Ints, references: ReferenceGrams) -> Ints:
    """The length of the reference that is nearest in length, the shorter of two that are as near."""
    scale = int(references.lengths.max(initial=0)) + 1
    distance = np.abs(references.lengths - lengths[references.picture])
    first = np.cumsum(references.per_picture) - references.per_picture
    nearest: Ints = np.minimum.reduceat(distance * scale + references.lengths, first)
    return nearest % scale


def _up_to(n: int) -> Callable[[Floats], Floats]:
    def bleu(sums: Floats) -> Floats:
        found, written = sums[..., :n], sums[..., LONGEST : LONGEST + n]
        score = np.prod((found + _TINY) / (written + _SMALL), axis=-1) ** (1 / n)
        ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        return np.asarray(score * np.exp(np.minimum(0, 1 - 1 / ratio)))

    return bleu
