"""--also: the other forms of a table, made of its whole parts when they are there."""

from collections.abc import Sequence

import ray

from raycap.sinks import SINKS, SinkSettings, write_part
from raycap.storage import RunFolder
from raycap.terminal import write_err

MOST_AT_ONCE = 32


def write_also(
    folder: RunFolder, table: str, names: Sequence[str], settings: SinkSettings
) -> None:
    """Each part in each form that it is not written in yet."""
    jobs = [
        (name, part)
        for name in names
        for part in folder.names(table)
        if not folder.exists(SINKS[name].target(part))
    ]
    make = ray.remote(write_part)
    differing = 0
    for start in range(0, len(jobs), MOST_AT_ONCE):
        some = jobs[start : start + MOST_AT_ONCE]
        differing += sum(
            ray.get([make.remote(SINKS[name], part, settings) for name, part in some])
        )
    if differing:
        write_err(
            f"raycap: {differing:,} text file(s) were there already with another text and stay as "
            "they are "
            "(--txt-mode overwrite replaces them)\n"
        )
    for name in {name for name, _ in jobs}:
        SINKS[name].finish(folder)
