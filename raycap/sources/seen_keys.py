"""Tells how often keys occurred before, in memory that does not grow with the keys."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raycap.storage.sorted_runs import joined, pieces_in_order

Digests = NDArray[np.uint64]


class SeenKeys:
    """Counts keys, in 8 bytes each, most of them in temporary files; Python strings take over 100.

    64-bit digests are kept in sorted runs, each more than twice as long as the next: a digest is
    merged log n times, and found by log n binary searches. Two different keys have the same digest
    about once in 3,700 lists of 100 million keys; callers that need certainty compare the keys.
    """

    def __init__(self) -> None:
        self._runs: list[Digests] = []

    def add(self, keys: Sequence[str]) -> list[int]:
        """Returns for each key how often it occurred before, in this call or an earlier one."""
        encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
        each = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in encoded)
        digests = np.frombuffer(each, np.uint64)

        order = np.argsort(digests, kind="stable")
        ascending = digests[order]
        earlier = np.arange(len(ascending)) - np.searchsorted(ascending, ascending)
        for run in self._runs:
            first = np.searchsorted(run, ascending)
            known = np.flatnonzero(run[np.minimum(first, len(run) - 1)] == ascending)
            behind = np.searchsorted(run, ascending[known], "right")
            earlier[known] += behind - first[known]
        counts = np.empty_like(earlier)
        counts[order] = earlier
        if len(ascending):
            self._keep(ascending)
        found: list[int] = counts.tolist()
        return found

    def _keep(self, new: Digests) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            new = _merged(self._runs.pop(), new)
        self._runs.append(new)


def _merged(first: Digests, second: Digests) -> Digests:
    pieces = (
        # A stable sort recognises the two sorted halves and merges them.
        (np.sort(np.concatenate([first[own], second[other]]), kind="stable"),)
        for own, other in pieces_in_order(first, second)
    )
    [merged] = joined(pieces, [np.uint64], len(first) + len(second))
    return merged
