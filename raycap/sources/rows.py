"""Manifest rows on their way into tables: small tables first, so that work starts at once, then full ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from raycap.errors import UserError
from raycap.sources.text import utf8

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_ROWS = 64
MOST_ROWS = 1000
# Inline pictures in one table: rows come in fewer at a time where the pictures are large.
MOST_BYTES = 32 << 20

Item = TypeVar("Item")


class Row(NamedTuple):
    """One picture of a manifest."""

    key: str
    uri: str
    split: str = ""
    references: Sequence[str] = ()
    picture: bytes | None = None
    error: str = ""  # why the row cannot be fetched, where the source knows that already


def pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of 64, then 1,000, 1,000, ..."""
    piece: list[Item] = []
    size = FIRST_ROWS
    for item in items:
        piece.append(item)
        if len(piece) == size:
            yield piece
            piece, size = [], MOST_ROWS
    if piece:
        yield piece


def tables(rows: Iterable[Row], nothing: Callable[[], str]) -> "Iterator[pa.Table]":
    """The rows as manifest tables; where there are none, a refusal that says `nothing()`."""
    empty = True
    for piece in pieces(rows):
        empty = False
        yield from _within_bytes(piece)
    if empty:
        raise UserError(nothing())


def _within_bytes(piece: list[Row]) -> "Iterator[pa.Table]":
    start = held = 0
    for index, row in enumerate(piece):
        held += len(row.picture or b"")
        if held >= MOST_BYTES:
            yield _table(piece[start : index + 1])
            start, held = index + 1, 0
    if start < len(piece):
        yield _table(piece[start:])


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
    return pa.table(
        [pa.array(column, wanted.type) for column, wanted in zip(columns, MANIFEST, strict=True)],
        MANIFEST,
    )


def counted(number: int, one: str, many: str) -> str:
    """1 picture, 1,200 pictures."""
    return f"{number:,} {one if number == 1 else many}"
