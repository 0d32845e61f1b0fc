"""Unique keys for rows that are named by something that may repeat, such as a URL in a list."""

import re
from collections.abc import Sequence

from raycap.sources.manifest import counted
from raycap.sources.notes import Notes
from raycap.sources.seen_keys import SeenKeys

_NUMBERED = re.compile(r"(.*)#(\d+)", re.DOTALL)


class NumberedKeys:
    """Makes keys of names: the name itself, then for its second occurrence name#2, and so on.

    A name that ends in '#' and digits is numbered from its first occurrence on ('a.jpg#2' becomes
    'a.jpg#2#1'), and so is the empty name ('#1'): so its key cannot equal that of another name. A
    key depends only on the name and its earlier occurrences. A list may be reordered or grow, and
    keys stay.
    """

    def __init__(self) -> None:
        self.repeats = 0  # names that occurred before
        self.most: tuple[str, int] = ("", 0)  # the name that occurs most often, how often
        self._seen = SeenKeys()

    def of(self, names: Sequence[str]) -> list[str]:
        """Returns the keys of the next names."""
        keys = []
        for name, earlier in zip(names, self._seen.add(names), strict=True):
            if earlier:
                keys.append(f"{name}#{earlier + 1}")
                self.repeats += 1
                if earlier >= self.most[1]:
                    self.most = (name, earlier + 1)
            else:
                keys.append(first_key(name))
        return keys

    def note_repeats(self, what: str, notes: Notes) -> None:
        """Adds a remark about names that repeat; `what` says what the names are, such as "URL"."""
        if self.repeats:
            remark_repeats(notes, what, self.repeats, *self.most)


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
