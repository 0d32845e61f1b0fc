"""The end of an operation: joins files of chunks into parts, and replaces failed rows by retried
ones. These functions run in tasks; the driver then commits the files that they return."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.bulk.counts import RowCounts, count_rows
from raycap.bulk.plan import read_shard
from raycap.bulk.table import DataFile, chunk_of
from raycap.bulk.work import COUNTS, ROWS, FileLayout, write_rows
from raycap.row_filter import RowFilter
from raycap.schema import SUCCESS
from raycap.storage import RunFolder


class PlanRows(NamedTuple):
    """Rows `start` to `stop` of a shard of a plan."""

    operation: int
    unit: int
    shard: int
    start: int
    stop: int


class ChunkRows(NamedTuple):
    """Consecutive rows of the file of a chunk."""

    path: str
    offset: int  # of the first row in the file
    rows: PlanRows  # which rows of the plan these are


def part_name(operation: int, number: int) -> str:
    """The file name of a part. Processes that join the same chunks write the same rows into the
    same names."""
    return f"part-{operation:04}-{number:06}.parquet"


def parts_of(files: Iterable[DataFile], part_rows: int) -> Iterator[list[ChunkRows]]:
    """The pieces of each part, in the order of the plan. Each part but the last has `part_rows`
    rows."""
    part: list[ChunkRows] = []
    room = part_rows
    for file in sorted(files, key=lambda file: chunk_of(file.path)):
        operation, unit, shard, start, stop = chunk_of(file.path)
        offset = 0
        while start < stop:
            rows = PlanRows(operation, unit, shard, start, min(stop, start + room))
            part.append(ChunkRows(file.path, offset, rows))
            taken = rows.stop - start
            start, offset, room = rows.stop, offset + taken, room - taken
            if room == 0:
                yield part
                part, room = [], part_rows
    if part:
        yield part


def join_part(
    chunks: RunFolder, table: RunFolder, name: str, pieces: Sequence[ChunkRows], layout: FileLayout
) -> DataFile:
    """Write one part from its pieces. `chunks` is the folder of the table with the chunks, `table`
    that of the output table."""
    tables = []
    for piece in pieces:
        rows = piece.rows.stop - piece.rows.start
        tables.append(chunks.reading(piece.path, pq.read_table).slice(piece.offset, rows))
    joined = pa.concat_tables(tables)
    places = json.dumps([list(piece.rows) for piece in pieces])
    return _write(table, name, joined, layout, places)


def _write(
    table: RunFolder, name: str, rows: pa.Table, layout: FileLayout, places: str
) -> DataFile:
    metadata = {**layout.metadata, ROWS: places}
    with_places = FileLayout(layout.rows, layout.schema, layout.carry, metadata)
    return DataFile(*write_rows(table, name, rows, with_places, count_rows(rows)))


def counts_of_files(table: RunFolder, paths: Sequence[str]) -> list[RowCounts]:
    """The counts of the rows of each file, from its metadata."""
    return [RowCounts.from_json(_metadata(table, path)[COUNTS.encode()]) for path in paths]


def failed_rows(
    out: RunFolder, table: RunFolder, path: str, statuses: Sequence[str], only: str = ""
) -> Iterator[pa.Table]:
    """For the rows of a file that have one of the statuses, and that --only chooses: their rows in
    the plan."""
    chosen = RowFilter(only, table.reading(path, pq.read_schema)) if only else None
    columns = dict.fromkeys(["status", *(chosen.columns if chosen else ())])
    read = table.reading(path, lambda file: pq.read_table(file, columns=list(columns)))
    again = pc.is_in(read["status"], pa.array(statuses, pa.string())).to_numpy()
    if chosen:
        again = again & chosen.mask(read)
    offset = 0
    for operation, unit, shard, start, stop in json.loads(_metadata(table, path)[ROWS.encode()]):
        wanted = again[offset : offset + stop - start]
        offset += stop - start
        if wanted.any():
            rows = read_shard(out, operation, unit, shard).slice(start, stop - start)
            yield rows.filter(pa.array(wanted))


def replace_failed(
    table: RunFolder,
    path: str,
    side: RunFolder,
    made: Sequence[str],
    name: str,
    layout: FileLayout,
) -> DataFile:
    """Write a copy of the file `path` under `name`, with retried rows in the places of failed
    ones.

    `made` are the files of the side table with these rows. Rows that have succeeded are kept, also
    if the retry has made them too.
    """
    old = table.reading(path, pq.read_table)
    new = pa.concat_tables([side.reading(each, pq.read_table) for each in made])
    new = new.select(old.column_names).cast(old.schema.remove_metadata())
    places = pc.index_in(old["key"], new["key"].combine_chunks())
    takes_new = pc.and_(places.is_valid(), pc.not_equal(old["status"], SUCCESS)).to_pylist()
    # Row numbers in the concatenation of `old` and `new`.
    order = [
        len(old) + place if is_new else row
        for row, (place, is_new) in enumerate(zip(places.to_pylist(), takes_new, strict=True))
    ]
    both = pa.concat_tables([old.replace_schema_metadata(None), new]).take(pa.array(order))
    return _write(table, name, both, layout, _metadata(table, path)[ROWS.encode()].decode())


def _metadata(table: RunFolder, path: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = table.reading(path, lambda file: pq.read_schema(file).metadata)
    return found
