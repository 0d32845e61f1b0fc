"""Counts n-grams of many captions at once, with NumPy arrays.

The n-grams of the references are counted once and put into a sorted table. Captions, which are
sequences of token numbers here, are then matched against it. An n-gram is represented by its place
in the table; one that no reference has gets the place -1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.signedinteger[Any]]

_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Captions:
    """The token numbers of many captions, concatenated."""

    tokens: Ints  # [T]
    owner: Ints  # [T], the caption of each token, ascending
    count: int  # captions, empty ones included

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "Captions":
        lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        tokens = np.fromiter(chain.from_iterable(captions), np.int64, int(lengths.sum()))
        return cls(tokens, np.repeat(np.arange(len(captions)), lengths), len(captions))

    @property
    def lengths(self) -> Ints:
        return np.bincount(self.owner, minlength=self.count)

    def starts(self, n: int) -> Ints:
        """The places in `tokens` where n tokens of one caption begin."""
        return np.flatnonzero(self.owner[: max(len(self.owner) - n + 1, 0)] == self.owner[n - 1 :])


@dataclass(frozen=True)
class Grams:
    """The distinct n-grams of each caption, for one n."""

    caption: Ints  # [K]
    place: Ints  # [K], in the table of the references; -1 for none
    count: Ints  # [K], how often it occurs in the caption

    @classmethod
    def counted(cls, caption: Ints, kind: Ints, place: Ints) -> "Grams":
        """Count n-grams. For each occurrence the caption, the kind (a number that is equal for
        equal n-grams) and the place are given."""
        key = caption * (kind.max(initial=0) + 1) + kind
        _, first, count = np.unique(key, return_index=True, return_counts=True)
        return cls(caption[first], place[first], count)

    def reordered(self, order: Ints) -> "Grams":
        """A copy in another order, as int32: there may be half a million references."""
        return Grams(
            *(column[order].astype(np.int32) for column in (self.caption, self.place, self.count))
        )


class ReferenceGrams:
    """The n-grams of the references of many pictures."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]], longest: int = 4) -> None:
        # [pictures]; [R], the picture of each reference
        self.per_picture = np.fromiter(map(len, references), np.int64, len(references))
        self.picture = np.repeat(np.arange(len(references)), self.per_picture)
        captions = Captions.of(list(chain.from_iterable(references)))
        self.lengths = captions.lengths  # [R]
        self.grams: list[Grams] = []  # for each n, in the order of (picture, place)
        # For each n, the sorted n-grams: place of the first n - 1 tokens, and last token.
        self._tables: list[Ints] = []
        # For each n, picture and place of each of `grams` in one number, ascending.
        self._keys: list[Ints] = []
        self._base = int(captions.tokens.max(initial=0)) + 1
        place = np.zeros(len(captions.tokens), np.int64)  # of the n-gram that starts here
        for n in range(1, longest + 1):
            starts = captions.starts(n)
            table, place[starts] = np.unique(
                place[starts] * self._base + captions.tokens[starts + n - 1], return_inverse=True
            )
            grams = Grams.counted(captions.owner[starts], place[starts], place[starts])
            keys = self.picture[grams.caption] * len(table) + grams.place
            order = np.argsort(keys, kind="stable")
            self.grams.append(grams.reordered(order))
            self._keys.append(keys[order])
            self._tables.append(table)

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """For each n, a hash of each n-gram of the table. It depends on the tokens only."""
        shorter = np.zeros(1, np.uint64)
        for table in self._tables:
            first, last = np.divmod(table, self._base)
            shorter = shorter[first] * _HASH_FACTOR + last.astype(np.uint64) + np.uint64(1)
            shorter ^= shorter >> np.uint64(29)
            yield shorter

    def look_up(self, captions: Captions) -> Iterator[Grams]:
        """The n-grams of captions, for each n, with their places in the table."""
        place = np.zeros(len(captions.tokens), np.int64)
        kind = np.zeros_like(place)  # distinguishes n-grams that have no place, too
        base = int(captions.tokens.max(initial=0)) + 1
        for n, table in enumerate(self._tables, start=1):
            starts = captions.starts(n)
            last = captions.tokens[starts + n - 1]
            known = (place[starts] >= 0) & (last < self._base)
            place[starts] = _find(table, np.where(known, place[starts] * self._base + last, -1))
            kind[starts] = np.unique(kind[starts] * base + last, return_inverse=True)[1]
            yield Grams.counted(captions.owner[starts], kind[starts], place[starts])

    def documents(self, n: int) -> Ints:
        """Document frequency: for each n-gram of the table, the number of pictures whose
        references have it."""
        first = np.diff(self._keys[n - 1], prepend=-1) != 0  # once per picture
        return np.bincount(self.grams[n - 1].place[first], minlength=len(self._tables[n - 1]))

    def matches(self, n: int, grams: Grams, pictures: Ints) -> tuple[Ints, Ints]:
        """All pairs (row of `grams`, row of the references' grams) of the same n-gram and picture.

        `pictures` [captions] is the picture of each caption.
        """
        keys, size = self._keys[n - 1], len(self._tables[n - 1])
        wanted = np.where(grams.place >= 0, pictures[grams.caption] * size + grams.place, -1)
        low = np.searchsorted(keys, wanted)
        times = np.searchsorted(keys, wanted, side="right") - low
        ours = np.repeat(np.arange(len(times)), times)
        first = np.cumsum(times) - times  # in `ours`, of each row of grams
        return ours, low[ours] + np.arange(len(ours)) - first[ours]


def _find(table: Ints, values: Ints) -> Ints:
    """The place of each value in the sorted table, -1 where it is not in it."""
    if not len(table):
        return np.full(len(values), -1)
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[place] == values, place, -1)
