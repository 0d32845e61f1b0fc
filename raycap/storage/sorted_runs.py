"""Sorted arrays that are merged a piece at a time; long ones are temporary files.

The files have no names: their space is free again when the arrays are dropped or the process ends.
They are mapped, so the system keeps as much of them in its cache as there is room for.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from raycap.storage.files import in_temporary_files

MOST_IN_MEMORY = 1 << 17  # of the values of an array
PIECE = 1 << 16


def pieces_in_order(first: NDArray[Any], second: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Cuts two sorted arrays into small pieces: all values of both pieces of a pair stand before
    those of the next pair, or are equal to them. If no array has a value twice, neither have two
    pairs."""
    start, other = 0, 0
    while start < len(first) or other < len(second):
        one, two = first[start : start + PIECE], second[other : other + PIECE]
        # What is above the end of either piece may have to stand behind what follows it.
        last = min(piece[-1] for piece in (one, two) if len(piece))
        stops = (
            start + int(np.searchsorted(one, last, "right")),
            other + int(np.searchsorted(two, last, "right")),
        )
        yield slice(start, stops[0]), slice(other, stops[1])
        start, other = stops


def joined(
    pieces: Iterable[Sequence[NDArray[Any]]], kinds: Sequence[DTypeLike], most: int
) -> tuple[NDArray[Any], ...]:
    """Arrays of these kinds, each of all pieces, which have `most` values together at most; files
    if that is many."""
    if most <= MOST_IN_MEMORY:
        none = [np.zeros(0, kind) for kind in kinds]
        return tuple(map(np.concatenate, zip(none, *pieces, strict=True)))
    with in_temporary_files(), ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(prefix="raycap-")) for _ in kinds]
        for piece in pieces:
            for file, values in zip(files, piece, strict=True):
                file.write(values.tobytes())
        return tuple(map(_mapped, files, kinds))


def _mapped(file: IO[bytes], kind: DTypeLike) -> NDArray[Any]:
    file.flush()
    if not file.tell():  # cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(file, kind, "r"))
