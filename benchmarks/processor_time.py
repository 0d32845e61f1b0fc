"""Processor time of a program with all its processes."""

import contextlib
import os
from pathlib import Path


def processor_of(root: int) -> dict[int, float]:
    """Seconds of processor time of a process and all below it."""
    parents, seconds = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            facts = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(facts[1])
            seconds[int(entry.name)] = (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK")

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: used for pid, used in seconds.items() if is_below(pid)}
