"""Finds the rows of a plan's units whose names repeat, in memory that does not grow with the rows.

Each unit is listed on its own, into a folder of the plan:

    _plan/0001/_listed/00003-5f0c.../000000.parquet     its rows, with names for keys
    _plan/0001/_listed/00003.names                      a digest of each name, by partition
    _plan/0001/_listed/taken/0001-00003-00000.names     the same of keys that an earlier plan has
    _plan/0001/_listed/00007.repeats                    of partition 7: rows that need another key

A name is in the same partition wherever it occurs, so each partition is looked through on its own:
half a million names at a time. A row that is not in its unit's part of a `.repeats` file is the
first one with its name.

Every file is created once and does not change. What is there when a process is killed is not made
again.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.bulk.grouped_file import GroupedFile, write_grouped
from raycap.bulk.taken_keys import digests
from raycap.sources.keys import first_key, name_and_number
from raycap.storage import RunFolder

LISTED = "_listed"
# Of some 150,000 rows each, so that a partition has half a million.
UNITS_PER_PARTITION = 3
_READERS = 16
_MOST_REPEATS = 2**32 - 1

# A row of a unit, by its name. `number` says which occurrence it is, 0 if that is not known yet.
NAME = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4"), ("number", "<u4")])
# A row that is a later occurrence of its name; number 0 if its key is taken.
REPEAT = np.dtype([("row", "<u4"), ("number", "<u4")])


@dataclass(frozen=True)
class RepeatedName:
    """The last row with the name that occurs most often, in one partition."""

    times: int
    unit: int
    row: int


@dataclass(frozen=True)
class ListedUnits:
    """What is known of the units of a plan before their rows have keys."""

    out: RunFolder
    plan_folder: str
    units: int

    @property
    def folder(self) -> str:
        return f"{self.plan_folder}/{LISTED}"

    @property
    def partitions(self) -> int:
        return -(-self.units // UNITS_PER_PARTITION)

    def names_file(self, unit: int) -> str:
        return f"{self.folder}/{unit:05}.names"

    def repeats_file(self, partition: int) -> str:
        return f"{self.folder}/{partition:05}.repeats"

    def taken_file(self, operation: int, unit: int, block: int) -> str:
        return f"{self.folder}/taken/{operation:04}-{unit:05}-{block:05}.names"

    def has_names(self, unit: int) -> bool:
        return self.out.exists(self.names_file(unit))

    def write_names(self, file: str, names: NDArray[Any], about: dict[str, Any]) -> None:
        groups = (names["high"] % np.uint64(self.partitions)).astype(np.int64)
        write_grouped(self.out, file, names, groups, self.partitions, about)

    def taken_files(self) -> list[str]:
        return self.out.names(f"{self.folder}/taken")


def names_of(names: Sequence[str], first_row: int) -> NDArray[Any]:
    """Records of rows whose occurrences are not counted yet."""
    return _records(names, first_row, np.zeros(len(names), np.uint32))


def names_of_keys(keys: Sequence[str], first_row: int, are_numbered: bool) -> NDArray[Any]:
    """Records of rows that have their keys already."""
    pairs = [name_and_number(key) if are_numbered else (key, 1) for key in keys]
    numbers = np.array([min(number, _MOST_REPEATS) for _, number in pairs], np.uint32)
    return _records([name for name, _ in pairs], first_row, numbers)


def _records(names: Sequence[str], first_row: int, numbers: NDArray[Any]) -> NDArray[Any]:
    found = np.zeros(len(names), NAME)
    found["high"], found["low"] = digests(names)
    found["row"] = np.arange(first_row, first_row + len(names))
    found["number"] = numbers
    return found


@dataclass
class RepeatSearch:
    """Looks for repeated names; keeps the heads of the files that it reads."""

    listed: ListedUnits
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_READERS))

    def __post_init__(self) -> None:
        out = self.listed.out
        self._names = cache(lambda name: GroupedFile(out, name, NAME))
        self._repeats = cache(lambda name: GroupedFile(out, name, REPEAT))

    def about(self, unit: int) -> dict[str, Any]:
        """What was written down with the names of a unit."""
        return self._names(self.listed.names_file(unit)).about

    def search(self, partition: int, refuse: Callable[[RepeatedName], None] | None) -> None:
        """Write down the repeats of one partition; `refuse` is called if no name may repeat."""
        files = [self.listed.names_file(unit) for unit in range(self.listed.units)]
        read = lambda name: self._names(name).read(partition)  # noqa: E731
        parts = list(self._pool.map(read, files))
        own = np.concatenate([*parts, np.zeros(0, NAME)])
        units = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        taken = np.concatenate(
            [*self._pool.map(read, self.listed.taken_files()), np.zeros(0, NAME)]
        )

        del parts
        order = np.lexsort((own["low"], own["high"]))  # stable: rows of one name stay in order
        own, units = own[order], units[order]
        numbers, starts, times = _numbered(own)
        is_taken = np.zeros(len(own), bool)
        if len(taken):
            is_taken = _are_taken(own, numbers, taken)
        changed = np.flatnonzero((own["number"] == 0) & ((numbers > 1) | is_taken))
        repeats = np.zeros(len(changed), REPEAT)
        repeats["row"] = own["row"][changed]
        repeats["number"] = np.where(is_taken[changed], 0, numbers[changed])

        about = {"rows": int((times - 1).sum())}
        if len(times) and times.max() > 1:
            lasts = (starts + times - 1)[times == times.max()]
            last = lasts[order[lasts].argmin()]  # of the name that got there first
            most = RepeatedName(int(times.max()), int(units[last]), int(own["row"][last]))
            if refuse is not None:
                refuse(most)
            about |= vars(most)
        file = self.listed.repeats_file(partition)
        groups = units[changed].astype(np.int64)
        write_grouped(self.listed.out, file, repeats, groups, self.listed.units, about)

    def most_repeated(self) -> tuple[int, RepeatedName | None]:
        """How many rows repeat a name, and the name that occurs most often."""
        rows, found = 0, []
        for file in map(self.listed.repeats_file, range(self.listed.partitions)):
            about = dict(self._repeats(file).about)
            rows += about.pop("rows")
            if about:
                found.append(RepeatedName(**about))
        best = min(found, key=lambda each: (-each.times, each.unit, each.row), default=None)
        return rows, best

    def repeats(self, unit: int) -> NDArray[Any]:
        """The rows of a unit that need another key, in their order."""
        files = map(self.listed.repeats_file, range(self.listed.partitions))
        parts = self._pool.map(lambda name: self._repeats(name).read(unit), files)
        found = np.concatenate([*parts, np.zeros(0, REPEAT)])
        return found[np.argsort(found["row"])]


def _numbered(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of rows sorted by name: which occurrence each is, where each name begins, and how often it
    occurs."""
    if not len(rows):
        none = np.zeros(0, np.int64)
        return none, none, none
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    starts = np.flatnonzero(is_new)
    times = np.diff(np.append(starts, len(rows)))
    group = np.cumsum(is_new) - 1
    given = rows["number"].astype(np.int64)
    # Numbers go on behind those that the first unit has given already.
    highest = np.maximum.reduceat(given, starts)
    is_open = given == 0
    count = np.cumsum(is_open)
    before = (count[starts] - is_open[starts])[group]
    return np.where(is_open, highest[group] + count - before, given), starts, times


def _are_taken(
    rows: NDArray[Any], numbers: NDArray[Any], taken: NDArray[Any]
) -> NDArray[np.bool_]:
    """Whether an earlier plan has this occurrence of the name."""
    high = np.concatenate([taken["high"], rows["high"]])
    low = np.concatenate([taken["low"], rows["low"]])
    number = np.concatenate([taken["number"].astype(np.int64), numbers])
    is_own = np.arange(len(high)) >= len(taken)
    order = np.lexsort((is_own, number, low, high))
    equal = np.zeros(len(order), bool)
    ahead, behind = order[:-1], order[1:]
    equal[1:] = (high[ahead] == high[behind]) & (low[ahead] == low[behind])
    equal[1:] &= (number[ahead] == number[behind]) & ~is_own[ahead]
    found = np.zeros(len(order), bool)
    found[order] = equal
    return found[len(taken) :]


def with_keys(
    rows: pa.Table, first_row: int, repeats: NDArray[Any], are_numbered: bool
) -> pa.Table:
    """Rows of a unit with keys instead of names, without those whose keys are taken."""
    place = rows.schema.get_field_index("key")
    names = rows.column(place)
    begin, end = np.searchsorted(repeats["row"], [first_row, first_row + len(rows)])
    changes = repeats[begin:end]
    odd = np.zeros(len(rows), bool)
    if are_numbered:  # only names with '#', and the empty one, are not their own keys
        is_odd = pc.or_(pc.match_substring(names, "#"), pc.equal(names, ""))
        odd = is_odd.combine_chunks().to_numpy(zero_copy_only=False)
    if odd.any() or len(changes):
        keys = names.to_pylist()
        for row in np.flatnonzero(odd):
            keys[row] = first_key(keys[row])
        if are_numbered and len(changes):
            plain = names.to_pylist()
            for row, number in changes.tolist():
                if number > 1:
                    keys[row - first_row] = f"{plain[row - first_row]}#{number}"
        rows = rows.set_column(place, rows.schema.field(place), pa.array(keys, pa.string()))
    if len(gone := changes["row"][changes["number"] == 0]):
        is_left = np.ones(len(rows), bool)
        is_left[gone - first_row] = False
        rows = rows.filter(pa.array(is_left))
    return rows
