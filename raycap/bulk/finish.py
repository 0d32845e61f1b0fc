"""Writes the files with which an operation ends: parts that are joined from chunks, copies with
retried rows, copies whose captions are finished in another way. These functions run in tasks; the
driver then commits the files that they return (`last_commit`)."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.bulk.counts import RowCounts, count_rows
from raycap.bulk.finishing import caption_digest, raw_of, with_many
from raycap.bulk.plan import read_shard
from raycap.bulk.table import DataFile, chunk_of
from raycap.bulk.work import ATTEMPTS, COUNTS, FINISHING, ROWS, FileLayout, content_of
from raycap.row_filter import RowFilter
from raycap.schema import ANY_FLAG, ATTEMPT, SAME_AS_MANY, SUCCESS
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
    """The file name of a part. Processes that join the same chunks in the same way write the same
    rows into the same names."""
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
        tables.append(_read(chunks, piece.path, layout, piece.offset, rows)[0])
    joined = pa.concat_tables(tables)
    places = json.dumps([list(piece.rows) for piece in pieces])
    return _write(table, name, joined, layout, {ROWS: places})


def finish_file(
    table: RunFolder, path: str, name: str, layout: FileLayout, many: Collection[str]
) -> DataFile:
    """Write a copy of the file `path` under `name`, with captions and flags as this run makes
    them. `many` are the digests of captions that many pictures have."""
    if (content := table.read(name)) is not None:  # by an interrupted run
        rows = pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
        return DataFile(name, len(content), rows)
    rows, metadata = _read(table, path, layout)
    kept = {key: metadata[key] for key in (ROWS, ATTEMPTS) if key in metadata}
    return _write(table, name, with_many(rows, many), layout, kept)


def _read(
    folder: RunFolder, path: str, layout: FileLayout, start: int = 0, rows: int | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """Rows of a file, finished as this run does it, and the file's metadata."""
    table = folder.reading(path, pq.read_table)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    table = table.slice(start, rows).replace_schema_metadata(None)
    if layout.finish and metadata.get(FINISHING) != layout.metadata.get(FINISHING):
        table = layout.finish(table)
        own = (*layout.schema.names, *layout.carry)
        table = table.select([each for each in own if each in table.column_names])
    return table, metadata


def _write(
    table: RunFolder, name: str, rows: pa.Table, layout: FileLayout, more: dict[str, str]
) -> DataFile:
    """Write a file whose metadata has `more` than the layout says.

    A file that is there is not replaced: it may be in the table. Another run may have written it
    in another way, with another --part-rows, say. Then this file has another name.
    """
    layout = replace(layout, metadata={**layout.metadata, **more})
    content = content_of(rows, layout, count_rows(rows))
    if not table.create(name, content):
        digest = hashlib.sha256(content).hexdigest()[:12]
        name = name.replace(".parquet", f"-{digest}.parquet")
        table.write(name, content)
    return DataFile(name, content.size, len(rows))


def counts_of_files(table: RunFolder, paths: Sequence[str]) -> list[RowCounts]:
    """The counts of the rows of each file, from its metadata."""
    return [RowCounts.from_json(_metadata(table, path)[COUNTS.encode()]) for path in paths]


def rows_to_retry(
    out: RunFolder,
    table: RunFolder,
    path: str,
    statuses: Sequence[str],
    flags: Sequence[str],
    only: str = "",
) -> Iterator[pa.Table]:
    """For the rows of a file that have one of the statuses, or are captioned and have one of the
    flags, and that --only chooses: their rows in the plan. With flags, these have the number of
    the attempt."""
    chosen = RowFilter(only, table.reading(path, pq.read_schema)) if only else None
    own = ["status", "flags"] if flags else ["status"]
    columns = dict.fromkeys([*own, *(chosen.columns if chosen else ())])
    read = table.reading(path, lambda file: pq.read_table(file, columns=list(columns)))
    again = pc.is_in(read["status"], pa.array(statuses, pa.string())).to_numpy()
    if flags:
        flagged = [_has_flag(row, flags) for row in read.select(own).to_pylist()]
        again = again | np.array(flagged, bool)
    if chosen:
        again = again & chosen.mask(read)
    metadata = _metadata(table, path)
    attempt = int(metadata.get(ATTEMPTS.encode(), b"0")) + 1
    offset = 0
    for operation, unit, shard, start, stop in json.loads(metadata[ROWS.encode()]):
        wanted = again[offset : offset + stop - start]
        offset += stop - start
        if wanted.any():
            rows = read_shard(out, operation, unit, shard).slice(start, stop - start)
            rows = rows.filter(pa.array(wanted))
            if flags:
                numbers = pa.array([attempt] * len(rows), pa.int32())
                rows = rows.append_column(ATTEMPT, numbers)
            yield rows


def _has_flag(row: Mapping[str, Any], flags: Sequence[str]) -> bool:
    own = row["flags"] or []
    is_one_of_them = ANY_FLAG in flags or any(flag in flags for flag in own)
    return row["status"] == SUCCESS and bool(own) and is_one_of_them


def replace_retried(
    table: RunFolder,
    path: str,
    side: RunFolder,
    made: Sequence[str],
    name: str,
    layout: FileLayout,
) -> DataFile:
    """Write a copy of the file `path` under `name`, with retried rows in the places of those that
    they are better than.

    `made` are the files of the side table with these rows.
    """
    old, metadata = _read(table, path, layout)
    new = pa.concat_tables([_read(side, each, layout)[0] for each in made])
    new = new.select(old.column_names).cast(old.schema)
    kept = {ROWS: metadata[ROWS]}
    places = pc.index_in(old["key"], new["key"].combine_chunks())
    takes_new = pc.and_(places.is_valid(), pc.not_equal(old["status"], SUCCESS)).to_pylist()
    if "flags" in old.column_names:
        new = with_many(new, _captions_of_many(old))
        for row, place in enumerate(places.to_pylist()):
            if place is not None and not takes_new[row]:
                takes_new[row] = _is_better(_row(new, place), _row(old, row))
        attempts = [int(metadata.get(ATTEMPTS, "0")), *new["attempt"].to_pylist()]
        kept[ATTEMPTS] = str(max(each or 0 for each in attempts))
    # Row numbers in the concatenation of `old` and `new`.
    order = [
        len(old) + place if is_new else row
        for row, (place, is_new) in enumerate(zip(places.to_pylist(), takes_new, strict=True))
    ]
    both = pa.concat_tables([old, new]).take(pa.array(order))
    return _write(table, name, both, layout, kept)


COMPARED = ("status", "flags", "score", "caption", "raw_caption", "attempt")


def _row(table: pa.Table, place: int) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(place, 1).select(COMPARED).to_pylist()[0]
    return row


def _is_better(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether another attempt at a captioned row is better: fewer flags, else a higher score. A
    row that was only repeated, because it had failed before, replaces no caption."""
    if new["status"] != SUCCESS or not new["attempt"] or raw_of(new) == raw_of(old):
        return False
    flags, before = len(new["flags"] or ()), len(old["flags"] or ())
    if flags != before:
        return flags < before
    if new["score"] is None or old["score"] is None:
        return False
    return bool(new["score"] > old["score"])


def _captions_of_many(rows: pa.Table) -> set[str]:
    found = rows.select(COMPARED).to_pylist()
    return {caption_digest(raw_of(row)) for row in found if SAME_AS_MANY in (row["flags"] or ())}


def _metadata(table: RunFolder, path: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = table.reading(path, lambda file: pq.read_schema(file).metadata)
    return found
