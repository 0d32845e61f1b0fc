"""--also: the other forms of a table, made of its committed files."""

from collections.abc import Sequence

import ray

from raycap.sinks import SinkName, Sinks, is_written, join, write
from raycap.storage import RunFolder
from raycap.terminal import write_err

MOST_AT_ONCE = 32


def write_exports(folder: RunFolder, table: str, names: Sequence[SinkName], sinks: Sinks) -> None:
    """Each file of the table in each form that it is not written in yet."""
    missing = [
        (name, file)
        for name in names
        for file in folder.names(table)
        if not is_written(name, file, folder)
    ]
    export = ray.remote(write)
    differing = 0
    for start in range(0, len(missing), MOST_AT_ONCE):
        some = missing[start : start + MOST_AT_ONCE]
        differing += sum(ray.get([export.remote(name, file, sinks) for name, file in some]))
    if differing:
        write_err(
            f"raycap: {differing:,} text file(s) existed already with other words and were left alone "
            "(--txt-mode overwrite replaces them)\n"
        )
    if "imagefolder" in names and missing:
        join(folder)
