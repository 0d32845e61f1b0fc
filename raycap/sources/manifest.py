"""Manifest rows, one for each picture, in tables: small ones first, so that work starts early."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raycap.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_ROWS = 64
MOST_ROWS = 1000
# Embedded pictures in one table: large pictures come in tables of fewer rows.
MOST_BYTES = 32 << 20

Item = TypeVar("Item")


class Row(NamedTuple):
    """One picture of a manifest."""

    key: str
    uri: str
    split: str = ""
    references: Sequence[str] = ()
    picture: bytes | None = None
    error: str = ""  # why the row cannot be fetched, if the source knows that already


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yields lists of 64, 1,000, 1,000, ... items."""
    batch: list[Item] = []
    size = FIRST_ROWS
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch, size = [], MOST_ROWS
    if batch:
        yield batch


def tables(rows: Iterable[Row], nothing: Callable[[], str] | None) -> "Iterator[pa.Table]":
    """Yields the rows as manifest tables; raises UserError with `nothing()`, if given, when there
    are none."""
    batch: list[Row] = []
    empty, size, most = True, 0, FIRST_ROWS
    for row in rows:
        empty = False
        batch.append(row)
        size += len(row.picture or b"")
        if len(batch) == most:
            most = MOST_ROWS
        elif size < MOST_BYTES:
            continue
        yield _table(batch)
        batch, size = [], 0
    if batch:
        yield _table(batch)
    if empty and nothing is not None:
        raise UserError(nothing())


def _table(rows: list[Row]) -> "pa.Table":
    import pyarrow as pa  # here, so that `raycap --help` stays quick

    from raycap.schema import MANIFEST

    columns = [
        [utf8(row.key) for row in rows],
        [utf8(row.uri) for row in rows],
        [utf8(row.split) for row in rows],
        [[utf8(reference) for reference in row.references] for row in rows],
        [row.picture for row in rows],
        [row.error and utf8(row.error) for row in rows],
    ]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, MANIFEST, strict=True)
    ]
    return pa.table(arrays, MANIFEST)


def counted(number: int, one: str, many: str) -> str:
    """Returns "1 picture" or "1,200 pictures"."""
    return f"{number:,} {one if number == 1 else many}"


# Text of unknown origin, as Arrow and JSON can hold it.


def utf8(text: str) -> str:
    """Returns the text with '?' for half characters, which JSON may hold and Arrow refuses."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def utf8_name(name: str) -> str:
    """Returns a name with half characters spelt out ('\\ud800.jpg'): names stay different."""
    return name.encode("utf-8", "backslashreplace").decode()


def brief(value: Any) -> str:
    """Returns the first characters of a JSON value, for a message."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return utf8(text[:60])
