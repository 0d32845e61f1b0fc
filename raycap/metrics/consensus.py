"""How well captions agree with the captions of similar pictures: CIDEr-D, for a search."""

from collections.abc import Sequence

import numpy as np

from raycap.metrics.cider import LONGEST, TfIdfSimilarity
from raycap.metrics.ngrams import Captions, Ints, ReferenceGrams
from raycap.metrics.scores import Floats


class CiderConsensus:
    """The mean CIDEr-D of captions against each caption of some pictures. The captions of all
    pictures are counted once, at the start.

    It is what `CiderD` gives with the captions of these pictures as references, and the document
    frequencies of all pictures. It takes a millisecond or two for 30 captions and 100 pictures.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]], sigma: float = 6.0) -> None:
        """`references`: the captions of each picture as token numbers."""
        self._grams = ReferenceGrams(references)
        self._similarity = TfIdfSimilarity(self._grams, sigma)
        self._sigma = sigma
        # [N + 1] for each n: where the n-grams of each picture begin in `grams`.
        numbers = np.arange(len(references) + 1)
        self._starts = [
            np.searchsorted(self._grams.picture[grams.caption], numbers)
            for grams in self._grams.grams
        ]
        self._first_caption = np.concatenate([[0], np.cumsum(self._grams.per_picture)])

    def __call__(self, captions: Sequence[Sequence[int]], pictures: Ints) -> Floats:
        """The agreement [C] of each caption with the captions of these pictures, which differ."""
        flat = Captions.of(captions)
        # Their captions [R], and the place of each among these.
        theirs = _ranges(self._first_caption[pictures], self._first_caption[pictures + 1])
        if not len(theirs):
            return np.zeros(flat.count)
        place_of = np.full(len(self._grams.picture), -1)
        place_of[theirs] = np.arange(len(theirs))
        cosine = np.zeros((flat.count, len(theirs)))
        for n, ours in enumerate(self._grams.look_up(flat)):
            rarity = self._similarity.rarity[n]
            norms = np.sqrt(
                np.bincount(ours.caption, (ours.count * rarity[ours.place]) ** 2, flat.count)
            )
            known = ours.place >= 0
            places, column = np.unique(ours.place[known], return_inverse=True)
            counts = np.zeros((flat.count, len(places)))
            counts[ours.caption[known], column] = ours.count[known]
            rows = _ranges(self._starts[n][pictures], self._starts[n][pictures + 1])
            grams = self._grams.grams[n]
            found = np.searchsorted(places, grams.place[rows])
            is_ours = found < len(places)
            is_ours[is_ours] = places[found[is_ours]] == grams.place[rows[is_ours]]
            rows, found = rows[is_ours], found[is_ours]
            weights = self._similarity.weights[n][rows] / self._similarity.norms[n][
                grams.caption[rows]
            ].clip(np.finfo(float).tiny)
            other = np.zeros((len(places), len(theirs)))
            # min(a, b) is the number of k for which both are at least k.
            for k in range(1, int(counts.max(initial=0)) + 1):
                enough = grams.count[rows] >= k
                other[:] = 0
                other[found[enough], place_of[grams.caption[rows[enough]]]] = weights[enough]
                mine = (counts >= k) * rarity[places] / norms.clip(np.finfo(float).tiny)[:, None]
                cosine += mine @ other
        apart = np.maximum(flat.lengths, 1)[:, None] - np.maximum(self._grams.lengths[theirs], 1)
        cosine *= np.exp(-(apart**2) / (2 * self._sigma**2))
        agreement: Floats = 10 / LONGEST * cosine.mean(1)
        return agreement


def _ranges(starts: Ints, ends: Ints) -> Ints:
    """The numbers from each start to before its end, one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    numbers: Ints = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return numbers
