"""Document frequencies: in how many pictures' references each n-gram occurs.

They say how rare an n-gram is, for CIDEr-D as a reward. The table has a bounded size, whatever the
number of pictures. N-grams that occur in one picture only are not kept: those are all others.

N-grams are counted in sorted runs, and the table is a file that is mapped. So neither takes memory
that grows with the pictures, and the workers of a machine share the table.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.ngrams import Ints, ReferenceGrams
from raycap.storage import sorted_runs
from raycap.vocabulary.words import END, PAD, START

LONGEST = 4
MOST = 2_000_000  # n-grams of each length; COCO has fewer that occur in two pictures
MOST_COUNTED = 16  # times as many are known, before those of one picture are dropped
WAITING = 1 << 17  # n-grams that wait until they are sorted
PICTURES_AT_ONCE = 1_000
MOST_TOLD_APART = 1 << 16  # counts, where the rarest n-grams are looked for
_LENGTH = 8  # of the number that says how long the head of a file is

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int32]
Encoded = Sequence[Sequence[int]]  # the captions of a picture, as token numbers


@dataclass(frozen=True)
class DocumentFrequencies:
    """The document frequencies of n-grams, which are known by their hashes."""

    pictures: int
    hashes: tuple[Hashes, ...]  # of each length, sorted
    counts: tuple[Counts, ...]  # of each of `hashes`, above 1
    count_end: bool  # whether `<end>` is a token

    @classmethod
    def counted(
        cls, references: Iterable[Encoded], count_end: bool = True, most: int = MOST
    ) -> "DocumentFrequencies":
        """Count the references of each picture. Of more than `most` n-grams of one length, the
        rarest are dropped."""
        counters = [_Counter(most) for _ in range(LONGEST)]
        pictures, left = 0, iter(references)
        while some := list(islice(left, PICTURES_AT_ONCE)):
            grams = ReferenceGrams([counted_tokens(own, count_end) for own in some])
            pictures += len(some)
            for n, hashes in enumerate(grams.hashes(), start=1):
                counters[n - 1].add(hashes, grams.documents(n))
        runs = [counter.finished() for counter in counters]
        return cls(
            pictures,
            tuple(run.hashes for run in runs),
            tuple(run.counts for run in runs),
            count_end,
        )

    def of(self, n: int, hashes: Hashes) -> Ints:
        """The number of pictures of each n-gram; 1 for those that are not in the table."""
        known, counts = self.hashes[n - 1], self.counts[n - 1]
        if not len(known):
            return np.ones(len(hashes), np.int64)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[places] == hashes, counts[places], 1)

    def write(self, file: Path) -> None:
        """Write them to a file."""
        about = {
            "pictures": self.pictures,
            "count_end": self.count_end,
            "sizes": [len(own) for own in self.hashes],
        }
        head = json.dumps(about).encode()
        head += b" " * (-len(head) % _LENGTH)  # so that what follows is aligned
        with file.open("wb") as out:
            out.write(len(head).to_bytes(_LENGTH, "little") + head)
            arrays: list[npt.NDArray[Any]] = [*self.hashes, *self.counts]
            for array in arrays:
                for start in range(0, len(array), sorted_runs.PIECE):
                    out.write(array[start : start + sorted_runs.PIECE].tobytes())
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def open(cls, file: Path) -> "DocumentFrequencies":
        """What `write` has written. The file is mapped, and may be removed meanwhile."""
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH), "little")
            about = json.loads(opened.read(length))
        sizes, place = about["sizes"], _LENGTH + length
        if file.stat().st_size != place + 12 * sum(sizes):
            raise UserError(f"{file} is not whole: delete it, and the run makes it again")
        arrays = []
        for kind in (np.uint64, np.int32):
            for size in sizes:
                arrays.append(_mapped(file, kind, place, size))
                place += arrays[-1].nbytes
        hashes, counts = tuple(arrays[:LONGEST]), tuple(arrays[LONGEST:])
        return cls(about["pictures"], hashes, counts, about["count_end"])


def _mapped(file: Path, kind: npt.DTypeLike, place: int, size: int) -> npt.NDArray[Any]:
    if not size:  # cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(file, kind, "r", place, (size,)))


class _GramCounts(NamedTuple):
    """N-grams of one length and their counts."""

    hashes: Hashes  # ascending
    counts: Counts


class _Counter:
    """Counts the n-grams of one length, in runs of which each is more than twice as long as the
    next. What is added waits until it is worth sorting."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._runs: list[_GramCounts] = []
        self._waiting: list[tuple[Hashes, Ints]] = []

    def add(self, hashes: Hashes, counts: Ints) -> None:
        self._waiting.append((hashes, counts))
        if sum(len(waiting) for waiting, _ in self._waiting) > WAITING:
            self._sort()

    def finished(self) -> _GramCounts:
        """The n-grams of at least two pictures."""
        self._sort()
        whole = _GramCounts(np.zeros(0, np.uint64), np.zeros(0, np.int32))
        while self._runs:
            whole = _merged(self._runs.pop(), whole)
        return _frequent(whole, max(2, self._least(whole)))

    def _sort(self) -> None:
        """Make a run of those that wait."""
        if not self._waiting:
            return
        hashes, places = np.unique(
            np.concatenate([own for own, _ in self._waiting]), return_inverse=True
        )
        counts = np.bincount(places, np.concatenate([own for _, own in self._waiting]))
        self._waiting = []
        new = _GramCounts(hashes, counts.astype(np.int32))
        while self._runs and len(self._runs[-1].hashes) <= 2 * len(new.hashes):
            new = _merged(self._runs.pop(), new)
        if len(new.hashes) > MOST_COUNTED * self._most:
            new = _frequent(new, 2)
        self._runs.append(new)

    def _least(self, run: _GramCounts) -> int:
        """The lowest count that at most `most` n-grams reach; or the highest one."""
        times = np.zeros(MOST_TOLD_APART, np.int64)
        for piece in _pieces(run):
            capped = np.minimum(piece.counts, MOST_TOLD_APART - 1)
            times += np.bincount(capped, minlength=MOST_TOLD_APART)
        reached_by = np.cumsum(times[::-1])[::-1]
        highest = int(np.flatnonzero(times).max(initial=0))
        return min(int(np.searchsorted(-reached_by, -self._most)), highest)


def _pieces(run: _GramCounts) -> Iterator[_GramCounts]:
    for start in range(0, len(run.hashes), sorted_runs.PIECE):
        stop = start + sorted_runs.PIECE
        yield _GramCounts(run.hashes[start:stop], run.counts[start:stop])


def _joined(pieces: Iterable[_GramCounts], most: int) -> _GramCounts:
    return _GramCounts(*sorted_runs.joined(pieces, (np.uint64, np.int32), most))


def _merged(first: _GramCounts, second: _GramCounts) -> _GramCounts:
    def pieces() -> Iterator[_GramCounts]:
        for own, other in sorted_runs.pieces_in_order(first.hashes, second.hashes):
            hashes, places = np.unique(
                np.concatenate([first.hashes[own], second.hashes[other]]), return_inverse=True
            )
            both = np.concatenate([first.counts[own], second.counts[other]])
            yield _GramCounts(hashes, np.bincount(places, both).astype(np.int32))

    return _joined(pieces(), len(first.hashes) + len(second.hashes))


def _frequent(run: _GramCounts, least: int) -> _GramCounts:
    """The n-grams that occur in so many pictures."""
    kept = ((piece, piece.counts >= least) for piece in _pieces(run))
    chosen = (_GramCounts(piece.hashes[which], piece.counts[which]) for piece, which in kept)
    return _joined(chosen, len(run.hashes))


def counted_tokens(captions: Encoded, count_end: bool) -> list[list[int]]:
    """The captions of a picture without the tokens that do not count."""
    dropped = (PAD, START) if count_end else (PAD, START, END)
    return [[token for token in caption if token not in dropped] for caption in captions]
