"""The last commit of an operation: files that it has made take the place of others in the table.

first, append    parts, in the place of the files of chunks
overwrite        the parts of the side table, in the place of all files
retry            copies with the new rows, in the place of the files that had the old ones
finish           copies with other captions and flags, in the place of files

The functions return False if another run has completed the operation.
"""

import functools

import pyarrow.parquet as pq

from raycap.bulk.finish import finish_file, join_part, part_name, parts_of, replace_retried
from raycap.bulk.job import TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.plan import Plan
from raycap.bulk.table import CHUNKS, DataFile, OutputTable, chunk_of
from raycap.storage import RunFolder


def replace_chunks(job: TableJob, machines: Machines, table: OutputTable, number: int) -> bool:
    """Join the files of chunks into parts, which readers of plain Parquet folders see too."""
    chunks = [file for file in table.files() if file.path.startswith(f"{CHUNKS}/")]
    parts = _joined(job, machines, table.folder, chunks, table, number)
    return table.replace(number, parts, chunks)


def replace_all(
    job: TableJob, machines: Machines, table: OutputTable, side: OutputTable, number: int
) -> bool:
    """Replace the whole table by the rows of the side table."""
    parts = _joined(job, machines, side.folder, side.files(), table, number)
    return table.replace(number, parts, (), side.schema())


def _joined(
    job: TableJob,
    machines: Machines,
    source: RunFolder,
    files: list[DataFile],
    table: OutputTable,
    number: int,
) -> list[DataFile]:
    """Parts of the table, joined from files of chunks in the folder `source`."""
    layout = job.layout
    arguments = [
        (source, table.folder, part_name(number, index), pieces, layout)
        for index, pieces in enumerate(parts_of(files, layout.rows))
    ]
    return list(machines.run(join_part, arguments))


def replace_rows(
    job: TableJob,
    machines: Machines,
    table: OutputTable,
    plan: Plan,
    side: OutputTable,
    number: int,
) -> bool:
    """Replace each file that has retried rows by a copy with the new rows of the side table."""
    old = {file.path: file for file in table.files()}
    made: dict[int, list[str]] = {}
    for file in side.files():
        made.setdefault(chunk_of(file.path).unit, []).append(file.path)
    replaced = [plan.units[unit] for unit in made]
    arguments = [
        (table.folder, path, side.folder, made[unit], part_name(number, index))
        for index, (unit, path) in enumerate(zip(made, replaced, strict=True))
    ]
    replace = functools.partial(replace_retried, layout=job.layout)
    new = list(machines.run(replace, arguments))
    return table.replace(number, new, [old.get(path, DataFile(path, 0, 0)) for path in replaced])


def replace_finished(
    job: TableJob, machines: Machines, table: OutputTable, plan: Plan, number: int
) -> bool:
    """Replace the files of the plan by copies with captions and flags as this run makes them."""
    old = {file.path: file for file in table.files()}
    finish = functools.partial(finish_file, layout=job.layout, many=frozenset(plan.many))
    arguments = [
        (table.folder, path, part_name(number, index)) for index, path in enumerate(plan.units)
    ]
    new = list(machines.run(finish, arguments))
    schema = None
    if lacks_columns(job, table):
        schema = table.folder.reading(new[0].path, pq.read_schema).remove_metadata()
    removed = [old.get(path, DataFile(path, 0, 0)) for path in plan.units]
    return table.replace(number, new, removed, schema)


def lacks_columns(job: TableJob, table: OutputTable) -> bool:
    """Whether an earlier version of raycap created the table, without columns of today."""
    return not set(job.layout.schema.names) <= set(table.schema().names)
