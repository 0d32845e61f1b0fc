"""Files of fixed-size records in groups, of which single groups are read."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.storage import RunFolder

_HEAD = 1 << 16
_LENGTH = 8


def write_grouped(
    out: RunFolder,
    name: str,
    records: NDArray[Any],
    groups: NDArray[Any],
    count: int,
    about: dict[str, Any],
) -> bool:
    """Writes records, each of one of `count` groups, unless the file exists; returns whether it
    did. Within a group they keep their order."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=count)).tolist()
    head = json.dumps({"ends": ends, "about": about}).encode()
    content = len(head).to_bytes(_LENGTH, "little") + head + records[order].tobytes()
    return out.create(name, content)


class GroupedFile:
    """A file of `write_grouped`, whose head is read once."""

    def __init__(self, out: RunFolder, name: str, kind: np.dtype[Any]) -> None:
        self._out, self._name, self._kind = out, name, kind
        start = self._read(0, _HEAD)
        length = int.from_bytes(start[:_LENGTH], "little")
        self._begin = _LENGTH + length
        if self._begin > len(start):
            start += self._read(len(start), self._begin)
        head = json.loads(start[_LENGTH : self._begin])
        self.about: dict[str, Any] = head["about"]
        self._ends: list[int] = head["ends"]

    def read(self, group: int) -> NDArray[Any]:
        """The records of one group."""
        size = self._kind.itemsize
        first = self._ends[group - 1] if group else 0
        start, stop = (self._begin + row * size for row in (first, self._ends[group]))
        data = self._read(start, stop) if stop > start else b""
        return np.frombuffer(data, self._kind)

    def _read(self, start: int, stop: int) -> bytes:
        content = self._out.read(self._name, start, stop)
        if content is None:
            raise UserError(
                f"{self._out / self._name} is missing, a part of the run's plan: was it removed? "
                "Run the command again"
            )
        return content
