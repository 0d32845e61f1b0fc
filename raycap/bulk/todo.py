"""What is to do: the rows of a source that its table does not hold yet, numbered, listed as one stream."""

import hashlib
import json
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from raycap.bulk.digests import are_among, digests_of
from raycap.bulk.options import Bulk
from raycap.errors import UserError
from raycap.sources import Notes, Source
from raycap.sources.splits import split_word

# Rows that change places with each other when the order is shuffled: a listing streams, so it is never whole.
SHUFFLED_ROWS = 10_000
# Behind each row: which listing it came from, its number there, and whether it is the listing's last. The publisher
# tells by these that no row is doubled or missing, whatever Ray makes a second time. The last row also brings what
# the source noted while it listed (see `sources.notes`), so that the driver need not list it again.
TICKET = pa.schema(
    [("listing", pa.int64()), ("place", pa.int64()), ("last", pa.bool_()), ("notes", pa.string())]
)


@dataclass(frozen=True)
class Todo:
    """Stands before a source; travels to the task that lists it."""

    source: Source
    choice: Bulk  # split, limit, sample and shuffle_seed say which rows are meant at all
    done: tuple[Any, ...] = ()  # references to sorted digests of keys: these rows are left out
    only: tuple[Any, ...] | None = None  # references too: only these rows are wanted
    few: int | None = None  # rows to do, where they are known to be few
    # Filled while listing, in the process that lists.
    skipped: list[int] = field(default_factory=lambda: [0])
    notes: Notes = field(default_factory=Notes)

    def tables(self) -> Iterator[pa.Table]:
        """Manifest rows with tickets behind them. There is always a last row, unless there is none at all."""
        self.notes.clear()  # Ray may list again in the same process
        self.skipped[0] = 0
        listing, place = secrets.randbits(62), 0
        held: pa.Table | None = None  # back, for only at the end it is known which row is the last
        for table in self._wanted():
            if held is None or not len(held):
                held = table
            elif len(table):
                yield _ticketed(held, listing, place)
                place += len(held)
                held = table
        if held is not None:
            yield _ticketed(held, listing, place, last=True, notes=self.notes.to_json())

    def _wanted(self) -> Iterator[pa.Table]:
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
        tables = self.source.tables(self.notes)
        if self.choice.split:
            tables = _of_split(tables, self.choice.split, self.source.path)
        if self.choice.sample < 1:
            tables = (
                table.filter(pa.array(_drawn(table, self.choice.sample))) for table in tables
            )
        if self.choice.shuffle_seed is not None:
            tables = _shuffled(tables, random.Random(self.choice.shuffle_seed))
        return tables if self.choice.limit is None else _first(tables, self.choice.limit)


class Survey(NamedTuple):
    """What a look through a source found."""

    rows: int  # to do
    skipped: int  # passed over on the way
    notes: dict[str, Any]  # see `noted`


def survey(todo: Todo, most: int | None) -> Survey:
    """How many rows are to do, counted up to `most`."""
    rows = 0
    for table in todo.tables():
        rows += len(table)
        if most is not None and rows >= most:
            break
    return Survey(rows, todo.skipped[0], json.loads(todo.notes.to_json()))


def noted(table: pa.Table) -> dict[str, Any] | None:
    """What the source noted, if the last row of its listing is in the table: what may be pictures and has no row
    ("left_out"), and other remarks ("notes")."""
    last = table["notes"].filter(table["last"])
    return json.loads(last[0].as_py()) if len(last) else None


def _of_split(tables: Iterator[pa.Table], split: str, path: str) -> Iterator[pa.Table]:
    """The rows of one split; a refusal where there is none, which the end of the listing tells."""
    wanted, seen = split_word(split), set()
    for table in tables:
        seen.update(table["split"].unique().to_pylist())
        yield table.filter(pc.equal(table["split"], wanted))
    if wanted not in seen:
        known = ", ".join(sorted(seen - {""})) or "no splits"
        raise UserError(f"no picture of {path} is of split {split!r}; there are {known}")


def _drawn(table: pa.Table, share: float) -> NDArray[np.bool_]:
    """By the key alone, so that a row stays drawn when others come or go."""
    drawn = (
        hashlib.blake2b(key.encode(), digest_size=8, person=b"sample").digest()
        for key in table["key"].to_pylist()
    )
    return np.frombuffer(b"".join(drawn), np.uint64) < share * 2.0**64


def _first(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, rows)
        rows -= len(table)
        if rows <= 0:
            return


def _shuffled(tables: Iterator[pa.Table], chance: random.Random) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= SHUFFLED_ROWS:
            yield _in_disorder(waiting, chance)
            waiting = []
    if waiting:
        yield _in_disorder(waiting, chance)


def _in_disorder(tables: list[pa.Table], chance: random.Random) -> pa.Table:
    table = pa.concat_tables(tables)
    order = list(range(len(table)))
    chance.shuffle(order)
    return table.take(pa.array(order))


def _ticketed(
    table: pa.Table, listing: int, place: int, last: bool = False, notes: str = ""
) -> pa.Table:
    rows = len(table)
    lasts = np.zeros(rows, bool)
    lasts[-1:] = last
    said = [""] * (rows - 1) + [notes] * bool(rows)
    columns = [np.full(rows, listing), np.arange(place, place + rows), lasts, said]
    for kind, column in zip(TICKET, columns, strict=True):
        table = table.append_column(kind, pa.array(column, kind.type))
    return table
