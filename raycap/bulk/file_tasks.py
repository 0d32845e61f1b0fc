"""Functions that are applied to all files of a table, in tasks."""

from collections.abc import Callable, Iterable
from typing import Any

from raycap.bulk.counts import RowCounts
from raycap.bulk.finish import counts_of_files
from raycap.bulk.machines import Machines
from raycap.bulk.table import OutputTable

FILES_PER_TASK = 64


class FileTasks:
    """Applies functions to files of a table."""

    def __init__(self, table: OutputTable, machines: Machines) -> None:
        self._table, self._machines = table, machines

    def counts(self) -> dict[str, RowCounts]:
        paths = [file.path for file in self._table.files()]
        return dict(zip(paths, self.each(counts_of_files, paths), strict=True))

    def each(
        self, function: Callable[..., Iterable[Any]], paths: list[str], *more: Any
    ) -> list[Any]:
        """What a function says of each of these files of the table."""
        return [answer for group in self.groups(function, paths, *more) for answer in group]

    def groups(self, function: Callable[..., Any], paths: list[str], *more: Any) -> Iterable[Any]:
        """What a function says of each group of files."""
        groups = [paths[at : at + FILES_PER_TASK] for at in range(0, len(paths), FILES_PER_TASK)]
        return self._machines.run(
            function, [(self._table.folder, group, *more) for group in groups]
        )
