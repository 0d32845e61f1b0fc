"""Which keys were seen before, in about 8 bytes a key: a set of Python strings would take over 100."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class SeenKeys:
    """64-bit digests in sorted arrays, each more than twice as long as the next: a digest is merged log n times,
    and looked up by log n binary searches. Two different keys share a digest about once in 3,700 lists of 100
    million keys; whoever cannot live with that looks at the keys themselves.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, keys: Sequence[str]) -> list[bool]:
        """For each key, whether it came before, in an earlier call or earlier in this one."""
        digests = _digests(keys)
        known = np.zeros(len(digests), bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            known |= run[place] == digests
        _, first = np.unique(digests, return_index=True)
        repeated = np.ones(len(digests), bool)
        repeated[first] = False
        known |= repeated
        self._keep(np.sort(digests[~known]))
        return known.tolist()

    def _keep(self, run: NDArray[np.uint64]) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            # A stable sort finds the two sorted halves and merges them.
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def _digests(keys: Sequence[str]) -> NDArray[np.uint64]:
    digests = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for key in keys
    )
    return np.frombuffer(b"".join(digests), np.uint64)
