"""Keys of rows that are named by something that may occur twice, such as a URL in a list."""

import re
from collections.abc import Sequence

from raycap.sources.seen import SeenKeys

_NUMBERED = re.compile(r".*#\d+", re.DOTALL)


class NumberedKeys:
    """The name itself is the key. Its second occurrence gets '#2' behind, its third '#3', in the order of the file.

    So that no such key can meet another's name, a name that itself ends in '#' and digits is numbered from its
    first occurrence on ('a.jpg#2' becomes 'a.jpg#2#1'), and so is the empty name ('#1'). A key thus depends on
    nothing but the name and its occurrences before: a list may be reordered or grow, and keys stay.
    """

    def __init__(self) -> None:
        self.repeats: dict[str, int] = {}  # how often each repeated name was met
        self._seen = SeenKeys()

    def of(self, names: Sequence[str]) -> list[str]:
        return [
            self._repeat(name) if came_before else first_key(name)
            for name, came_before in zip(names, self._seen.add(names), strict=True)
        ]

    def _repeat(self, name: str) -> str:
        self.repeats[name] = self.repeats.get(name, 1) + 1
        return f"{name}#{self.repeats[name]}"


def first_key(name: str) -> str:
    """The key of a name's first occurrence."""
    return f"{name}#1" if not name or _NUMBERED.fullmatch(name) else name
