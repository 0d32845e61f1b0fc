"""--retry: rows made again go to a side table, and then replace the failed ones, file by file.

A file is written again with the new rows in the places of the old ones, and takes its own name
again: at each moment a reader finds each key once. A crash between two files leaves the side
table, and the next run replaces the rest.

The side table names the run that made it. `--overwrite` with another captioner may come between
the crash and the next run, and rows of one captioner must not come into the table of another.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raycap.bulk.contents import arrow_strings
from raycap.bulk.identity import origin
from raycap.bulk.job import FACTS, TableJob
from raycap.schema import SUCCESS
from raycap.sinks import files_of
from raycap.storage import Lease, RunFolder
from raycap.storage.folder import STAGED
from raycap.terminal import write_err

SIDE_TABLE = "_retried"
# Which run made the side table. A name with '_' is no file of a table.
ORIGIN = f"{SIDE_TABLE}/_origin.json"
# Rows of the side table are looked up by key: of this many at a time.
ROWS_AT_ONCE = 100_000


def begin_side_table(job: TableJob, folder: RunFolder) -> None:
    """An empty side table that belongs to this run."""
    folder.remove(SIDE_TABLE)
    folder.write_json(ORIGIN, origin(job))


def merge_side_table(job: TableJob, folder: RunFolder, lease: Lease) -> None:
    """Replace failed rows by those of the side table, if this run made it; then remove it."""
    side = folder.names(SIDE_TABLE)
    if side and folder.read_json(ORIGIN) != origin(job):
        write_err(
            f"raycap: an interrupted --retry left rows of another run in {folder / SIDE_TABLE}: "
            "they are removed, and --retry makes them again\n"
        )
        side = []
    if side:
        lease.check()
        folder.remove(FACTS)  # they describe the rows before
        replace = ray.remote(num_cpus=0)(_stage_replaced)
        files = folder.names(job.table)
        for answer in [replace.remote(folder, file, lease.run, side) for file in files]:
            file, staged = ray.get(answer)
            if staged:
                lease.check()
                for export in files_of(file):  # made of the old rows, to be made again
                    folder.remove(export)
                folder.rename(staged, file)
    folder.remove(SIDE_TABLE)


def _stage_replaced(
    folder: RunFolder, file: str, run: str, side: Sequence[str]
) -> tuple[str, str]:
    """Runs in a task: the file with its failed rows replaced, staged; "" if the side table has
    none of them."""
    old = folder.reading(file, pq.read_table)
    failed = old.filter(pc.not_equal(old["status"], SUCCESS))["key"]
    new = _rows_with(folder, side, failed)
    if not len(new):
        return file, ""
    places = pc.index_in(old["key"], new["key"].combine_chunks()).to_pylist()
    # Old rows come first in the two tables together, new ones behind them.
    order = [row if place is None else len(old) + place for row, place in enumerate(places)]
    both = pa.concat_tables([old, new.select(old.column_names).cast(old.schema)])
    content = pa.BufferOutputStream()
    pq.write_table(both.take(pa.array(order, pa.int64())), content, compression="zstd")
    staged = f"{STAGED}/{run}/{uuid.uuid4().hex}"
    folder.stage(staged, content.getvalue())
    return file, staged


def _rows_with(folder: RunFolder, files: Sequence[str], keys: Any) -> pa.Table:
    wanted = arrow_strings(keys.to_pylist())

    def read(file: Any) -> list[pa.Table]:
        found = []
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
                table = pa.Table.from_batches([batch])
                found.append(table.filter(pc.is_in(table["key"], wanted)))
        return found

    return pa.concat_tables([table for file in files for table in folder.reading(file, read)])
