"""The plan of an operation: the rows of the source, listed once and written down.

A plan is a folder, `_plan/0001/`. Its `plan.json` says what the operation does. The manifest rows
of each unit of the source follow in shards, `00000/000000.parquet`, `00000/000001.parquet`, and so
on; the last shard of a unit says that it is the last. Each file is written once: a second process
that lists the same unit takes the shards that are there, and goes on behind them. So a plan stays
the same whoever reads it, and however the source changes meanwhile.

A shard is worked on in chunks, which are slices of it.

Where a name may occur in several units, rows get their keys when all units are listed: see
`repeated_keys.py`.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.schema import MANIFEST
from raycap.sources import Notes
from raycap.sources.source import UnitKeys
from raycap.storage import RunFolder

PLANS = "_plan"
SHARD_ROWS = 10_000
# A slow listing is written down after so many seconds, so that work can start on it.
SECONDS_PER_SHARD = 2.0
# Chunks grow with the rows before them: a small job is spread evenly over its workers.
SMALLEST_SHARE = 32

Kind = Literal["first", "append", "retry", "overwrite", "finish"]

# The columns of a shard, before the user's own ones. `embedded` says that the source holds the
# picture's bytes: they are read again where the row is worked on.
PLANNED = pa.schema(
    [*(field for field in MANIFEST if field.name != "bytes"), ("embedded", pa.bool_())]
)


class Chunk(NamedTuple):
    """Rows `start` to `stop` of a shard: the unit of work and of commits."""

    operation: int
    unit: int
    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        operation, unit, shard, start, stop = self
        return f"{operation:04}-{unit:05}-{shard:06}-{start:05}-{stop:05}"

    @classmethod
    def parse(cls, name: str) -> "Chunk":
        return cls(*map(int, name.split("-")))


class Shard(NamedTuple):
    """What is known of one shard without reading its rows."""

    unit: int
    number: int
    rows: int
    chunk_rows: int
    is_last: bool = False
    notes: str = ""  # of the source, with the last shard

    def parsed_notes(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.notes)
        return found

    def chunks(self, operation: int) -> Iterator[Chunk]:
        for start in range(0, self.rows, self.chunk_rows):
            stop = min(start + self.chunk_rows, self.rows)
            yield Chunk(operation, self.unit, self.number, start, stop)


@dataclass(frozen=True)
class Plan:
    """What an operation does. Written before its first shard."""

    operation: int
    kind: Kind
    identity: dict[str, Any]  # of the rows that it makes
    batch: int
    chunk_rows: int  # the most rows of a chunk
    selection: dict[str, Any] = field(default_factory=dict)  # --limit, --sample
    # What is listed on its own: parts of the source; of a retry and of finishing, the table's
    # files.
    units: tuple[str, ...] = ("",)
    statuses: tuple[str, ...] = ()  # of a retry: which rows are made again
    flags: tuple[str, ...] = ()  # the same, of captioned rows; ANY_FLAG: with whatever flag
    # Of finishing: the digest of its options, and the digests of captions that many pictures have.
    finishing: str = ""
    many: tuple[str, ...] = ()
    keys: UnitKeys = "unique"  # what the source says of the keys of its units

    @property
    def folder(self) -> str:
        return folder_of(self.operation)

    def shard_name(self, unit: int, number: int) -> str:
        return shard_name(self.operation, unit, number)

    def chunk_rows_after(self, rows: int) -> int:
        """The rows of chunks in a shard that follows so many rows of its unit."""
        batches = max(1, rows // SMALLEST_SHARE // self.batch)
        return min(batches * self.batch, max(self.chunk_rows, self.batch))

    def shards(self, out: RunFolder) -> Iterator[Shard]:
        """The shards that are written down."""
        for unit in range(len(self.units)):
            yield from planned_shards(out, self, unit)

    def add_keys(self, out: RunFolder, taken: TakenKeys, unit: str | None = None) -> None:
        """Add the keys that this plan has of one unit of a source, or of the whole source."""
        for number, name in enumerate(self.units):
            if unit is None or unit == name or len(self.units) == 1:
                for shard in planned_shards(out, self, number):
                    taken.add(read_shard(out, self.operation, number, shard.number)["key"])


def folder_of(operation: int) -> str:
    return f"{PLANS}/{operation:04}"


def shard_name(operation: int, unit: int, number: int) -> str:
    return f"{folder_of(operation)}/{unit:05}/{number:06}.parquet"


def plan_numbers(out: RunFolder) -> list[int]:
    """The numbers of all plans, in their order, also of those that were given up."""
    return sorted(int(name) for name in out.folders(PLANS) if re.fullmatch(r"\d{4,}", name))


def newest_plan(out: RunFolder, numbers: Iterable[int] | None = None) -> Plan | None:
    """The plan of the newest operation, if there is any; of those with these numbers."""
    for number in sorted(plan_numbers(out) if numbers is None else numbers, reverse=True):
        if (plan := read_plan(out, number)) is not None:
            return plan
    return None


def plans_of_table(out: RunFolder, completed: int) -> list[Plan]:
    """The plans that the rows of the table come from: since it was last overwritten. `completed`
    is the table's newest complete operation."""
    found: list[Plan] = []
    for number in plan_numbers(out):
        plan = read_plan(out, number)
        if plan is None or plan.kind in ("retry", "finish"):
            continue
        # A run that was suspended may have written a plan when its number was over. No rows were
        # listed for it.
        if number <= completed and not out.exists(plan.shard_name(0, 0)):
            continue
        if plan.kind != "overwrite":
            found.append(plan)
        elif number <= completed:
            found = [plan]
    return found


def read_plan(out: RunFolder, operation: int) -> Plan | None:
    data = out.read_json(f"{folder_of(operation)}/plan.json")
    if data is None or data["kind"] == "none":
        return None
    lists = ("units", "statuses", "flags", "many")
    return Plan(**data | {name: tuple(data.get(name, ())) for name in lists})


def write_plan(out: RunFolder, plan: Plan) -> None:
    """Raises UserError if another process has planned this operation in another way."""
    # In ASCII: names of units may be names of folders that are not UTF-8.
    content = (json.dumps(asdict(plan), indent=2) + "\n").encode()
    _create_plan(out, plan.operation, content)


def take_number(out: RunFolder, operation: int) -> None:
    """Use a number for an operation that carries out an earlier plan. Raises UserError if another
    process has written a plan with that number."""
    _create_plan(out, operation, _no_plan(operation))


def give_up_plan(out: RunFolder, operation: int) -> None:
    """Remove a plan without rows. Its number stays used: a run that was suspended may believe that
    it is the next one, or that this plan is still to be removed."""
    out.write(f"{folder_of(operation)}/plan.json", _no_plan(operation))
    for name in out.folders(folder_of(operation)):
        out.remove(f"{folder_of(operation)}/{name}")


def _no_plan(operation: int) -> bytes:
    """What stands in the place of a plan whose number is used."""
    return json.dumps({"operation": operation, "kind": "none"}).encode()


def _create_plan(out: RunFolder, operation: int, content: bytes) -> None:
    name = f"{folder_of(operation)}/plan.json"
    if not out.create(name, content) and out.read(name) != content:
        raise UserError(
            f"another run has begun to work on {out}: wait for it, stop it, or give another --out"
        )


def planned_shards(out: RunFolder, plan: Plan, unit: int) -> Iterator[Shard]:
    """The shards of a unit that are written down, in their order."""
    number = 0
    while (content := out.read(plan.shard_name(unit, number))) is not None:
        yield describe(pq.read_schema(pa.BufferReader(content)), unit, number)
        number += 1


def describe(schema: pa.Schema, unit: int, number: int) -> Shard:
    about = json.loads(schema.metadata[b"shard"])
    return Shard(unit, number, **about)


def read_shard(out: RunFolder, operation: int, unit: int, number: int) -> pa.Table:
    """The manifest rows of a shard."""
    content = out.read(shard_name(operation, unit, number))
    if content is None:
        raise UserError(
            f"{out / shard_name(operation, unit, number)} is missing, a part of the run's plan: "
            "was it removed? --overwrite makes the whole table again"
        )
    return pq.read_table(pa.BufferReader(content))


def write_shards(
    out: RunFolder,
    plan: Plan,
    unit: int,
    tables: Iterable[pa.Table],
    notes: Notes,
    taken: TakenKeys,
) -> Iterator[Shard]:
    """Write down the rows of a unit whose keys are not taken; yields each shard once it is there.

    The notes are complete when the last of the tables has been read.
    """
    number = rows_before = 0
    for shard in planned_shards(out, plan, unit):  # by an earlier try
        yield shard
        if shard.is_last:
            return
        taken.add(read_shard(out, plan.operation, unit, shard.number)["key"])
        number, rows_before = number + 1, rows_before + shard.rows

    fresh = (table.filter(taken.lacks(table["key"])) for table in tables)
    has_rival = False
    for rows, is_last in _pieces(fresh, is_urgent=number == 0):
        if has_rival:  # who has written some of these rows since they were listed
            rows = rows.filter(taken.lacks(rows["key"]))
        while len(rows) or is_last:
            text = notes.to_json() if is_last else ""
            chunk_rows = plan.chunk_rows_after(rows_before)
            shard = Shard(unit, number, len(rows), chunk_rows, is_last, text)
            is_ours = _create_shard(out, plan, shard, rows)
            if not is_ours:  # another process lists the same unit, and was quicker
                has_rival = True
                theirs = read_shard(out, plan.operation, unit, number)
                shard = describe(theirs.schema, unit, number)
                taken.add(theirs["key"])
                rows = rows.filter(taken.lacks(rows["key"]))
            yield shard
            if shard.is_last:
                return
            number, rows_before = number + 1, rows_before + shard.rows
            if is_ours:
                break


def _pieces(tables: Iterable[pa.Table], is_urgent: bool) -> Iterator[tuple[pa.Table, bool]]:
    """The rows as shards hold them, and whether they are the last. An urgent first piece comes
    as soon as it has a row."""
    waiting: list[pa.Table] = []
    rows, since = 0, time.monotonic()
    for table in tables:
        waiting.append(as_planned(table))
        rows += len(table)
        is_due = is_urgent or time.monotonic() - since > SECONDS_PER_SHARD
        while rows >= SHARD_ROWS or (rows and is_due):
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, SHARD_ROWS), False
            waiting = [joined.slice(SHARD_ROWS)]
            rows, since = len(waiting[0]), time.monotonic()
            is_urgent = is_due = False
    yield (pa.concat_tables(waiting) if waiting else PLANNED.empty_table()), True


def as_planned(table: pa.Table) -> pa.Table:
    """Manifest rows without the pictures' bytes, which the source gives again."""
    if "embedded" in table.column_names:  # rows of a plan
        return table
    table = table.append_column("embedded", table["bytes"].is_valid()).drop_columns(["bytes"])
    own = [name for name in table.column_names if name not in PLANNED.names]
    return table.select([*PLANNED.names, *own])


def _create_shard(out: RunFolder, plan: Plan, shard: Shard, rows: pa.Table) -> bool:
    about = {
        "rows": shard.rows,
        "chunk_rows": shard.chunk_rows,
        "is_last": shard.is_last,
        "notes": shard.notes,
    }
    content = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({"shard": json.dumps(about)})
    pq.write_table(rows, content, compression="zstd")
    return out.create(plan.shard_name(shard.unit, shard.number), content.getvalue().to_pybytes())
