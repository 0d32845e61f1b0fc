"""The workers of a table job on a Ray cluster, and the tasks around them.

Workers hold no logical processor: they can never wait for the tasks that load their pictures, nor
these for them.
"""

import collections
import itertools
import os
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.bulk.crew import Answered, Failed, Worker
from raycap.bulk.job import TableJob
from raycap.bulk.pictures import load_table
from raycap.bulk.plan import Chunk
from raycap.bulk.pool import (
    Place,
    decoding_need,
    gpus_per_worker,
    provide_model_nodes,
    worker_places,
)
from raycap.bulk.work import ChunkWorker, FinishedChunk, WorkOrder
from raycap.cluster.needs import MOST_PIECES, wait_for_nodes
from raycap.cluster.nodes import capacity, check_visible, has_free, selector
from raycap.cluster.session import find_user_error, root_cause
from raycap.errors import UserError
from raycap.terminal import write_err

# Ray runs a task again so often when its process or node is lost. From the second time on, each
# picture is read in a child process (see `pictures`).
RETRIES = 3
# Calls of a worker at one time: chunks, and questions about its progress.
MOST_CALLS = 12
TASKS_AT_ONCE = 32
# How often new nodes are looked for.
SECONDS_BETWEEN_HIRES = 10.0
# Ray takes some time to end the tasks of workers that have ended.
SECONDS_TO_FREE = 20.0


def reason_of(error: BaseException) -> str:
    """What was lost, in one line. What is no loss of a worker or node is raised: a UserError in a
    task as itself."""
    if not isinstance(error, RayError):
        raise error
    if user_error := find_user_error(error):
        raise user_error from error
    return root_cause(error)


class RayCrew:
    """Workers in actors."""

    def __init__(
        self, job: TableJob, order: WorkOrder, events: "queue.SimpleQueue[Any]", few: int | None
    ) -> None:
        """`few` is how many rows there are to do, if they are known to be few."""
        self.workers: list[Worker] = []
        self._job, self._events = job, events
        self._nodes = selector(job.cluster.decode_on)
        self._places: dict[Worker, Place] = {}
        self._order = [ray.put(order)]
        self._hire_after = 0.0
        options, cluster = job.options, job.cluster
        batches = MOST_PIECES if few is None else -(-few // options.batch)
        # If an autoscaler has to bring the nodes, wait for them.
        wait_for_nodes([decoding_need(cluster, batches)], cluster.wait)
        provide_model_nodes(options, cluster, options.actors or batches)
        if order.out.is_local:  # they must see the folder too
            check_visible({order.out.path(): "--out"})

    def close(self) -> None:
        for worker in list(self.workers):
            self.dismiss(worker)

    def hire(self, rows: int | None) -> None:
        """Start workers, at first and then wherever a new node has room. `rows` is how many are
        left, if that is known."""
        if time.monotonic() < self._hire_after:
            return
        is_first = self._hire_after == 0.0
        self._hire_after = time.monotonic() + SECONDS_BETWEEN_HIRES
        options, cluster = self._job.options, self._job.cluster
        batches = MOST_PIECES if rows is None else -(-rows // options.batch)
        try:
            places = worker_places(options, cluster, max(1, batches))
        except UserError:
            if is_first:
                raise
            return  # the last node of them has gone; others may come
        missing = Counter(places)
        missing.subtract(self._places.values())
        new = [place for place, count in missing.items() for _ in range(max(0, count))]
        new = new[: max(0, len(places) - len(self.workers))]
        if is_first:
            gpu = f", {new[0].gpus:g} GPU each" if new[0].gpus else ", on the processor"
            write_err(
                f"raycap: {len(new)} model actor(s) with {new[0].threads} thread(s){gpu}, "
                f"batches of {options.batch}\n"
            )
        cpus = capacity(cluster.decode_on).get("CPU", 1)
        lookahead = max(2, round(cpus / len(places))) + 1
        for place in new:
            self._start(place, lookahead)

    def _start(self, place: Place, lookahead: int) -> None:
        actor_class: Any = ray.remote(ChunkActor)
        actor = actor_class.options(
            num_cpus=0,
            num_gpus=place.gpus,
            max_restarts=0,
            max_concurrency=MOST_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        ).remote(self._order, place.threads, lookahead, self._nodes)
        worker = Worker(actor)
        self.workers.append(worker)
        self._places[worker] = place
        self._when_done(actor.ready.remote(), worker, None)

    def rest(self, seconds: float) -> None:
        """Start no worker for some time."""
        self._hire_after = time.monotonic() + seconds

    def dismiss(self, worker: Worker) -> None:
        """End a worker. What it was working on is not made."""
        if worker in self.workers:
            self.workers.remove(worker)
            del self._places[worker]
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
                self._events.put(Answered(worker, chunk, future.result()))
            except Exception as error:  # noqa: BLE001 - the run decides what to do about it
                self._events.put(Failed(worker, chunk, error))

        answer.future().add_done_callback(done)

    def finds_free_processors(self) -> bool:
        """Whether a task and a model could run now that the workers have ended. If they could,
        they ran and made nothing. If not, the processors are gone, or other work uses them."""
        options, cluster = self._job.options, self._job.cluster
        needs = [(cluster.decode_on, "CPU", 1.0)]
        if gpus := gpus_per_worker(options, cluster.model_on):
            needs.append((cluster.model_on, "GPU", gpus))
        end = time.monotonic() + SECONDS_TO_FREE
        while not all(has_free(*need) for need in needs):
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True


def run_in_tasks(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[Any]:
    """The answers of a function for all these arguments, in their order."""
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    left = iter(arguments)
    answers = collections.deque(
        task.remote(*some) for some in itertools.islice(left, TASKS_AT_ONCE)
    )
    while answers:
        yield ray.get(answers.popleft())
        answers.extend(task.remote(*some) for some in itertools.islice(left, 1))


class ChunkActor:
    """A worker in a process of its own."""

    def __init__(
        self, order: list[Any], threads: int, lookahead: int, nodes: dict[str, str] | None
    ) -> None:
        self._order, self._threads = order, threads
        self._lookahead, self._nodes = lookahead, nodes

    def ready(self) -> None:
        """Loads the model. Ray would not say which error ended `__init__`."""
        order: WorkOrder = ray.get(self._order[0])
        node = ray.get_runtime_context().get_node_id()[:8]
        name = f"{socket.gethostname()}/{node} {os.getpid()}"
        loader = TaskLoader(order, self._lookahead, self._nodes)
        self._worker = ChunkWorker(order, loader, self._threads, name)

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
        self._how = order.loading()
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
