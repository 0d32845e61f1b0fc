"""The workers of a table job, as the run sees them, and a worker in this process.

Everything that happens is put into one queue, which the run reads.
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from raycap.bulk.options import BulkOptions
from raycap.bulk.pictures import load_table
from raycap.bulk.plan import Chunk, Shard
from raycap.bulk.work import ChunkWorker, FinishedChunk, WorkOrder
from raycap.images.guard import read_in_child
from raycap.terminal import write_err

SECONDS_TO_END = 30.0


@dataclass(eq=False)
class Worker:
    """One worker, as the run sees it."""

    actor: Any = None
    is_ready: bool = False
    is_asked: bool = False  # how far it is, and has not answered yet
    rows_done: int = 0
    chunks: set[Chunk] = field(default_factory=set)  # that it works on
    hired_at: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


# What the queue holds.


@dataclass(frozen=True)
class Planned:
    """A shard is written down."""

    shard: Shard


@dataclass(frozen=True)
class PlanFailed:
    """The listing has ended too early."""

    error: BaseException


@dataclass(frozen=True)
class Answered:
    """A worker has answered: it is ready, it has made a chunk, or it says how far it is."""

    worker: Worker
    chunk: Chunk | None
    answer: FinishedChunk | int | None  # None: it is ready


@dataclass(frozen=True)
class Failed:
    """A worker could not do something, or is lost."""

    worker: Worker
    chunk: Chunk | None
    error: BaseException


class Crew(Protocol):
    """Workers, wherever they are."""

    workers: list[Worker]

    def hire(self, rows: int | None) -> None:
        """Start workers where there is room; called again and again. `rows` is how many are left,
        if that is known."""

    def rest(self, seconds: float) -> None:
        """Start no worker for some time."""

    def make(self, worker: Worker, chunk: Chunk) -> None:
        """Give a chunk to a worker."""

    def ask_progress(self) -> None:
        """Ask workers how many rows they have done."""

    def dismiss(self, worker: Worker) -> None:
        """End a worker. What it was working on is not made."""

    def finds_free_processors(self) -> bool:
        """Whether work could be done now that the workers have ended."""

    def close(self) -> None:
        """End all workers."""


def list_in_thread(
    lister: Callable[[], Iterator[Shard]], events: "queue.SimpleQueue[Any]"
) -> None:
    """Run a generator of shards in a thread; each shard comes as an event."""

    def forward() -> None:
        try:
            for shard in lister():
                events.put(Planned(shard))
        except BaseException as error:  # noqa: BLE001 - the run raises it
            events.put(PlanFailed(error))

    threading.Thread(target=forward, daemon=True, name="plan").start()


class LocalCrew:
    """One worker in this process, for jobs that are done before Ray would have started."""

    def __init__(
        self, options: BulkOptions, order: WorkOrder, events: "queue.SimpleQueue[Any]"
    ) -> None:
        self.workers: list[Worker] = []
        self._options, self._order, self._events = options, order, events
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._loader = ThreadLoader(order)
        self._thread: threading.Thread | None = None

    def hire(self, rows: int | None) -> None:
        if not self.workers:
            write_err(
                f"raycap: the model runs in this process, in batches of {self._options.batch}\n"
            )
            self.workers.append(Worker())
            self._thread = threading.Thread(target=self._work, name="model", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        [worker] = self.workers
        chunk: Chunk | None = None
        try:
            threads = self._options.threads or os.cpu_count() or 1
            made = ChunkWorker(self._order, self._loader, threads, f"here {os.getpid()}")
            with contextlib.closing(made):
                self._events.put(Answered(worker, None, None))
                while (chunk := self._chunks.get()) is not None:
                    self._events.put(Answered(worker, chunk, made.make(chunk)))
        except BaseException as error:  # noqa: BLE001 - the run raises it
            self._events.put(Failed(worker, chunk, error))

    def rest(self, seconds: float) -> None: ...

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)
        self._chunks.put(chunk)

    def ask_progress(self) -> None: ...

    def dismiss(self, worker: Worker) -> None: ...

    def finds_free_processors(self) -> bool:
        return True

    def close(self) -> None:
        self._loader.stop()
        self._chunks.put(None)
        if self._thread is not None:
            self._thread.join(SECONDS_TO_END)


class ThreadLoader:
    """Loads pictures in a thread, one table ahead of the model. They are decoded in a child
    process: a picture that kills its decoder must not end the run."""

    def __init__(self, order: WorkOrder) -> None:
        self._how = {**order.loading(), "read": read_in_child}
        self._pool = ThreadPoolExecutor(1, "load")

    def load(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        ahead: deque[Future[pa.Table]] = deque()
        for table in tables:
            ahead.append(self._pool.submit(load_table, table, **self._how))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def stop(self) -> None:
        """What is not begun is not loaded any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
