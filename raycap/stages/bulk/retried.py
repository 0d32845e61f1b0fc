"""--retry: rows made again wait in a table of their own, and then replace the failed ones, file by file.

A file is written anew with the new rows in the old ones' places and takes its own name again: at each moment a
reader finds each key once. A crash between two files leaves the waiting table, and the next run replaces the rest.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raycap.runs import Lease, RunFolder
from raycap.runs.folder import STAGED
from raycap.sinks import files_of
from raycap.stages.bulk.standing import arrow_strings
from raycap.tables import SUCCESS

TABLE = "_retried"
# Rows that wait are looked up by key: of this many at a time.
ROWS_AT_ONCE = 100_000


def merge(folder: RunFolder, table: str, lease: Lease) -> None:
    """Replace failed rows by those that wait; nothing happens where none do."""
    waiting = folder.names(TABLE)
    if waiting:
        replace = ray.remote(num_cpus=0)(_replaced)
        answers = [replace.remote(folder, part, lease.run, waiting) for part in folder.names(table)]
        for answer in answers:
            part, staged = ray.get(answer)
            if staged:
                lease.check()
                for name in files_of(part):  # made of the old rows, to be made again
                    folder.remove(name)
                folder.rename(staged, part)
    folder.remove(TABLE)


def _replaced(folder: RunFolder, part: str, run: str, waiting: Sequence[str]) -> tuple[str, str]:
    """Runs in a task: the part with its failed rows replaced, staged; "" where none of them waits."""
    with folder.open(part) as file:
        old = pq.read_table(file)
    failed = old.filter(pc.not_equal(old["status"], SUCCESS))["key"]
    fresh = _rows_with(folder, waiting, failed)
    if not len(fresh):
        return part, ""
    places = pc.index_in(old["key"], fresh["key"].combine_chunks()).to_pylist()
    # Old rows come first in the two tables together, new ones behind them.
    order = [row if place is None else len(old) + place for row, place in enumerate(places)]
    both = pa.concat_tables([old, fresh.select(old.column_names).cast(old.schema)])
    content = pa.BufferOutputStream()
    pq.write_table(both.take(pa.array(order, pa.int64())), content, compression="zstd")
    staged = f"{STAGED}/{run}/{uuid.uuid4().hex}"
    folder.stage(staged, content.getvalue())
    return part, staged


def _rows_with(folder: RunFolder, parts: Sequence[str], keys: Any) -> pa.Table:
    found = []
    for part in parts:
        with folder.open(part) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
                table = pa.Table.from_batches([batch])
                found.append(table.filter(pc.is_in(table["key"], arrow_strings(keys.to_pylist()))))
    return pa.concat_tables(found)
