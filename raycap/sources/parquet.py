"""Parquet files of strangers: a damaged part costs its own rows, text that is no UTF-8 costs nothing."""

import bisect
import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.sources.notes import DAMAGED_ROW, Notes
from raycap.sources.text import utf8
from raycap.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa


def schema_of(place: Location) -> "pa.Schema":
    """The file's schema; a refusal where the file is damaged."""
    import pyarrow.parquet as pq  # here, so that `raycap --help` stays quick

    with place.open() as file, _refusing_damage(place):
        schema = pq.read_schema(file)
        _ = schema.names  # fails here where a name is no text
        return schema


def read(
    place: Location, wanted: Sequence[str], most_rows: int, notes: Notes
) -> "Iterator[tuple[int, pa.Table]]":
    """Tables of the wanted columns, each with the number of its first row in the file.

    Rows of a damaged row group are noted, and reading goes on behind it. A file that does not say how many rows it
    has is refused.
    """
    import pyarrow.parquet as pq

    with place.open() as file:
        with _refusing_damage(place):
            # Small reads: a column of inline pictures would otherwise be held for a whole row group.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            sizes = [
                parquet.metadata.row_group(group).num_rows
                for group in range(parquet.num_row_groups)
            ]
            if min(sizes, default=0) < 0 or sum(sizes) != parquet.metadata.num_rows:
                raise ValueError("its row groups do not add up to its rows")
        ends = list(itertools.accumulate(sizes))
        done = group = 0
        while group < len(sizes):
            # All groups in one go, which is quick where they are small.
            rest = list(range(group, len(sizes)))
            done, fault = yield from _rows(
                place, parquet, rest, ends[group] - sizes[group], done, wanted, most_rows
            )
            if done >= ends[-1]:
                return
            # After a fault the group where reading stopped alone, then the groups behind it in one go.
            group = bisect.bisect_right(ends, done)
            first = ends[group] - sizes[group]
            done, own = yield from _rows(place, parquet, [group], first, done, wanted, most_rows)
            if done < ends[group]:
                why = own or fault or "the data ends before the last row"
                notes.add(
                    DAMAGED_ROW,
                    f"{place.name} rows {done} to {ends[group] - 1}: {why}",
                    ends[group] - done,
                )
            done = ends[group]
            group += 1


def _rows(
    place: Location,
    parquet: Any,
    groups: list[int],
    row: int,
    done: int,
    wanted: Sequence[str],
    most_rows: int,
) -> "Generator[tuple[int, pa.Table], None, tuple[int, str]]":
    """Rows of the groups, the first of which begins with row number `row`, without those before `done`. The answer
    is how many rows of the file are done now, and what stopped the reading."""
    import pyarrow as pa

    try:
        for batch in parquet.iter_batches(most_rows, groups, list(wanted)):
            fresh = batch.slice(min(max(done - row, 0), len(batch)))
            row += len(batch)
            if len(fresh):
                table = whole_texts(pa.Table.from_batches([fresh]).select(list(wanted)))
                done = row
                yield row - len(fresh), table
    except Exception as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # the disc's fault, not the file's
            raise UserError(f"cannot read {place.uri}: {error.strerror}") from error
        return done, _first_line(error)
    return done, ""


@contextlib.contextmanager
def _refusing_damage(place: Location) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{place.uri} is not a whole Parquet file: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """Arrow's messages go on with what only its authors need."""
    lines = str(error).strip().splitlines()
    return utf8(lines[0][:200]) if lines else type(error).__name__


def whole_texts(table: "pa.Table") -> "pa.Table":
    """The table with U+FFFD in the place of bytes that are no UTF-8. Parquet files may hold such bytes in their
    texts, and a single one would break whatever reads the column."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        try:
            table.column(index).validate(full=True)
        except pa.ArrowInvalid:
            values = table.column(index).cast(_as_bytes(field.type)).to_pylist()
            texts = pa.array([_decoded(value, field.type) for value in values], field.type)
            table = table.set_column(index, field, texts)
    return table


def _as_bytes(kind: Any) -> Any:
    """The type with bytes in the place of text, however deep."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return kind


def _decoded(value: Any, kind: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        return _decoded(value, kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value.decode("utf-8", "replace")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return value
