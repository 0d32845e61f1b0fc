"""--also: the other forms of a table, made of its whole parts when they are there."""

from collections.abc import Sequence

import ray

from raycap.sinks import SinkName, Sinks, is_written, join, write
from raycap.storage import RunFolder
from raycap.terminal import write_err

MOST_AT_ONCE = 32


def write_also(folder: RunFolder, table: str, names: Sequence[SinkName], sinks: Sinks) -> None:
    """Each part in each form that it is not written in yet."""
    jobs = [
        (name, part)
        for name in names
        for part in folder.names(table)
        if not is_written(name, part, folder)
    ]
    make = ray.remote(write)
    differing = 0
    for start in range(0, len(jobs), MOST_AT_ONCE):
        some = jobs[start : start + MOST_AT_ONCE]
        differing += sum(ray.get([make.remote(name, part, sinks) for name, part in some]))
    if differing:
        write_err(
            f"raycap: {differing:,} text file(s) were there already with other words and stay as they are "
            "(--txt-mode overwrite, append or prepend)\n"
        )
    if "imagefolder" in names and jobs:
        join(folder)
