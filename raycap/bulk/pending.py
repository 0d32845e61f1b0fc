"""The rows of a source that a table does not hold yet, numbered, as one stream."""

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from raycap.bulk.contents import are_among, digests_of
from raycap.bulk.options import BulkOptions
from raycap.errors import UserError
from raycap.sources import Notes, Source
from raycap.sources.splits import split_word

# Columns behind each row: which listing it came from, its number there, and whether it is the
# listing's last. By these the commit knows that no row is doubled or missing, whatever Ray runs a
# second time. The last row also brings the notes of the source (see `sources.notes`), so that the
# driver need not list it again.
TICKET = pa.schema(
    [("listing", pa.int64()), ("place", pa.int64()), ("last", pa.bool_()), ("notes", pa.string())]
)


@dataclass(frozen=True)
class PendingRows:
    """What a table lacks. It travels to the task that lists the source."""

    source: Source
    options: BulkOptions  # split, limit and sample say which rows are meant at all
    done: tuple[Any, ...] = ()  # references to sorted digests of keys: these rows are left out
    only: tuple[Any, ...] | None = None  # references too: only these rows are wanted
    few: int | None = None  # how many rows are pending, if they are known to be few
    # Filled while listing, in the process that lists.
    skipped: list[int] = field(default_factory=lambda: [0])
    notes: Notes = field(default_factory=Notes)

    def tables(self) -> Iterator[pa.Table]:
        """Manifest rows with their tickets. There is always a last row, unless there is none at
        all."""
        self.notes.clear()  # Ray may list again in the same process
        self.skipped[0] = 0
        listing, place = secrets.randbits(62), 0
        # One table is held back: only at the end it is known which row is the last.
        held: pa.Table | None = None
        for table in self._pending():
            if held is None or not len(held):
                held = table
            elif len(table):
                yield _with_tickets(held, listing, place)
                place += len(held)
                held = table
        if held is not None:
            yield _with_tickets(held, listing, place, last=True, notes=self.notes.to_json())

    def _pending(self) -> Iterator[pa.Table]:
        done = [ray.get(group) for group in self.done]
        only = None if self.only is None else [ray.get(group) for group in self.only]
        for table in self._chosen():
            digests = digests_of(table["key"].to_pylist())
            wanted = ~are_among(digests, done)
            if only is not None:
                wanted &= are_among(digests, only)
            self.skipped[0] += len(table) - int(wanted.sum())
            yield table.filter(pa.array(wanted))

    def _chosen(self) -> Iterator[pa.Table]:
        """The rows that --split, --sample and --limit leave."""
        tables = self.source.tables(self.notes)
        if self.options.split:
            tables = _of_split(tables, self.options.split, self.source.path)
        if self.options.sample < 1:
            share = self.options.sample
            tables = (table.filter(pa.array(_drawn(table, share))) for table in tables)
        return tables if self.options.limit is None else _first(tables, self.options.limit)


class PendingCount(NamedTuple):
    """What a look through a source found."""

    rows: int  # pending
    skipped: int  # passed over on the way
    notes: dict[str, Any]  # see `notes_of`


def count_pending(pending: PendingRows, most: int | None) -> PendingCount:
    """How many rows are pending, counted up to `most`."""
    rows = 0
    for table in pending.tables():
        rows += len(table)
        if most is not None and rows >= most:
            break
    return PendingCount(rows, pending.skipped[0], json.loads(pending.notes.to_json()))


def notes_of(table: pa.Table) -> dict[str, Any] | None:
    """The notes of the source, if the last row of its listing is in the table: what may be a
    picture and has no row ("left_out"), and other remarks ("notes")."""
    last = table["notes"].filter(table["last"])
    return json.loads(last[0].as_py()) if len(last) else None


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


def _with_tickets(
    table: pa.Table, listing: int, place: int, last: bool = False, notes: str = ""
) -> pa.Table:
    rows = len(table)
    is_last = np.zeros(rows, bool)
    is_last[-1:] = last
    notes_column = [""] * (rows - 1) + [notes] * bool(rows)
    columns = [np.full(rows, listing), np.arange(place, place + rows), is_last, notes_column]
    for kind, column in zip(TICKET, columns, strict=True):
        table = table.append_column(kind, pa.array(column, kind.type))
    return table
