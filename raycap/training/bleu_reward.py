"""BLEU-4 of single captions on token numbers, as a reward."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raycap.metrics.ngrams import Captions, Ints, ReferenceGrams
from raycap.vocabulary import END, PAD, START

LONGEST = 4


class BleuReward:
    """One is added to the counts of each length above 1 (BLEU+1, Lin and Och 2004): without it, nearly every single
    caption scores 0, and nothing could be learned from the differences."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        """`references`: for each picture its encoded captions; `<start>` is ignored, `<end>` is a token."""
        counted = [[[number for number in one if number not in (PAD, START)] for one in own] for own in references]
        self._grams = ReferenceGrams(counted)
        self._lengths = [np.array([len(one) for one in own]) for own in counted]  # of each picture's references

    def __call__(self, captions: npt.NDArray[np.integer], pictures: Ints) -> npt.NDArray[np.float32]:
        """The reward [B] of `captions` [B, T], each judged by the references of its picture in `pictures` [B]."""
        ended = np.cumsum(captions == END, axis=1) - (captions == END)  # 0 up to the first <end>
        counts = (ended == 0) & (captions != PAD) & (captions != START)
        flat = Captions(captions[counts].astype(np.int64), np.nonzero(counts)[0], len(captions))
        total = np.zeros(flat.count)
        for n, ours in enumerate(self._grams.look_up(flat), start=1):
            rows, theirs = self._grams.matches(n, ours, pictures)
            most = np.zeros(len(ours.count), np.int64)  # the most often that one reference holds it
            np.maximum.at(most, rows, self._grams.grams[n - 1].count[theirs])
            found = np.bincount(ours.caption, np.minimum(ours.count, most), flat.count)
            written = np.maximum(flat.lengths - n + 1, 0)
            extra = 0 if n == 1 else 1
            total += np.log(np.maximum((found + extra) / np.maximum(written + extra, 1), 1e-9))
        nearest = np.array(
            [self._nearest(int(p), int(length)) for p, length in zip(pictures, flat.lengths, strict=True)]
        )
        brevity = np.minimum(0, 1 - nearest / np.maximum(flat.lengths, 1e-9))
        return np.exp(total / LONGEST + brevity).astype(np.float32)

    def _nearest(self, picture: int, length: int) -> int:
        """The length of the reference that is nearest in length, the shorter of two that are as near."""
        lengths = np.sort(self._lengths[picture])
        return int(lengths[np.abs(lengths - length).argmin()])
