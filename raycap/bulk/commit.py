"""From a stream of finished rows to whole files of a table, each row once: tasks write, the driver
alone commits.

A task writes some rows to a staged file, which no reader sees, and reports the numbers of the rows
in it (see `pending.TICKET`). The driver renames the file into the table if none of its rows has
been committed in this pass. If Ray runs a task twice, or makes a block again with other borders
after a node was lost, the second file is thrown away; what was good in it is made by the next
pass, which lists what the table lacks. The driver remembers one bit for each row. Rows of a second
listing (its task was lost too, and the source may have changed meanwhile) are not taken at all.
After the death of the driver nobody commits: its tasks may still write, but their files are only
staged.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
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

from raycap.bulk.contents import RowCounts, count_rows
from raycap.bulk.pending import notes_of
from raycap.cluster.session import find_user_error, root_cause
from raycap.schema import fit
from raycap.storage import Lease, RunFolder
from raycap.storage.folder import STAGED

log = logging.getLogger(__name__)

# What ends a pass and leaves what it has finished: a lost worker or node, or a stream that makes
# no progress.
LOST_WORK = (RayError, ExecutionTimeoutError)
# Files that are written at the same time; with more, a slow disk would fill the object store.
MOST_WRITING = 4


@dataclass(frozen=True)
class FileLayout:
    """How a table is cut into files, and what each holds."""

    rows: int
    seconds: float
    schema: pa.Schema
    carry: tuple[str, ...]  # columns of the user's own table
    metadata: dict[str, str]


@dataclass(frozen=True)
class StagedFile:
    """What a task wrote."""

    staged: str
    name: str
    listings: tuple[int, ...]
    places: NDArray[np.int64]
    last: int | None  # the number of the listing's last row, if it is in here
    counts: RowCounts
    notes: dict[str, Any] | None = None  # of the source, with the listing's last row


@dataclass
class Committer:
    """Brings the rows of one listing into the table."""

    folder: RunFolder
    table: str
    lease: Lease
    layout: FileLayout
    counts: RowCounts = field(default_factory=RowCounts)
    notes: dict[str, Any] | None = None  # of the source; known with the listing's last row
    _listing: int | None = None
    _relisted: bool = False  # the source was listed again: other rows may have its numbers now
    _seen: bytearray = field(default_factory=bytearray)
    _last: int | None = None
    _writing: list[Any] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every row of the listing is in the table."""
        return self._last is not None and self.counts.rows == self._last + 1

    def commit(self, rows: Dataset) -> Generator[RowCounts]:
        """Write and commit the rows; yields the counts of each committed file.

        When it ends early, by a fault or because the caller stops, what is finished is committed
        first.
        """
        try:
            for blocks in self._blocks_of_files(rows):
                self._start_writing(blocks)
                while len(self._writing) >= MOST_WRITING or self._a_file_is_written():
                    if (counts := self._commit_one()) is not None:
                        yield counts
            while self._writing:
                if (counts := self._commit_one()) is not None:
                    yield counts
        finally:
            try:
                while self._writing:
                    self._commit_one()
            finally:  # no task is left that would write after the run has cleared up
                if self._writing:
                    ray.wait(self._writing, num_returns=len(self._writing))

    def _blocks_of_files(self, rows: Dataset) -> Iterator[list[Any]]:
        """References to the blocks of one file each; the rows themselves do not come to the
        driver."""
        blocks: list[Any] = []
        held, since = 0, time.monotonic()
        try:
            for bundle in rows.iter_internal_ref_bundles():
                blocks += [entry.ref for entry in bundle.blocks if entry.metadata.num_rows]
                held += bundle.num_rows() or 0
                if self._relisted:
                    return
                is_due = time.monotonic() - since >= self.layout.seconds
                if held >= self.layout.rows or (held and is_due):
                    yield blocks
                    blocks, held, since = [], 0, time.monotonic()
        except LOST_WORK:
            if blocks:
                self._start_writing(blocks)
            raise
        if blocks:
            yield blocks

    def _start_writing(self, blocks: Sequence[Any]) -> None:
        write = ray.remote(num_cpus=0, max_retries=3)(write_staged)
        self._writing.append(write.remote(self.folder, self.lease.run, self.layout, *blocks))

    def _a_file_is_written(self) -> bool:
        return bool(self._writing) and bool(ray.wait(self._writing, timeout=0)[0])

    def _commit_one(self) -> RowCounts | None:
        """Wait for one file and commit it; None if it was lost or its rows are in the table
        already."""
        [ready], self._writing = ray.wait(self._writing, num_returns=1)
        try:
            file: StagedFile = ray.get(ready)
        except RayError as error:
            if user_error := find_user_error(error):
                raise user_error from error
            log.warning(
                "finished rows were lost before they were written (%s): they are made again",
                root_cause(error),
            )
            return None
        if not self._is_new(file):
            self.folder.remove(file.staged)
            return None
        self.lease.check()
        self.folder.rename(file.staged, f"{self.table}/{file.name}")
        self._remember(file)
        return file.counts

    def _is_new(self, file: StagedFile) -> bool:
        if self._listing is None:
            self._listing = file.listings[0]
        self._relisted = self._relisted or file.listings != (self._listing,)
        if self._relisted or len(np.unique(file.places)) < len(file.places):
            return False
        self._seen.extend(bytes(max(0, int(file.places.max()) // 8 + 1 - len(self._seen))))
        seen = np.frombuffer(self._seen, np.uint8)
        bits = seen[file.places // 8] >> (file.places % 8).astype(np.uint8) & 1
        return not bool(bits.any())

    def _remember(self, file: StagedFile) -> None:
        seen = np.frombuffer(self._seen, np.uint8)
        bits = np.uint8(1) << (file.places % 8).astype(np.uint8)
        np.bitwise_or.at(seen, file.places // 8, bits)
        self._last = self._last if file.last is None else file.last
        self.notes = self.notes if file.notes is None else file.notes
        self.counts.add(file.counts)


def write_staged(folder: RunFolder, run: str, layout: FileLayout, *blocks: pa.Table) -> StagedFile:
    """Runs in a task: the blocks as one staged Parquet file. Its name follows from its keys."""
    rows = pa.concat_tables(blocks)
    table = fit(rows, layout.schema, layout.carry).replace_schema_metadata(layout.metadata)
    keys = "\0".join(rows["key"].to_pylist()).encode()
    name = f"part-{run}-{hashlib.blake2b(keys, digest_size=8).hexdigest()}.parquet"
    # A name of its own for each try: a task that was given up may still hold its file open, and
    # write.
    staged = f"{STAGED}/{run}/{uuid.uuid4().hex}"
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd")
    folder.stage(staged, content.getvalue())
    listing, place, last = (rows[column].to_numpy() for column in ("listing", "place", "last"))
    return StagedFile(
        staged=staged,
        name=name,
        listings=tuple(np.unique(listing).tolist()),
        places=place,
        last=int(place[last][0]) if last.any() else None,
        counts=count_rows(rows),
        notes=notes_of(rows),
    )
