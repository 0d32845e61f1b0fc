"""What makes two runs the same run: the choices that decide the rows, compared and their differences named."""

from collections.abc import Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any], place: str = "") -> list[str]:
    """A line for each choice that is not the same, by its dotted name."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        dotted = f"{place}{name}"
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += differences(before, now, f"{dotted}.")
        elif before != now:
            lines.append(f"{dotted} was {before!r}, now {now!r}")
    return lines
