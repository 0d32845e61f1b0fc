"""Which rows of a source a job is about: --split, --only, --sample and --limit, in this order."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.bulk.options import BulkOptions
from raycap.errors import UserError
from raycap.expressions import comparisons, parse
from raycap.row_filter import RowFilter
from raycap.schema import MANIFEST
from raycap.sources import Notes, Source
from raycap.sources.source import compared
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
    only = filter_of_source(source, options.only)
    if only is not None:
        source = with_compared(source, only)
    tables = source.tables(notes) if unit is None else source.tables_of_unit(unit, notes)
    if options.split:
        tables = _of_split(tables, options.split, source.path)
    tables = narrowed(tables, only)
    tables = sampled(tables, options.sample)
    return tables if options.limit is None else _first(tables, options.limit)


def filter_of_source(source: Source, expression: str) -> RowFilter | None:
    """What --only means for a source: about the columns of the user's own table, if it is one, and
    about those of the manifest. None without --only. Raises UserError if it does not fit."""
    if not expression:
        return None
    own = source.own_columns()
    untyped = {name for name, kind in own.items() if kind is None}
    lists = {each.column for each in comparisons(parse(expression)) if each.operator == "has"}
    fields = [pa.field(name, kind or _without_type(name in lists)) for name, kind in own.items()]
    fields += [field for field in MANIFEST if field.name not in (*own, "bytes", "error")]
    hint = (
        ". --only is about the source here; of the finished table, --retry failed --only, "
        "--also-only and raycap report --only choose rows"
    )
    return RowFilter(expression, pa.schema(fields), untyped, hint=hint)


def with_compared(source: Source, only: RowFilter) -> Source:
    """The source with the columns that `narrowed` needs."""
    own = [name for name in only.columns if name in source.own_columns()]
    return source.comparing(own, [name for name in own if only.is_list(name)])


def narrowed(tables: Iterator[pa.Table], only: RowFilter | None) -> Iterator[pa.Table]:
    """The rows that --only chooses, without the columns that were read for it."""
    if only is None:
        yield from tables
        return
    for table in tables:
        names = [compared(name) for name in only.columns]
        own = [name for name in names if name in table.column_names]
        columns = {
            name: table[other if other in own else name]
            for name, other in zip(only.columns, names, strict=True)
        }
        mask = only.mask(pa.table(columns))
        yield table.drop_columns(own).filter(pa.array(mask))


def _without_type(is_list: bool) -> pa.DataType:
    return pa.list_(pa.string()) if is_list else pa.string()


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
