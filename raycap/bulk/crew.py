"""The workers of a table job on a Ray cluster, and the tasks around them.

Everything that happens is put into one queue, which the run reads. Workers hold no logical
processor: they can never wait for the tasks that load their pictures, nor these for them.
"""

import collections
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.bulk.pictures import load_table
from raycap.bulk.plan import Chunk, Shard
from raycap.bulk.pool import Place
from raycap.bulk.work import ChunkWorker, FinishedChunk, WorkOrder

# Ray runs a task again so often when its process or node is lost. From the second time on, each
# picture is read in a child process (see `pictures`).
RETRIES = 3
# Calls of a worker at one time: chunks, and questions about its progress.
MOST_CALLS = 12
TASKS_AT_ONCE = 32


@dataclass(eq=False)
class Worker:
    """One worker, as the run sees it."""

    place: Place
    actor: Any
    is_ready: bool = False
    is_asked: bool = False  # how far it is, and has not answered yet
    rows_done: int = 0
    chunks: set[Chunk] = field(default_factory=set)  # that it works on

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


class Crew:
    """Workers and tasks. Used within `with`: at its end no worker is left."""

    def __init__(self, order: WorkOrder, nodes: dict[str, str] | None) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.workers: list[Worker] = []
        self._nodes = nodes  # a label selector, for tasks that load pictures
        self._order = [ray.put(order)]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in list(self.workers):
            self.dismiss(worker)

    def list_shards(self, shards: Callable[[], Iterator[Shard]]) -> None:
        """Run a generator of shards in a task; each shard comes as an event."""
        task: Any = ray.remote(num_cpus=0, max_retries=RETRIES, label_selector=self._nodes or {})(
            _run_generator
        )
        stream = task.options(num_returns="streaming").remote(shards)

        def forward() -> None:
            try:
                for shard in stream:
                    self.events.put(Planned(ray.get(shard)))
            except Exception as error:  # noqa: BLE001 - the run decides what to do about it
                self.events.put(PlanFailed(error))

        threading.Thread(target=forward, daemon=True, name="plan").start()

    def hire(self, places: Iterable[Place], lookahead: int) -> None:
        """Start a worker in each place."""
        for place in places:
            where = NodeAffinitySchedulingStrategy(place.node, soft=False)
            actor_class: Any = ray.remote(ChunkActor)
            options = {"max_restarts": 0, "max_concurrency": MOST_CALLS}
            actor = actor_class.options(
                num_cpus=0, num_gpus=place.gpus, scheduling_strategy=where, **options
            ).remote(self._order, place.threads, lookahead, self._nodes)
            worker = Worker(place, actor)
            self.workers.append(worker)
            self._when_done(actor.ready.remote(), worker, None)

    def dismiss(self, worker: Worker) -> None:
        """End a worker. What it was working on is not made."""
        if worker in self.workers:
            self.workers.remove(worker)
        worker.chunks.clear()
        ray.kill(worker.actor)

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)
        self._when_done(worker.actor.make.remote(chunk), worker, chunk)

    def ask_progress(self) -> None:
        """Ask workers how many rows they have done."""
        for worker in self.workers:
            if worker.is_ready and worker.chunks and not worker.is_asked:
                worker.is_asked = True
                self._when_done(worker.actor.rows_done.remote(), worker, None)

    def _when_done(self, answer: Any, worker: Worker, chunk: Chunk | None) -> None:
        def done(future: Any) -> None:
            try:
                self.events.put(Answered(worker, chunk, future.result()))
            except Exception as error:  # noqa: BLE001 - the run decides what to do about it
                self.events.put(Failed(worker, chunk, error))

        answer.future().add_done_callback(done)


def run_tasks(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """The answers of a function for all these arguments, in their order. One call is made here,
    several are made in tasks."""
    if len(arguments) == 1:
        yield function(*arguments[0])
        return
    task = ray.remote(num_cpus=0, max_retries=RETRIES)(function)
    answers: collections.deque[Any] = collections.deque()
    left = iter(arguments)
    for some in itertools.islice(left, TASKS_AT_ONCE):
        answers.append(task.remote(*some))
    while answers:
        yield ray.get(answers.popleft())
        for some in itertools.islice(left, 1):
            answers.append(task.remote(*some))


def _run_generator(shards: Callable[[], Iterator[Shard]]) -> Iterator[Shard]:
    yield from shards()


class ChunkActor:
    """A worker in a process of its own."""

    def __init__(
        self, order: list[Any], threads: int, lookahead: int, nodes: dict[str, str] | None
    ) -> None:
        work: WorkOrder = ray.get(order[0])
        node = ray.get_runtime_context().get_node_id()[:8]
        name = f"{socket.gethostname()}/{node} {os.getpid()}"
        self._worker = ChunkWorker(work, TaskLoader(work, lookahead, nodes), threads, name)

    def ready(self) -> None:
        """Answers when the model is loaded."""

    def make(self, chunk: Chunk) -> FinishedChunk:
        return self._worker.make(chunk)

    def rows_done(self) -> int:
        return self._worker.rows_done


class TaskLoader:
    """Loads pictures in tasks, of which some are ahead of the model."""

    def __init__(self, order: WorkOrder, lookahead: int, nodes: dict[str, str] | None) -> None:
        self._task: Any = ray.remote(num_cpus=1, max_retries=RETRIES, label_selector=nodes or {})(
            load_table
        )
        self._how = {
            "fetch": order.fetch,
            "trust": order.source.trust,
            "reading": order.reading,
            "square": order.square,
            "keep_pixels": True,
            "source": order.source,
        }
        self._free = threading.Semaphore(lookahead)

    def load(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        ahead: collections.deque[Any] = collections.deque()
        try:
            for table in tables:
                # Who has tasks of his own under way uses their results first.
                while not self._free.acquire(blocking=not ahead):
                    yield self._next(ahead)
                ahead.append(self._task.remote(table, **self._how))
            while ahead:
                yield self._next(ahead)
        finally:
            for answer in ahead:
                ray.cancel(answer)
                self._free.release()

    def _next(self, ahead: "collections.deque[Any]") -> pa.Table:
        answer = ahead.popleft()
        try:
            return ray.get(answer)
        finally:
            self._free.release()
