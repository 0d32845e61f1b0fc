"""Keys as 128-bit digests in sorted arrays: what is in a table, looked up from any task without a copy of it."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# [2, N]: the two halves of each digest. Two different keys with one digest would cost a picture its row: with 128
# bits that is never seen.
Digests = NDArray[np.uint64]


def digests_of(keys: Iterable[str]) -> Digests:
    """In the order of the keys."""
    each = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for key in keys
    )
    return np.ascontiguousarray(np.frombuffer(b"".join(each), np.uint64).reshape(-1, 2).T)


def in_order(groups: Sequence[Digests]) -> Digests:
    """All of them, sorted by their first halves."""
    joined = np.concatenate([digests_of([]), *groups], axis=1)
    return joined[:, np.argsort(joined[0])]


def are_among(digests: Digests, groups: Sequence[Digests]) -> NDArray[np.bool_]:
    """For each digest whether one of the sorted groups has it."""
    found = np.zeros(digests.shape[1], bool)
    for firsts, seconds in groups:
        place = np.searchsorted(firsts, digests[0])
        # Two keys of a group may share a first half; three never do.
        for near in (place, place + 1):
            inside = np.minimum(near, len(firsts) - 1)
            if len(firsts):
                found |= (firsts[inside] == digests[0]) & (seconds[inside] == digests[1])
    return found
