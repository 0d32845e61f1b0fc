"""Which rows of a source a job is about: --split, --sample and --limit."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.bulk.options import BulkOptions
from raycap.errors import UserError
from raycap.sources import Notes, Source
from raycap.sources.splits import split_word


def chosen_units(source: Source, options: BulkOptions) -> tuple[str, ...]:
    """The parts of the source that are listed on their own. --limit and --split are about the
    source as a whole."""
    is_whole = options.limit is not None or options.split
    return ("",) if is_whole else source.units()


def chosen_rows(
    source: Source, options: BulkOptions, notes: Notes, unit: str | None = None
) -> Iterator[pa.Table]:
    """The manifest rows that the options leave, of one unit or of the whole source."""
    tables = source.tables(notes) if unit is None else source.tables_of_unit(unit, notes)
    if options.split:
        tables = _of_split(tables, options.split, source.path)
    tables = sampled(tables, options.sample)
    return tables if options.limit is None else _first(tables, options.limit)


def sampled(tables: Iterator[pa.Table], share: float) -> Iterator[pa.Table]:
    """The rows that --sample takes."""
    if share == 1:
        return tables
    return (table.filter(pa.array(_drawn(table, share))) for table in tables)


def _of_split(tables: Iterator[pa.Table], split: str, path: str) -> Iterator[pa.Table]:
    """The rows of one split. Raises UserError at the end of the listing if there was none."""
    wanted, seen = split_word(split), set()
    for table in tables:
        seen.update(table["split"].unique().to_pylist())
        yield table.filter(pc.equal(table["split"], wanted))
    if wanted not in seen:
        known = ", ".join(sorted(seen - {""})) or "no splits"
        raise UserError(f"no picture of {path} is of split {split!r}; there are {known}")


def _drawn(table: pa.Table, share: float) -> NDArray[np.bool_]:
    """Which rows a sample takes. By the key alone, so that a row stays in when others come or
    go."""
    numbers = (
        hashlib.blake2b(key.encode(), digest_size=8, person=b"sample").digest()
        for key in table["key"].to_pylist()
    )
    return np.frombuffer(b"".join(numbers), np.uint64) < share * 2.0**64


def _first(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, rows)
        rows -= len(table)
        if rows <= 0:
            return
