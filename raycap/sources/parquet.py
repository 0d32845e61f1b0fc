"""Reads Parquet files: a damaged part costs its own rows, text that is no UTF-8 costs nothing."""

import bisect
import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.sources.manifest import utf8
from raycap.sources.notes import DAMAGED_ROW, Notes
from raycap.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

# Pictures that are held in memory at a time.
ROWS_AT_ONCE = 64


def schema_of(file: Location) -> "pa.Schema":
    """Returns the file's schema; raises UserError if the file is damaged."""
    import pyarrow.parquet as pq  # here, so that `raycap --help` stays quick

    with file.open() as stream, _damage_as_user_error(file):
        schema = pq.read_schema(stream)
        _ = schema.names  # fails here where a name is no text
        return schema


def row_groups(file: Location) -> list[int]:
    """Returns the bytes of each row group without compression; none if the file is damaged."""
    import pyarrow.parquet as pq

    try:
        with file.open() as stream, _damage_as_user_error(file):
            metadata = pq.read_metadata(stream)
            groups = range(metadata.num_row_groups)
            return [metadata.row_group(group).total_byte_size for group in groups]
    except UserError:
        return []


def unpacked_share(file: Location, size: int) -> float:
    """Returns how many times larger than the file its data is without compression."""
    return max(1.0, sum(row_groups(file)) / max(size, 1))


def read_parquet(
    file: Location,
    wanted: Sequence[str],
    most_rows: int,
    notes: Notes,
    groups: tuple[int, int] | None = None,
    superset: "pc.Expression | None" = None,
) -> "Iterator[tuple[int, pa.Table]]":
    """Yields tables of the wanted columns, each with the number of its first row in the file. Of
    `groups`, the first row group and the one behind the last, no other is read. With a `superset`,
    row groups are left out whose statistics say that no row fits it.

    Rows of a damaged row group are noted, and reading goes on after it. Raises UserError if the
    file does not say how many rows it has.
    """
    import pyarrow.parquet as pq

    with file.open() as stream:
        with _damage_as_user_error(file):
            # Small reads: otherwise the embedded pictures of a whole row group are held.
            parquet = pq.ParquetFile(stream, buffer_size=1 << 20)
            sizes = [
                parquet.metadata.row_group(group).num_rows
                for group in range(parquet.num_row_groups)
            ]
            if min(sizes, default=0) < 0 or sum(sizes) != parquet.metadata.num_rows:
                raise ValueError("its row groups do not add up to its rows")
        ends = list(itertools.accumulate(sizes))
        group, stop = groups or (0, len(sizes))
        stop = min(stop, len(sizes))
        done = sum(sizes[:group])
        fitting = None if superset is None else _fitting_groups(stream, superset)
        while group < stop:
            # All groups at once, which is quick if they are small.
            rest = list(range(group, stop))
            if fitting is not None:
                if group not in fitting:
                    done = ends[group]
                    group += 1
                    continue
                skipped = (each for each in rest if each not in fitting)
                rest = list(range(group, next(skipped, stop)))
            done, fault = yield from _rows(
                file, parquet, rest, ends[group] - sizes[group], done, wanted, most_rows
            )
            if done >= ends[rest[-1]]:
                group = rest[-1] + 1
                continue
            # After a fault read the group in which it stopped alone, then all groups after it.
            group = bisect.bisect_right(ends, done)
            first = ends[group] - sizes[group]
            done, own = yield from _rows(file, parquet, [group], first, done, wanted, most_rows)
            if done < ends[group]:
                why = own or fault or "the data ends before the last row"
                notes.add(
                    DAMAGED_ROW,
                    f"{file.name} rows {done} to {ends[group] - 1}: {why}",
                    ends[group] - done,
                )
            done = ends[group]
            group += 1


def _fitting_groups(stream: Any, superset: "pc.Expression") -> set[int]:
    """The row groups that may have a row which fits."""
    import pyarrow.dataset as ds

    fragment = ds.ParquetFileFormat().make_fragment(stream)
    found = {group.id for group in fragment.subset(superset).row_groups}
    stream.seek(0)
    return found


def rows_of_parquet(file: Location, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields the numbers and values of these rows of a file, which are given in order. Other row
    groups are not read."""
    import pyarrow.parquet as pq

    with file.open() as stream, _damage_as_user_error(file):
        parquet = pq.ParquetFile(stream, buffer_size=1 << 20)
        first = 0
        for group in range(parquet.num_row_groups):
            last = first + parquet.metadata.row_group(group).num_rows
            wanted = [row for row in rows if first <= row < last]
            start = first
            if wanted:
                for batch in parquet.iter_batches(ROWS_AT_ONCE, [group], [column]):
                    for row in wanted:
                        if start <= row < start + len(batch):
                            yield row, batch[column][row - start].as_py()
                    start += len(batch)
                    if start > wanted[-1]:
                        break
            first = last


def _rows(
    file: Location,
    parquet: Any,
    groups: list[int],
    row: int,
    done: int,
    wanted: Sequence[str],
    most_rows: int,
) -> "Generator[tuple[int, pa.Table], None, tuple[int, str]]":
    """Yields the rows of the groups, which begin with row `row`, except those before `done`.

    Returns how many rows of the file are done now, and what stopped the reading.
    """
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
        if isinstance(error, OSError) and error.errno is not None:
            # The disk's fault, not the file's.
            raise UserError(f"cannot read {file.uri}: {error.strerror}") from error
        return done, _first_line(error)
    return done, ""


@contextlib.contextmanager
def _damage_as_user_error(file: Location) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"{file.uri} is not a whole Parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Without the rest of Arrow's messages, which is for its authors."""
    lines = str(error).strip().splitlines()
    return utf8(lines[0][:200]) if lines else type(error).__name__


def whole_texts(table: "pa.Table") -> "pa.Table":
    """Returns the table with U+FFFD for bytes that are no UTF-8.

    Texts in Parquet files may hold such bytes, and one would break whatever reads the column.
    """
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
    """The type with bytes instead of text, at every depth."""
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
