"""--also: the other forms of a table, made of its committed files."""

from collections.abc import Sequence

import ray

from raycap.sinks import SINKS, SinkSettings, write_part
from raycap.storage import RunFolder
from raycap.terminal import write_err

MOST_AT_ONCE = 32


def write_exports(
    folder: RunFolder, table: str, names: Sequence[str], settings: SinkSettings
) -> None:
    """Each file of the table in each form that it is not written in yet."""
    missing = [
        (name, file)
        for name in names
        for file in folder.names(table)
        if not folder.exists(SINKS[name].target(file))
    ]
    export = ray.remote(write_part)
    differing = 0
    for start in range(0, len(missing), MOST_AT_ONCE):
        some = missing[start : start + MOST_AT_ONCE]
        answers = [export.remote(SINKS[name], file, settings) for name, file in some]
        differing += sum(ray.get(answers))
    if differing:
        write_err(
            f"raycap: {differing:,} text file(s) existed already with another text and were left "
            "alone (--txt-mode overwrite replaces them)\n"
        )
    for name in {name for name, _ in missing}:
        SINKS[name].finish(folder)
