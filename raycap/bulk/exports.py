"""--also: the other forms of a table, made of its committed files."""

from collections.abc import Sequence

from raycap.bulk.job import Run
from raycap.sinks import SINKS, SinkSettings, write_part
from raycap.storage import RunFolder
from raycap.terminal import write_err


def write_exports(
    folder: RunFolder, run: Run, table: str, names: Sequence[str], settings: SinkSettings
) -> None:
    """Each file of the table in each form that it is not written in yet."""
    missing = [
        (name, file)
        for name in names
        for file in folder.names(table)
        if not folder.exists(SINKS[name].target(file))
    ]
    arguments = [(SINKS[name], file, settings) for name, file in missing]
    differing = sum(run(write_part, arguments))
    if differing:
        write_err(
            f"raycap: {differing:,} text file(s) existed already with another text and were left "
            "alone (--txt-mode overwrite replaces them)\n"
        )
    for name in {name for name, _ in missing}:
        SINKS[name].finish(folder)
