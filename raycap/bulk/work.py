"""Work on chunks: manifest rows in, one Parquet file of finished rows out. Runs in workers."""

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.counts import RowCounts, count_rows
from raycap.bulk.loading import Loader, RowPlace
from raycap.bulk.picture_column import PIXELS
from raycap.bulk.plan import Chunk, read_shard
from raycap.bulk.table import ChunkFile, chunk_path
from raycap.captioners.protocol import CHUNK
from raycap.fetch import Fetch
from raycap.images import Intake, Reading
from raycap.schema import fit
from raycap.sources import Source
from raycap.storage import RunFolder

# Pictures from the web that are decoded together.
URLS_PER_TASK = 64
# Of a large batch, several processors decode a part each.
ROWS_PER_TASK = 128
# How long the model waits for a whole batch while it has nothing else to do.
SECONDS_FOR_A_BATCH = 1.0
# Of finished rows of chunks that still wait for other rows. Then no chunk is begun for them.
BYTES_THAT_WAIT = 256 * 2**20
# Keys of the metadata of Parquet files: the counts of their rows, and which rows of which chunks
# they are.
COUNTS, ROWS = "raycap.counts", "raycap.rows"
# With which options captions were finished, and the highest attempt of `--retry flagged`.
FINISHING, ATTEMPTS = "raycap.finishing", "raycap.attempts"

# From loaded pictures to finished rows, one for each, in their order.
RowMaker = Callable[[pa.Table], pa.Table]


# The steps of a batch after `StagedRowMaker.begin`.
GiveRows = Callable[[], pa.Table]
FindRows = Callable[[], GiveRows]


@runtime_checkable
class StagedRowMaker(Protocol):
    """A row maker that works in three steps, so that batches overlap: see `Captioner.begin`."""

    def __call__(self, table: pa.Table) -> pa.Table: ...

    @property
    def batches_ahead(self) -> int:
        """How many batches are begun before the first of them is finished."""

    def begin(self, table: pa.Table) -> FindRows:
        """Begin with a batch. The thread that has called this calls the function that is returned,
        perhaps after other batches were begun. Another thread calls what that returns."""


@runtime_checkable
class AsyncRowMaker(Protocol):
    """A row maker that works on many tables at once. Several threads may call it."""

    def __call__(self, table: pa.Table) -> pa.Table: ...

    def submit(self, table: pa.Table) -> Callable[[], pa.Table]:
        """Begin with a table. The function that is returned waits for the rows."""


@dataclass(frozen=True)
class FileLayout:
    """What each file of a table holds."""

    rows: int  # the most in one file of a finished table
    schema: pa.Schema
    carry: tuple[str, ...]  # columns of the user's own table
    metadata: dict[str, str]
    # Of caption tables: makes captions and flags of a file again as this run finishes them.
    finish: Callable[[pa.Table], pa.Table] | None = None
    group_rows: int | None = None  # the most in one row group, where rows are large


@dataclass(frozen=True)
class WorkOrder:
    """What workers need to know. It is sent to each of them once."""

    out: RunFolder  # with the plan
    table: RunFolder  # where files are written
    source: Source
    fetch: Fetch
    reading: Reading
    intake: Intake
    batch: int
    layout: FileLayout
    open_model: Callable[[int], RowMaker]  # with so many threads

    @property
    def rows_per_task(self) -> int:
        """Rows that are decoded together, at most."""
        rows = max(self.batch, URLS_PER_TASK) if self.source.names_urls else self.batch
        return min(rows, ROWS_PER_TASK)

    def loading(self) -> dict[str, Any]:
        """How pictures are loaded: arguments of `pictures.load_table`."""
        return {
            "fetch": self.fetch,
            "trust": self.source.trust,
            "reading": self.reading,
            "intake": self.intake,
            "keep_pixels": True,
            "source": self.source,
        }


@dataclass(frozen=True)
class FinishedChunk:
    """What a worker has made."""

    file: ChunkFile
    counts: RowCounts
    schema: pa.Schema


@dataclass(frozen=True)
class WorkerProgress:
    """How far a worker is."""

    rows_done: int  # since it began
    # Rows of its chunks that are done, or only wait for a server: they keep nothing busy.
    rows_idle: int
    rows_to_do: int  # all others of them


@dataclass
class _ChunkInWork:
    """The rows of a chunk that are finished, in the order in which they were."""

    chunk: Chunk
    rows: pa.Table  # of the manifest
    counts: RowCounts = field(default_factory=RowCounts)
    made: list[pa.Table] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of the finished rows
    bytes: int = 0
    is_made: Future[None] = field(default_factory=Future)

    def in_order(self) -> pa.Table:
        table = pa.concat_tables(self.made)
        order = np.argsort(np.array(self.places))
        return table if (order[1:] > order[:-1]).all() else table.take(order)


class ChunkWorker:
    """Holds the model. Several threads may call `make` at once: their chunks share the batches of
    the model, so a chunk that waits for a few slow rows keeps nothing busy.

    Loaded rows of all chunks go into the model in `_run_model`. Finished rows go to their chunks
    in `_take_rows`, in any order.
    """

    def __init__(self, order: WorkOrder, loader: Loader, threads: int, name: str) -> None:
        self._order, self._loader, self._name = order, loader, name
        self._shard: tuple[tuple[int, int, int], pa.Table] | None = None
        self._numbers = itertools.count()
        self._works: dict[int, _ChunkInWork] = {}
        self._lock = threading.Lock()
        self._rows_begun = self._rows_loaded = self._rows_done = 0
        self._fault: BaseException | None = None
        # A batch that the model is done with, while it makes the next one. With this, the one that
        # becomes a table and those in the model, two to four batches are in work.
        self._made: queue.Queue[tuple[list[RowPlace], GiveRows] | None] = queue.Queue(1)
        is_open: Future[None] = Future()
        self._thread = self._start(self._run_model, threads, is_open)
        is_open.result()

    def make(self, chunk: Chunk) -> FinishedChunk:
        order, number = self._order, next(self._numbers)
        work = _ChunkInWork(chunk, self._manifest(chunk))
        with self._lock:
            if self._fault:
                raise self._fault
            self._works[number] = work
            self._rows_begun += len(work.rows)
        self._loader.add(number, work.rows)
        try:
            work.is_made.result()
        finally:
            with self._lock:
                del self._works[number]
            self._loader.forget(number)
        work.counts.makers[self._name] += work.counts.rows
        table = work.in_order()
        file = write_rows(order.table, chunk_path(chunk), table, order.layout, work.counts)
        return FinishedChunk(ChunkFile(*file, chunk), work.counts, table.schema)

    def progress(self) -> WorkerProgress:
        with self._lock:
            works = list(self._works.values())
            done, size = sum(len(work.places) for work in works), sum(work.bytes for work in works)
            rows = sum(len(work.rows) for work in works)
        idle = done + self._loader.rows_waiting if size < BYTES_THAT_WAIT else 0
        return WorkerProgress(self._rows_done, idle, max(0, rows - idle))

    def stop(self, seconds: float) -> None:
        """End the work on chunks that are not finished."""
        self._loader.stop()
        self._thread.join(seconds)

    def _start(self, function: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True, name="model")
        thread.start()
        return thread

    def _run_model(self, threads: int, is_open: "Future[None]") -> None:
        """What the model's thread does."""
        try:
            make_rows = self._order.open_model(threads)
        except BaseException as error:  # noqa: BLE001 - raised where the worker is made
            is_open.set_exception(error)
            return
        is_open.set_result(None)
        taker = self._start(self._take_made)
        try:
            if isinstance(make_rows, AsyncRowMaker):
                # It has many batches under way, and says itself when it has enough of them.
                for places, table in self._batches(0.0):
                    self._start(self._take_answers, places, make_rows.submit(table))
            elif isinstance(make_rows, StagedRowMaker):
                self._make_in_stages(make_rows)
            else:
                for places, table in self._batches(SECONDS_FOR_A_BATCH):
                    made = make_rows(table)
                    self._made.put((places, lambda made=made: made))  # type: ignore[misc]
            self._made.put(None)
            taker.join()
            raise RuntimeError("the worker was stopped")
        except BaseException as error:  # noqa: BLE001 - raised by each `make`
            self._fail(error)
        finally:
            # Let the model release what it holds, if it holds anything.
            if (close := getattr(make_rows, "close", None)) is not None:
                close()

    def _make_in_stages(self, make_rows: StagedRowMaker) -> None:
        """The next batch is begun before this one is finished, unless there is none yet."""
        begun: deque[tuple[list[RowPlace], FindRows]] = deque()
        for batch in self._batches_at_hand(SECONDS_FOR_A_BATCH, lambda: bool(begun)):
            if batch is not None:
                places, table = batch
                begun.append((places, make_rows.begin(table)))
            if batch is None or len(begun) > make_rows.batches_ahead:
                places, find = begun.popleft()
                self._made.put((places, find()))

    def _batches(self, patience: float) -> Iterator[tuple[list[RowPlace], pa.Table]]:
        for batch in self._batches_at_hand(patience, lambda: False):
            assert batch is not None
            yield batch

    def _batches_at_hand(
        self, patience: float, has_work: Callable[[], bool]
    ) -> Iterator[tuple[list[RowPlace], pa.Table] | None]:
        """Loaded rows in batches of the model. A batch is smaller if no other rows are on their
        way, or come in time. None: there is no batch at hand, and the model has other work."""
        batch = self._order.batch
        places: list[RowPlace] = []
        tables: list[pa.Table] = []
        end: float | None = None  # of the wait for a whole batch
        while True:
            if has_work():
                loaded = self._loader.next(0.0)
                if loaded is None:
                    yield None
                    continue
            else:
                left = None if end is None else max(0.0, end - time.monotonic())
                loaded = self._loader.next(left)
            if loaded is not None:
                places += loaded.places
                tables.append(loaded.table)
                self._rows_loaded += len(loaded.places)
            elif end is None:
                return  # the loader was stopped
            is_late = loaded is None or self._rows_loaded == self._rows_begun
            del loaded
            if len(places) >= batch or (places and is_late):
                table = pa.concat_tables(tables, promote_options="permissive")
                while len(places) >= batch or (places and is_late):
                    yield places[:batch], self._with_chunks(places[:batch], table.slice(0, batch))
                    places, table = places[batch:], table.slice(batch)
                tables, end = [table] if places else [], None
            if places and end is None:
                end = time.monotonic() + patience

    def _with_chunks(self, places: list[RowPlace], table: pa.Table) -> pa.Table:
        with self._lock:
            names = {number: str(work.chunk) for number, work in self._works.items()}
        column = pa.array([names[place.work] for place in places], pa.string())
        # Pixels stay where they are: the model copies them.
        pixels = table.column_names.index(PIXELS)
        field, pieces = table.schema.field(pixels), table.column(pixels)
        table = table.remove_column(pixels).combine_chunks().append_column(field, pieces)
        return table.append_column(CHUNK, column)

    def _take_answers(self, places: list[RowPlace], finish: Callable[[], pa.Table]) -> None:
        """Waits for the rows of one batch."""
        try:
            self._take_rows(places, finish())
        except BaseException as error:  # noqa: BLE001 - raised by each `make`
            self._fail(error)

    def _take_made(self) -> None:
        try:
            while (made := self._made.get()) is not None:
                places, give_rows = made
                self._take_rows(places, give_rows())
                del made, give_rows  # they hold what the model has computed
        except BaseException as error:  # noqa: BLE001 - raised by each `make`
            self._fail(error)
            while self._made.get() is not None:
                pass  # the model's thread must not wait for room

    def _take_rows(self, places: list[RowPlace], made: pa.Table) -> None:
        """Finished rows go to their chunks."""
        layout = self._order.layout
        by_work: dict[int, list[int]] = {}
        for number, place in enumerate(places):
            by_work.setdefault(place.work, []).append(number)
        for number, rows in by_work.items():
            with self._lock:
                work = self._works[number]
            some = made if len(by_work) == 1 else made.take(rows)
            counts = count_rows(some)
            some = _with_types(some, work.rows.schema, layout.carry)
            fitted = fit(some, layout.schema, layout.carry)
            with self._lock:
                work.counts.add(counts)
                work.made.append(fitted)
                work.bytes += fitted.nbytes
                work.places += [places[row].row for row in rows]
                self._rows_done += len(rows)
                is_made = len(work.places) == len(work.rows)
            if is_made:
                work.is_made.set_result(None)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._fault is None:
                self._fault = error
            unfinished = [work for work in self._works.values() if not work.is_made.done()]
        for work in unfinished:
            with contextlib.suppress(InvalidStateError):  # another thread may have done it
                work.is_made.set_exception(self._fault)

    def _manifest(self, chunk: Chunk) -> pa.Table:
        name = (chunk.operation, chunk.unit, chunk.shard)
        held = self._shard
        if held is None or held[0] != name:
            held = self._shard = (name, read_shard(self._order.out, *name))
        return held[1].slice(chunk.start, chunk.rows)


def _with_types(table: pa.Table, schema: pa.Schema, names: tuple[str, ...]) -> pa.Table:
    """The table with these columns as they were before they shared a batch with other chunks."""
    for name in names:
        place = table.schema.get_field_index(name)
        if place >= 0 and table.schema.field(place).type != schema.field(name).type:
            table = table.set_column(place, name, table[name].cast(schema.field(name).type))
    return table


def write_rows(
    folder: RunFolder, path: str, table: pa.Table, layout: FileLayout, counts: RowCounts
) -> tuple[str, int, int]:
    """Write one Parquet file. Returns its path, size and rows."""
    data = content_of(table, layout, counts)
    folder.write(path, data)
    return path, data.size, len(table)


def content_of(table: pa.Table, layout: FileLayout, counts: RowCounts) -> pa.Buffer:
    """The content of a Parquet file with these rows."""
    metadata = {**layout.metadata, COUNTS: counts.to_json()}
    content = pa.BufferOutputStream()
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, content, compression="zstd", row_group_size=layout.group_rows)
    return content.getvalue()
