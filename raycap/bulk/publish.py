"""From a stream of finished rows to whole files of a table, each row once: tasks write, the driver alone publishes.

A task writes some rows to a file that no reader sees and reports the numbers of the rows in it (see `todo.TICKET`).
The driver renames the file into the table if none of its rows has been published in this pass. So a task that Ray
runs twice, or a block that is made again with other borders after a node was lost, cannot double a row: its file
is thrown away, and what was good in it is made by the next pass, which lists what the table lacks. The driver
remembers one bit for each row. Rows of a second listing (its task was lost too, and the source may have changed
meanwhile) are not taken at all. After the death of the driver nobody publishes: its tasks may still write, but what
they write has no name.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray.data import Dataset
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raycap.bulk.standing import Counts, count
from raycap.bulk.todo import noted
from raycap.cluster.session import find_user_error, root_cause
from raycap.schema import fit
from raycap.storage import Lease, RunFolder
from raycap.storage.folder import STAGED

log = logging.getLogger(__name__)

# What ends a pass and leaves what it has finished: a lost worker or node, or a stream that stands still.
LOST_WORK = (RayError, ExecutionTimeoutError)
# Files that are written at the same time; with more, a slow disc would fill the object store.
MOST_WRITING = 4


@dataclass(frozen=True)
class Parts:
    """How the table is cut into files."""

    rows: int
    seconds: float
    schema: pa.Schema
    carry: tuple[str, ...]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Report:
    """What a task wrote."""

    staged: str
    name: str
    listings: tuple[int, ...]
    places: NDArray[np.int64]
    last: int | None  # the number of the listing's last row, if it is in here
    counts: Counts
    notes: dict[str, Any] | None = None  # what the source noted, with the listing's last row


@dataclass
class Pass:
    """One listing on its way into the table."""

    folder: RunFolder
    table: str
    lease: Lease
    parts: Parts
    published: Callable[[Counts], None]  # told after each file
    counts: Counts = field(default_factory=Counts)
    notes: dict[str, Any] | None = (
        None  # what the source noted while it listed; known with its last row
    )
    _listing: int | None = None
    _relisted: bool = (
        False  # the listing was made again: what it names now need not be what it named
    )
    _seen: bytearray = field(default_factory=bytearray)
    _last: int | None = None
    _writing: list[Any] = field(default_factory=list)

    def run(self, rows: Dataset) -> bool:
        """Whether every row of the listing is in the table now."""
        try:
            for blocks in self._gathered(rows):
                self._write(blocks)
        finally:  # also after a fault: what is finished is kept
            try:
                while self._writing:
                    self._publish_one()
            finally:  # and no task is left that would write after the run has cleared up
                if self._writing:
                    ray.wait(self._writing, num_returns=len(self._writing))
        return self._last is not None and self.counts.rows == self._last + 1

    def _gathered(self, rows: Dataset) -> Iterator[list[Any]]:
        """References to the blocks of a file; the rows themselves do not come to the driver."""
        blocks: list[Any] = []
        held, since = 0, time.monotonic()
        try:
            for bundle in rows.iter_internal_ref_bundles():
                blocks += [entry.ref for entry in bundle.blocks if entry.metadata.num_rows]
                held += bundle.num_rows() or 0
                if self._relisted:
                    return
                if held >= self.parts.rows or (
                    held and time.monotonic() - since >= self.parts.seconds
                ):
                    yield blocks
                    blocks, held, since = [], 0, time.monotonic()
        except LOST_WORK:
            if blocks:
                self._write(blocks)
            raise
        if blocks:
            yield blocks

    def _write(self, blocks: Sequence[Any]) -> None:
        write = ray.remote(num_cpus=0, max_retries=3)(write_part)
        self._writing.append(
            write.remote(self.folder, self.table, self.lease.run, self.parts, *blocks)
        )
        while len(self._writing) >= MOST_WRITING or ray.wait(self._writing, timeout=0)[0]:
            self._publish_one()
            if not self._writing:
                break

    def _publish_one(self) -> None:
        [ready], self._writing = ray.wait(self._writing, num_returns=1)
        try:
            report: Report = ray.get(ready)
        except RayError as error:
            if refusal := find_user_error(error):
                raise refusal from error
            log.warning(
                "finished rows were lost before they were written (%s): made again",
                root_cause(error),
            )
            return
        if not self._is_new(report):
            self.folder.remove(report.staged)
            return
        self.lease.check()
        self.folder.rename(report.staged, f"{self.table}/{report.name}")
        self._remember(report)
        self.published(report.counts)

    def _is_new(self, report: Report) -> bool:
        if self._listing is None:
            self._listing = report.listings[0]
        self._relisted = self._relisted or report.listings != (self._listing,)
        if self._relisted or len(np.unique(report.places)) < len(report.places):
            return False
        self._seen.extend(bytes(max(0, int(report.places.max()) // 8 + 1 - len(self._seen))))
        seen = np.frombuffer(self._seen, np.uint8)
        return not bool(
            (seen[report.places // 8] >> (report.places % 8).astype(np.uint8) & 1).any()
        )

    def _remember(self, report: Report) -> None:
        seen = np.frombuffer(self._seen, np.uint8)
        np.bitwise_or.at(
            seen, report.places // 8, np.uint8(1) << (report.places % 8).astype(np.uint8)
        )
        self._last = self._last if report.last is None else report.last
        self.notes = self.notes if report.notes is None else report.notes
        self.counts.add(report.counts)


def write_part(folder: RunFolder, table: str, run: str, parts: Parts, *blocks: pa.Table) -> Report:
    """Runs in a task: the blocks as one staged Parquet file. Its name follows from its keys."""
    rows = pa.concat_tables(blocks)
    fitted = fit(rows, parts.schema, parts.carry).replace_schema_metadata(parts.metadata)
    digest = hashlib.blake2b(
        "\0".join(rows["key"].to_pylist()).encode(), digest_size=8
    ).hexdigest()
    name = f"part-{run}-{digest}.parquet"
    # Of its own for each try: one that was given up may still hold its file open, and write.
    staged = f"{STAGED}/{run}/{uuid.uuid4().hex}"
    file = pa.BufferOutputStream()
    pq.write_table(fitted, file, compression="zstd")
    folder.stage(staged, file.getvalue())
    listing, place, last = (rows[column].to_numpy() for column in ("listing", "place", "last"))
    return Report(
        staged=staged,
        name=name,
        listings=tuple(np.unique(listing).tolist()),
        places=place,
        last=int(place[last][0]) if last.any() else None,
        counts=count(rows),
        notes=noted(rows),
    )
