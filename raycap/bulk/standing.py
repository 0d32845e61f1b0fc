"""What a table holds already, read by tasks from keys and statuses alone: digests stay there, counts come here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raycap.bulk.digests import Digests, digests_of, in_order
from raycap.cluster.nodes import MAKER
from raycap.fetch.hosts import HostCounts
from raycap.schema import SUCCESS
from raycap.storage import RunFolder

# Each listed table of rows is looked up in every group, so there are few, however large the table is.
MOST_GROUPS = 32
LEAST_PARTS_IN_GROUP = 16


@dataclass
class Counts:
    """Rows by status, why rows failed, and who made them where that is known; adds up over parts."""

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

    def add(self, other: "Counts") -> None:
        self.statuses += other.statuses
        self.reasons += other.reasons
        self.makers += other.makers
        self.hosts.add(other.hosts)


@dataclass
class Standing:
    """A table at one moment."""

    counts: Counts
    done: tuple[Any, ...]  # references to sorted digests of all keys
    failed: tuple[Any, ...]  # of the keys of failed rows that are to be tried again


def standing(folder: RunFolder, table: str, retry: Sequence[str] = ()) -> Standing:
    """Read what stands in the table; `retry` names statuses whose rows count as failed."""
    parts = folder.names(table)
    size = max(LEAST_PARTS_IN_GROUP, -(-len(parts) // MOST_GROUPS))
    groups = [parts[start : start + size] for start in range(0, len(parts), size)]
    # No processor each: they wait for a disc or a network, and run before anything else does.
    read = ray.remote(num_returns=3, num_cpus=0)(_read)
    answers: list[Any] = [read.remote(folder, group, tuple(retry)) for group in groups]
    counts = Counts()
    for answer in answers:
        counts.add(ray.get(answer[0]))
    return Standing(
        counts, tuple(answer[1] for answer in answers), tuple(answer[2] for answer in answers)
    )


def _read(
    folder: RunFolder, parts: Sequence[str], retry: Sequence[str]
) -> tuple[Counts, Digests, Digests]:
    def read(file: Any) -> tuple[Counts, list[Digests], list[Digests]]:
        counts, done, failed = Counts(), [], []
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(
                columns=["key", "status", "error_message"], batch_size=65_536
            ):
                digests = digests_of(batch["key"].to_pylist())
                again = pc.is_in(batch["status"], arrow_strings(retry)).to_numpy(
                    zero_copy_only=False
                )
                done.append(digests)
                failed.append(digests[:, again])
                counts.add(count(batch))
        return counts, done, failed

    counts, done, failed = Counts(), [], []
    for part in parts:
        its_counts, its_done, its_failed = folder.reading(part, read)
        counts.add(its_counts)
        done += its_done
        failed += its_failed
    return counts, in_order(done), in_order(failed)


def arrow_strings(words: Sequence[str]) -> Any:
    """Words for a comparison with a column of text."""
    return pa.array(list(words), pa.string())


def count(rows: Any) -> Counts:
    """The statuses and reasons of a table or batch; reasons by their head, the same for all such faults."""
    counts = Counts()
    statuses = pc.value_counts(rows["status"])
    counts.statuses = Counter({item["values"]: item["counts"] for item in statuses.to_pylist()})
    if MAKER in rows.schema.names:
        makers = pc.value_counts(rows[MAKER])
        counts.makers = Counter({item["values"]: item["counts"] for item in makers.to_pylist()})
    counts.hosts.add_rows(rows)
    if counts.failed:
        bad = rows.filter(pc.not_equal(rows["status"], SUCCESS))
        pairs = zip(bad["status"].to_pylist(), bad["error_message"].to_pylist(), strict=True)
        counts.reasons = Counter((status, head_of(reason)) for status, reason in pairs)
    return counts


def head_of(reason: str) -> str:
    """A reason without what is particular to one row: everything up to its first colon."""
    return reason.partition(":")[0]
