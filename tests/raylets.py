"""Which processes of Ray there are on this machine, by the names that it gives them while they
work."""

import contextlib
from pathlib import Path


def parents_of(title: str) -> set[int]:
    """The raylets that hold processes of that name."""
    parents = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_text().startswith(title):
                parents.add(int((entry / "stat").read_text().rpartition(")")[2].split()[1]))
    return parents
