"""Lists a source into a plan, in one task or in many.

A lister gives rounds of parts. The parts of a round run at the same time, in tasks or one after
the other in a thread; the next round begins when all of them are complete. Each part writes down
what it makes, so a part that is run again goes on behind what is there.
"""

import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.finish import rows_to_retry
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import (
    Plan,
    Shard,
    as_planned,
    planned_shards,
    read_shard,
    write_shards,
)
from raycap.bulk.repeated_keys import (
    NAME,
    ListedUnits,
    RepeatedName,
    RepeatSearch,
    names_of,
    names_of_keys,
    with_keys,
)
from raycap.bulk.selection import (
    chosen_rows,
    filter_of_source,
    narrowed,
    sampled,
    with_compared,
)
from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.sources import Notes, Source
from raycap.sources.keys import NumberedKeys, name_and_number, remark_repeats
from raycap.sources.pieces import lines_before
from raycap.sources.seen_keys import SeenKeys
from raycap.storage import RunFolder

# Rows in one file of a unit whose rows have no keys yet.
ROWS_IN_FILE = 50_000
# Shards of an earlier plan whose keys are written down together.
SHARDS_IN_BLOCK = 50

Part = Callable[[], Iterator[Shard]]


class Lister(Protocol):
    """What lists the units of a plan. It can be sent to other processes."""

    def rounds(self, units: Sequence[int], tasks: int) -> Iterator[list[Part]]:
        """What lists some units in at most so many tasks at the same time."""


def lister(
    source: Source, options: BulkOptions, out: RunFolder, plan: Plan, earlier: Sequence[Plan]
) -> Lister:
    """What lists a source. `earlier` are the plans of the table's rows."""
    if plan.keys == "unique" or len(plan.units) == 1:
        return UnitLister(functools.partial(list_source, source, options, out, plan, earlier))
    if (only := filter_of_source(source, options.only)) is not None:
        source = with_compared(source, only)
    return NamedUnitLister(source, options, out, plan, tuple(earlier))


def list_source(
    source: Source,
    options: BulkOptions,
    out: RunFolder,
    plan: Plan,
    earlier: Sequence[Plan],
    units: Sequence[int],
) -> Iterator[Shard]:
    """Write down the rows of some units of a source that the table's earlier plans do not have."""
    for unit in units:
        name = plan.units[unit] if len(plan.units) > 1 else None  # None: the whole source
        notes, taken = Notes(), TakenKeys()
        for each in earlier:
            each.add_keys(out, taken, name)
        rows = chosen_rows(source, options, notes, name)
        yield from write_shards(out, plan, unit, rows, notes, taken)


def list_failed(
    out: RunFolder, table: RunFolder, plan: Plan, units: Sequence[int]
) -> Iterator[Shard]:
    """Write down the rows of some files of the table that are to be made again."""
    for unit in units:
        only = plan.selection.get("only", "")
        rows = rows_to_retry(out, table, plan.units[unit], plan.statuses, plan.flags, only)
        yield from write_shards(out, plan, unit, rows, Notes(), TakenKeys())


@dataclass(frozen=True)
class UnitLister:
    """Lists units of which no two have a key in common."""

    list_units: Callable[[Sequence[int]], Iterator[Shard]]

    def rounds(self, units: Sequence[int], tasks: int) -> Iterator[list[Part]]:
        yield _dealt(self.list_units, units, tasks)


def _dealt(
    list_some: Callable[[Any], Iterator[Shard]], all: Sequence[Any], tasks: int
) -> list[Part]:
    """Parts that do this for all of them, each for some."""
    return [
        functools.partial(list_some, all[first::tasks]) for first in range(min(len(all), tasks))
    ]


@dataclass(frozen=True)
class NamedUnitLister:
    """Lists units whose names may occur again: all units first, then repeated names are found,
    then each row gets its key. See `repeated_keys`.

    The first unit of a new table has its keys at once: what comes behind it does not change them.
    So work starts while other units are listed.
    """

    source: Source
    options: BulkOptions
    out: RunFolder
    plan: Plan
    earlier: tuple[Plan, ...]

    def rounds(self, units: Sequence[int], tasks: int) -> Iterator[list[Part]]:
        earlier = [(plan, unit) for plan in self.earlier for unit in range(len(plan.units))]
        yield [
            *_dealt(self._list_units, range(len(self.plan.units)), tasks),
            *_dealt(self._write_taken, earlier, tasks),
        ]
        yield _dealt(self._find_repeats, range(self._listed.partitions), tasks)
        yield _dealt(self._write_units, units, tasks)

    @property
    def _listed(self) -> ListedUnits:
        return ListedUnits(self.out, self.plan.folder, len(self.plan.units))

    @property
    def _are_numbered(self) -> bool:
        return self.plan.keys == "named"

    def _starts_at_once(self, unit: int) -> bool:
        # Rows that --sample and --only leave out count as occurrences.
        is_narrowed = self.options.sample < 1 or self.options.only
        return unit == 0 and not self.earlier and not is_narrowed

    # The first round.

    def _list_units(self, units: Sequence[int]) -> Iterator[Shard]:
        for unit in units:
            if self._starts_at_once(unit):
                yield from self._write_first(unit)
            elif not self._listed.has_names(unit):
                self._list_unit(unit)

    def _write_first(self, unit: int) -> Iterator[Shard]:
        notes, row, last = Notes(), 0, None
        records = []
        for last in write_shards(
            self.out, self.plan, unit, self._first_rows(unit, notes), notes, TakenKeys()
        ):
            yield last
            keys = read_shard(self.out, self.plan.operation, unit, last.number)["key"].to_pylist()
            records.append(names_of_keys(keys, row, self._are_numbered))
            row += last.rows
        if not self._listed.has_names(unit):
            assert last is not None
            about = {"lines": last.parsed_notes().get("lines", 0)}
            names = np.concatenate(records)
            self._listed.write_names(self._listed.names_file(unit), names, about)

    def _first_rows(self, unit: int, notes: Notes) -> Iterator[pa.Table]:
        numbered, seen = NumberedKeys(), SeenKeys()
        for table in self.source.tables_of_unit(self.plan.units[unit], notes):
            place = table.schema.get_field_index("key")
            keys = table.column(place).to_pylist()
            if self._are_numbered:
                keys = numbered.of(keys)
            else:
                for key, is_repeated in zip(keys, seen.add(keys), strict=True):
                    if is_repeated:
                        self.source.refuse_repeated(key)
            yield table.set_column(place, table.schema.field(place), pa.array(keys, pa.string()))

    def _list_unit(self, unit: int) -> None:
        """Write down the rows of a unit with their names. They count when the file of names is
        there, which says which ones they are: a process that was killed may have left others."""
        notes, records, rows = Notes(), [], 0
        folder = f"{unit:05}-{uuid.uuid4().hex[:12]}"
        tables = self.source.tables_of_unit(self.plan.units[unit], notes)
        for number, table in enumerate(_joined(map(as_planned, tables), ROWS_IN_FILE)):
            names = table["key"].to_pylist()
            records.append(names_of(names, rows))
            rows += len(names)
            content = pa.BufferOutputStream()
            pq.write_table(table, content, compression="zstd")
            self.out.stage(
                f"{self._listed.folder}/{folder}/{number:06}.parquet", content.getvalue()
            )
        about = {
            "folder": folder,
            "files": len(records),
            "lines": notes.lines_read,
            "notes": notes.to_plain(),
        }
        found = np.concatenate([*records, np.zeros(0, NAME)])
        self._listed.write_names(self._listed.names_file(unit), found, about)

    def _rows_file(self, folder: str, number: int) -> str:
        return f"{self._listed.folder}/{folder}/{number:06}.parquet"

    def _write_taken(self, units: Sequence[tuple[Plan, int]]) -> Iterator[Shard]:
        """Write down the keys that earlier plans have."""
        for plan, unit in units:
            records: list[Any] = []
            block = 0
            for shard in planned_shards(self.out, plan, unit):
                keys = read_shard(self.out, plan.operation, unit, shard.number)["key"].to_pylist()
                records.append(names_of_keys(keys, 0, self._are_numbered))
                if shard.is_last or len(records) == SHARDS_IN_BLOCK:
                    file = self._listed.taken_file(plan.operation, unit, block)
                    self._listed.write_names(file, np.concatenate(records), {})
                    block += 1
                    records.clear()
        yield from ()

    # The second round.

    def _find_repeats(self, partitions: Sequence[int]) -> Iterator[Shard]:
        search = RepeatSearch(self._listed)
        for partition in partitions:
            if not self.out.exists(self._listed.repeats_file(partition)):
                search.search(partition, None if self._are_numbered else self._refuse)
        yield from ()

    def _refuse(self, repeated: RepeatedName) -> None:
        self.source.refuse_repeated(self._name_of(RepeatSearch(self._listed), repeated))

    def _name_of(self, search: RepeatSearch, repeated: RepeatedName) -> str:
        unit, row = repeated.unit, repeated.row
        if self._starts_at_once(unit):
            for shard in planned_shards(self.out, self.plan, unit):
                if row < shard.rows:
                    rows = read_shard(self.out, self.plan.operation, unit, shard.number)
                    key: str = rows["key"][row].as_py()
                    return name_and_number(key)[0] if self._are_numbered else key
                row -= shard.rows
        number = row // ROWS_IN_FILE
        name: str = self._rows_of(search, unit, number)["key"][row % ROWS_IN_FILE].as_py()
        return name

    # The third round.

    def _write_units(self, units: Sequence[int]) -> Iterator[Shard]:
        search = RepeatSearch(self._listed)
        only = filter_of_source(self.source, self.options.only)
        for unit in units:
            if self._starts_at_once(unit):
                continue
            notes = self._notes(search, unit)
            rows = narrowed(self._rows_with_keys(search, unit), only)
            rows = sampled(rows, self.options.sample)
            yield from write_shards(self.out, self.plan, unit, rows, notes, TakenKeys())

    def _notes(self, search: RepeatSearch, unit: int) -> Notes:
        """Of a unit, with the numbers that its lines have in the whole file; with the last unit,
        what is to say of repeated names."""
        plain = search.about(unit)["notes"]
        before = 0
        if plain["kinds"]:
            lines = [search.about(each)["lines"] for each in range(unit)]
            before = lines_before(self.plan.units, lines, unit)
        notes = Notes.from_plain(plain, before)
        if unit == len(self.plan.units) - 1:
            rows, most = search.most_repeated()
            if most is not None:
                name = self._name_of(search, most)
                remark_repeats(notes, self.source.key_word, rows, name, most.times)
        return notes

    def _rows_with_keys(self, search: RepeatSearch, unit: int) -> Iterator[pa.Table]:
        repeats, row = search.repeats(unit), 0
        for number in range(search.about(unit)["files"]):
            table = self._rows_of(search, unit, number)
            yield with_keys(table, row, repeats, self._are_numbered)
            row += len(table)

    def _rows_of(self, search: RepeatSearch, unit: int, number: int) -> pa.Table:
        name = self._rows_file(search.about(unit)["folder"], number)
        content = self.out.read(name)
        if content is None:
            raise UserError(
                f"{self.out / name} is missing, a part of the run's plan: was it removed? "
                "--overwrite makes the whole table again"
            )
        return pq.read_table(pa.BufferReader(content))


def _joined(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, so many in each table but the last."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        while count >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting = [joined.slice(rows)]
            count -= rows
    if count:
        yield pa.concat_tables(waiting)
