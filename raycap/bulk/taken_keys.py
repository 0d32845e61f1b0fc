"""Keys that a plan must not list again, as digests."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycap.storage.sorted_runs import joined, pieces_in_order

# The first halves of digests, ascending, and their second halves.
Run = tuple[NDArray[np.uint64], NDArray[np.uint64]]


class TakenKeys:
    """A set of keys in 16 bytes each, most of them in temporary files. Two different keys with one
    digest would cost a picture its row: with 128 bits that does not happen."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, keys: pa.ChunkedArray) -> None:
        firsts, seconds = digests(keys.to_pylist())
        order = np.argsort(firsts, kind="stable")
        new = firsts[order], seconds[order]
        # Runs are merged, each into one of at least its size, so that there are few.
        while self._runs and len(self._runs[-1][0]) <= 2 * len(new[0]):
            new = _merged(self._runs.pop(), new)
        self._runs.append(new)

    def lacks(self, keys: pa.ChunkedArray) -> pa.Array:
        """For each key whether it is not in the set."""
        found = np.zeros(len(keys), bool)
        if self._runs:
            asked = digests(keys.to_pylist())
            for firsts, seconds in self._runs:
                place = np.searchsorted(firsts, asked[0])
                # Two keys of a run may share a first half; three never do.
                for near in (place, place + 1):
                    inside = np.minimum(near, len(firsts) - 1)
                    if len(firsts):
                        found |= (firsts[inside] == asked[0]) & (seconds[inside] == asked[1])
        return pa.array(~found)


def _merged(one: Run, two: Run) -> Run:
    def pieces() -> Iterator[Run]:
        for own, other in pieces_in_order(one[0], two[0]):
            firsts, seconds = (
                np.concatenate([half[own], rest[other]])
                for half, rest in zip(one, two, strict=True)
            )
            order = np.argsort(firsts, kind="stable")
            yield firsts[order], seconds[order]

    firsts, seconds = joined(pieces(), [np.uint64, np.uint64], len(one[0]) + len(two[0]))
    return firsts, seconds


def digests(keys: Iterable[str]) -> NDArray[np.uint64]:
    """[2, N]: the two halves of the digest of each key."""
    each = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for key in keys
    )
    return np.ascontiguousarray(np.frombuffer(b"".join(each), np.uint64).reshape(-1, 2).T)
