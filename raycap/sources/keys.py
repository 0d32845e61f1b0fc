"""Unique keys for rows that are named by something that may repeat, such as a URL in a list."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raycap.sources.manifest import counted
from raycap.sources.notes import Notes

_NUMBERED = re.compile(r"(.*)#(\d+)", re.DOTALL)


class NumberedKeys:
    """Makes keys of names: the name itself, then for its second occurrence name#2, and so on.

    A name that ends in '#' and digits is numbered from its first occurrence on ('a.jpg#2' becomes
    'a.jpg#2#1'), and so is the empty name ('#1'): so its key cannot equal that of another name. A
    key depends only on the name and its earlier occurrences. A list may be reordered or grow, and
    keys stay.
    """

    def __init__(self) -> None:
        self.repeats: dict[str, int] = {}  # how often each repeated name occurred
        self._seen = SeenKeys()

    def of(self, names: Sequence[str]) -> list[str]:
        """Returns the keys of the next names."""
        keys = []
        for name, seen_before in zip(names, self._seen.add(names), strict=True):
            if seen_before:
                self.repeats[name] = self.repeats.get(name, 1) + 1
                keys.append(f"{name}#{self.repeats[name]}")
            else:
                keys.append(first_key(name))
        return keys

    def note_repeats(self, what: str, notes: Notes) -> None:
        """Adds a remark about names that repeat; `what` says what the names are, such as "URL"."""
        if self.repeats:
            rows = sum(self.repeats.values()) - len(self.repeats)
            name, times = max(self.repeats.items(), key=lambda item: item[1])
            remark_repeats(notes, what, rows, name, times)


def remark_repeats(notes: Notes, what: str, rows: int, name: str, times: int) -> None:
    """Adds a remark that so many rows repeat a name, and `name` occurs most often."""
    notes.remark(
        f"{counted(rows, 'row repeats', 'rows repeat')} an earlier {what} and got a number "
        f"behind the key; most often {name[:200]!r} ({times:,} times)"
    )


def first_key(name: str) -> str:
    """The key of a name's first occurrence."""
    return f"{name}#1" if not name or _NUMBERED.fullmatch(name) else name


def name_and_number(key: str) -> tuple[str, int]:
    """Returns of which name and which of its occurrences it is the key."""
    numbered = _NUMBERED.fullmatch(key)
    return (numbered[1], int(numbered[2])) if numbered else (key, 1)


class SeenKeys:
    """Tells which keys occurred before, in about 8 bytes a key; Python strings take over 100.

    64-bit digests are kept in sorted arrays, each more than twice as long as the next: a digest is
    merged log n times, and found by log n binary searches. Two different keys have the same digest
    about once in 3,700 lists of 100 million keys; callers that need certainty compare the keys.
    """

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.uint64]] = []

    def add(self, keys: Sequence[str]) -> list[bool]:
        """Returns for each key whether it occurred before, in this call or an earlier one."""
        encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
        joined = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in encoded)
        digests = np.frombuffer(joined, np.uint64)

        seen = np.zeros(len(digests), bool)
        for array in self._arrays:
            nearest = np.minimum(np.searchsorted(array, digests), len(array) - 1)
            seen |= array[nearest] == digests
        _, first = np.unique(digests, return_index=True)
        repeated = np.ones(len(digests), bool)
        repeated[first] = False
        seen |= repeated

        new = np.sort(digests[~seen])
        while len(new) and self._arrays and len(self._arrays[-1]) <= 2 * len(new):
            # A stable sort recognises the two sorted halves and merges them.
            new = np.sort(np.concatenate([self._arrays.pop(), new]), kind="stable")
        if len(new):
            self._arrays.append(new)
        return seen.tolist()
