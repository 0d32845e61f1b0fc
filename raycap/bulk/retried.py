"""--retry: rows made again are written to a side table, and then replace the failed ones, file by file.

A file is written anew with the new rows in the old ones' places and takes its own name again: at each moment a
reader finds each key once. A crash between two files leaves the side table, and the next run replaces the rest.

The side table names the run that made it. `--overwrite` with another captioner may come between the crash and the
next run, and rows of one captioner must not come into the table of another.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raycap.bulk.standing import arrow_strings
from raycap.bulk.work import FACTS, Work, origin
from raycap.schema import SUCCESS
from raycap.sinks import files_of
from raycap.storage import Lease, RunFolder
from raycap.storage.folder import STAGED
from raycap.terminal import write_err

TABLE = "_retried"
MARK = f"{TABLE}/_origin.json"  # of the side table: which run made it. A name with '_' is no part of a table.
# Rows that wait are looked up by key: of this many at a time.
ROWS_AT_ONCE = 100_000


def begin(work: Work, folder: RunFolder) -> None:
    """An empty side table that belongs to this run."""
    folder.remove(TABLE)
    folder.write_json(MARK, origin(work))


def merge(work: Work, folder: RunFolder, lease: Lease) -> None:
    """Replace failed rows by those of the side table, if this run made it; then remove it."""
    parts = folder.names(TABLE)
    if parts and folder.read_json(MARK) != origin(work):
        write_err(
            f"raycap: an interrupted --retry left rows of another run in {folder / TABLE}: they are removed, and "
            "--retry makes them again\n"
        )
        parts = []
    if parts:
        lease.check()
        folder.remove(FACTS)  # they are of the rows before
        replace = ray.remote(num_cpus=0)(_replaced)
        answers = [
            replace.remote(folder, part, lease.run, parts) for part in folder.names(work.table)
        ]
        for answer in answers:
            part, staged = ray.get(answer)
            if staged:
                lease.check()
                for name in files_of(part):  # made of the old rows, to be made again
                    folder.remove(name)
                folder.rename(staged, part)
    folder.remove(TABLE)


def _replaced(folder: RunFolder, part: str, run: str, side: Sequence[str]) -> tuple[str, str]:
    """Runs in a task: the part with its failed rows replaced, staged; "" where the side table has none of
    them."""
    old = folder.reading(part, pq.read_table)
    failed = old.filter(pc.not_equal(old["status"], SUCCESS))["key"]
    fresh = _rows_with(folder, side, failed)
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
    wanted = arrow_strings(keys.to_pylist())

    def read(file: Any) -> list[pa.Table]:
        with pq.ParquetFile(file) as parquet:
            batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE)
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            return [table.filter(pc.is_in(table["key"], wanted)) for table in tables]

    return pa.concat_tables([table for part in parts for table in folder.reading(part, read)])
