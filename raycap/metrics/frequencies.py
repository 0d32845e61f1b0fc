"""Document frequencies: in how many pictures' references each n-gram occurs.

They say how rare an n-gram is, for CIDEr-D as a reward. The table has a bounded size, whatever the
number of pictures. N-grams that occur in one picture only are not kept: those are all others.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from raycap.metrics.ngrams import Ints, ReferenceGrams
from raycap.vocabulary.words import END, PAD, START

LONGEST = 4
MOST = 2_000_000  # n-grams of each length; COCO has fewer that occur in two pictures
WAITING = 1 / 8  # of as many, before they are sorted into the table
PICTURES_AT_ONCE = 1_000

Hashes = npt.NDArray[np.uint64]
Encoded = Sequence[Sequence[int]]  # the captions of a picture, as token numbers


@dataclass(frozen=True)
class DocumentFrequencies:
    """The document frequencies of n-grams, which are known by their hashes."""

    pictures: int
    hashes: tuple[Hashes, ...]  # of each length, sorted
    counts: tuple[Ints, ...]  # of each of `hashes`, above 1
    count_end: bool  # whether `<end>` is a token

    @classmethod
    def counted(
        cls, references: Iterable[Encoded], count_end: bool = True, most: int = MOST
    ) -> "DocumentFrequencies":
        """Count the references of each picture. Of more than `most` n-grams of one length, the
        rarest are dropped now and then."""
        tables = [_Table(most) for _ in range(LONGEST)]
        pictures, left = 0, iter(references)
        while some := list(islice(left, PICTURES_AT_ONCE)):
            grams = ReferenceGrams([counted_tokens(own, count_end) for own in some])
            pictures += len(some)
            for n, hashes in enumerate(grams.hashes(), start=1):
                tables[n - 1].add(hashes, grams.documents(n))
        known, counts = zip(*(table.finished() for table in tables), strict=True)
        return cls(pictures, known, counts, count_end)

    def of(self, n: int, hashes: Hashes) -> Ints:
        """The number of pictures of each n-gram; 1 for those that are not in the table."""
        known, counts = self.hashes[n - 1], self.counts[n - 1]
        if not len(known):
            return np.ones(len(hashes), np.int64)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[places] == hashes, counts[places], 1)

    def to_bytes(self) -> bytes:
        """The content of a file."""
        arrays: dict[str, Any] = {"about": np.array([self.pictures, self.count_end])}
        for n in range(LONGEST):
            arrays[f"hashes_{n}"], arrays[f"counts_{n}"] = self.hashes[n], self.counts[n]
        content = io.BytesIO()
        np.savez(content, **arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "DocumentFrequencies":
        """What `to_bytes` returned."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            pictures, count_end = arrays["about"].tolist()
            hashes = tuple(arrays[f"hashes_{n}"] for n in range(LONGEST))
            counts = tuple(arrays[f"counts_{n}"] for n in range(LONGEST))
        return cls(pictures, hashes, counts, bool(count_end))


class _Table:
    """Counts of the n-grams of one length. What is added waits until it is worth sorting."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        self._waiting: list[tuple[Hashes, Ints]] = []

    def add(self, hashes: Hashes, counts: Ints) -> None:
        self._waiting.append((hashes, counts.astype(np.int32)))
        if sum(len(waiting) for waiting, _ in self._waiting) > self._most * WAITING:
            self._merge()

    def finished(self) -> tuple[Hashes, Ints]:
        """The n-grams of at least two pictures."""
        self._merge()
        kept = self._counts > 1
        return self._hashes[kept], self._counts[kept]

    def _merge(self) -> None:
        """Put those that wait into the table. It is the larger part, so it is not sorted again."""
        if not self._waiting:
            return
        hashes, places = np.unique(
            np.concatenate([own for own, _ in self._waiting]), return_inverse=True
        )
        counts = np.bincount(places, np.concatenate([own for _, own in self._waiting]))
        self._waiting = []
        places = np.searchsorted(self._hashes, hashes)
        known = places < len(self._hashes)
        known[known] = self._hashes[places[known]] == hashes[known]
        self._counts[places[known]] += counts[known].astype(np.int32)
        self._hashes = np.insert(self._hashes, places[~known], hashes[~known])
        self._counts = np.insert(self._counts, places[~known], counts[~known].astype(np.int32))
        if len(self._counts) > self._most:
            least = np.partition(self._counts, -self._most)[-self._most]
            kept = self._counts > min(least, self._counts.max() - 1)
            self._hashes, self._counts = self._hashes[kept], self._counts[kept]


def counted_tokens(captions: Encoded, count_end: bool) -> list[list[int]]:
    """The captions of a picture without the tokens that do not count."""
    dropped = (PAD, START) if count_end else (PAD, START, END)
    return [[token for token in caption if token not in dropped] for caption in captions]
