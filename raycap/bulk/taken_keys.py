"""Keys that a plan must not list again, as digests."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class TakenKeys:
    """A set of keys in 16 bytes each. Two different keys with one digest would cost a picture its
    row: with 128 bits that does not happen."""

    def __init__(self) -> None:
        self._groups: list[NDArray[np.uint64]] = []  # [2, N] each, sorted by the first half

    def add(self, keys: pa.ChunkedArray) -> None:
        new = digests(keys.to_pylist())
        # Groups are merged, each into one of at least its size, so that there are few.
        while self._groups and self._groups[-1].shape[1] <= 2 * new.shape[1]:
            new = np.concatenate([self._groups.pop(), new], axis=1)
        self._groups.append(new[:, np.argsort(new[0], kind="stable")])

    def lacks(self, keys: pa.ChunkedArray) -> pa.Array:
        """For each key whether it is not in the set."""
        found = np.zeros(len(keys), bool)
        if self._groups:
            asked = digests(keys.to_pylist())
            for firsts, seconds in self._groups:
                place = np.searchsorted(firsts, asked[0])
                # Two keys of a group may share a first half; three never do.
                for near in (place, place + 1):
                    inside = np.minimum(near, len(firsts) - 1)
                    if len(firsts):
                        found |= (firsts[inside] == asked[0]) & (seconds[inside] == asked[1])
        return pa.array(~found)


def digests(keys: Iterable[str]) -> NDArray[np.uint64]:
    """[2, N]: the two halves of the digest of each key."""
    each = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for key in keys
    )
    return np.ascontiguousarray(np.frombuffer(b"".join(each), np.uint64).reshape(-1, 2).T)
