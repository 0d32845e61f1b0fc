"""What a table holds: its keys as digests, its rows by status, and why rows failed. Read by
tasks."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from raycap.cluster.nodes import MAKER
from raycap.fetch.hosts import HostCounts
from raycap.schema import SUCCESS
from raycap.storage import RunFolder

# [2, N]: the two halves of the 128-bit digest of each key. Two different keys with one digest
# would cost a picture its row: with 128 bits that does not happen.
Digests = NDArray[np.uint64]

# Each listed table of rows is looked up in every group, so there are few groups, however large the
# table is.
MOST_GROUPS = 32
LEAST_FILES_IN_GROUP = 16


@dataclass
class RowCounts:
    """Rows by status, why rows failed, and which worker made them where that is known."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    makers: Counter[str] = field(default_factory=Counter)
    hosts: HostCounts = field(default_factory=HostCounts)  # of rows made in this run

    @property
    def rows(self) -> int:
        return self.statuses.total()

    @property
    def failed(self) -> int:
        return self.rows - self.statuses[SUCCESS]

    def add(self, other: "RowCounts") -> None:
        self.statuses += other.statuses
        self.reasons += other.reasons
        self.makers += other.makers
        self.hosts.add(other.hosts)


@dataclass
class TableContents:
    """A table at one moment. The digests stay with the tasks that read them; here are
    references."""

    counts: RowCounts
    keys: tuple[Any, ...]  # sorted digests of all keys
    failed: tuple[Any, ...]  # of the keys of rows that are to be made again


def read_contents(folder: RunFolder, table: str, retry: Sequence[str] = ()) -> TableContents:
    """Read the table's files in tasks. `retry` names the statuses whose rows are to be made
    again."""
    files = folder.names(table)
    size = max(LEAST_FILES_IN_GROUP, -(-len(files) // MOST_GROUPS))
    # No processor each: they wait for a disk or a network, and run before anything else does.
    read = ray.remote(num_returns=3, num_cpus=0)(_read_files)
    answers: list[Any] = [
        read.remote(folder, files[start : start + size], tuple(retry))
        for start in range(0, len(files), size)
    ]
    counts = RowCounts()
    for group_counts, _, _ in answers:
        counts.add(ray.get(group_counts))
    keys = tuple(digests for _, digests, _ in answers)
    return TableContents(counts, keys, tuple(failed for _, _, failed in answers))


def _read_files(
    folder: RunFolder, files: Sequence[str], retry: Sequence[str]
) -> tuple[RowCounts, Digests, Digests]:
    def read(file: Any) -> tuple[RowCounts, list[Digests], list[Digests]]:
        counts, keys, failed = RowCounts(), [], []
        with pq.ParquetFile(file) as parquet:
            columns = ["key", "status", "error_message"]
            for batch in parquet.iter_batches(columns=columns, batch_size=65_536):
                digests = digests_of(batch["key"].to_pylist())
                again = pc.is_in(batch["status"], arrow_strings(retry))
                keys.append(digests)
                failed.append(digests[:, again.to_numpy(zero_copy_only=False)])
                counts.add(count_rows(batch))
        return counts, keys, failed

    counts, keys, failed = RowCounts(), [], []
    for file in files:
        file_counts, file_keys, file_failed = folder.reading(file, read)
        counts.add(file_counts)
        keys += file_keys
        failed += file_failed
    return counts, sorted_digests(keys), sorted_digests(failed)


def count_rows(rows: Any) -> RowCounts:
    """The statuses and reasons of a table or batch."""
    counts = RowCounts()
    statuses = pc.value_counts(rows["status"])
    counts.statuses = Counter({item["values"]: item["counts"] for item in statuses.to_pylist()})
    if MAKER in rows.schema.names:
        makers = pc.value_counts(rows[MAKER])
        counts.makers = Counter({item["values"]: item["counts"] for item in makers.to_pylist()})
    counts.hosts.add_rows(rows)
    if counts.failed:
        bad = rows.filter(pc.not_equal(rows["status"], SUCCESS))
        pairs = zip(bad["status"].to_pylist(), bad["error_message"].to_pylist(), strict=True)
        # Everything up to the first colon is the same for all such faults; the rest is about one
        # row.
        counts.reasons = Counter((status, reason.partition(":")[0]) for status, reason in pairs)
    return counts


def arrow_strings(words: Sequence[str]) -> Any:
    """Words, to be compared with a column of text."""
    return pa.array(list(words), pa.string())


def digests_of(keys: Iterable[str]) -> Digests:
    """In the order of the keys."""
    each = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for key in keys
    )
    return np.ascontiguousarray(np.frombuffer(b"".join(each), np.uint64).reshape(-1, 2).T)


def sorted_digests(groups: Sequence[Digests]) -> Digests:
    """All of them in one array, sorted by their first halves."""
    joined = np.concatenate([digests_of([]), *groups], axis=1)
    return joined[:, np.argsort(joined[0])]


def are_among(digests: Digests, groups: Sequence[Digests]) -> NDArray[np.bool_]:
    """For each digest whether one of the sorted groups has it."""
    found = np.zeros(digests.shape[1], bool)
    for firsts, seconds in groups:
        place = np.searchsorted(firsts, digests[0])
        # Two keys of a group may share a first half; three never do.
        for near in (place, place + 1):
            inside = np.minimum(near, len(firsts) - 1)
            if len(firsts):
                found |= (firsts[inside] == digests[0]) & (seconds[inside] == digests[1])
    return found
