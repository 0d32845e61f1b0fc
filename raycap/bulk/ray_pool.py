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
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.bulk.fetch_actor import NO_FETCHERS, Fetchers, count_fetchers, start_fetchers
from raycap.bulk.job import TableJob
from raycap.bulk.placement import (
    Place,
    decoding_need,
    gpus_per_worker,
    provide_model_nodes,
    worker_places,
)
from raycap.bulk.plan import Chunk
from raycap.bulk.ray_loader import RETRIES, RayLoader
from raycap.bulk.work import ChunkWorker, FinishedChunk, WorkerProgress, WorkOrder
from raycap.bulk.worker_pool import MOST_CHUNKS, Answered, Failed, Worker
from raycap.cluster.needs import MOST_PIECES, wait_for_nodes
from raycap.cluster.nodes import capacity, check_visible, draining_nodes, has_free, selector
from raycap.cluster.session import find_user_error, root_cause
from raycap.errors import UserError
from raycap.terminal import write_err
from raycap.uris import is_local

# Calls of a worker at one time: chunks, and questions about its progress.
MOST_CALLS = MOST_CHUNKS + 4
TASKS_AT_ONCE = 32
# Fetching actors are replaced when there should be this many times as many.
GROWTH = 2
# How often new nodes are looked for.
SECONDS_BETWEEN_STARTS = 10.0
# A worker says how far it is when half of what it had is done, or after some time.
SECONDS_BETWEEN_ANSWERS, SECONDS_BETWEEN_LOOKS = 1.0, 0.05
# How often nodes are looked for that will be taken away. A notice may be 30 seconds long.
SECONDS_BETWEEN_NOTICES = 1.0
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


class RayPool:
    """Workers in actors."""

    def __init__(
        self, job: TableJob, order: WorkOrder, events: "queue.SimpleQueue[Any]", few: int | None
    ) -> None:
        """`few` is how many rows there are to do, if they are known to be few."""
        self.workers: list[Worker] = []
        self._job, self._events = job, events
        self._nodes = selector(job.cluster.decode_on)
        self._places: dict[Worker, Place] = {}
        self._order, self._how = [ray.put(order)], order.loading()
        self._start_after = self._notices_after = 0.0
        options, cluster = job.options, job.cluster
        batches = MOST_PIECES if few is None else -(-few // options.batch_size)
        # If an autoscaler has to bring the nodes, wait for them.
        wait_for_nodes([decoding_need(cluster, batches)], cluster.wait)
        provide_model_nodes(options, cluster, options.actors or batches)
        self._fetchers = NO_FETCHERS
        if order.source.names_urls or not is_local(order.source.path):
            self._fetchers = start_fetchers(self._how, cluster.decode_on, self._nodes)
        if order.out.is_local:  # they must see the folder too
            check_visible({order.out.path(): "--out"})

    def close(self) -> None:
        for worker in list(self.workers):
            self.stop_worker(worker)
        for fetcher in self._fetchers.actors:
            ray.kill(fetcher)

    def start_workers(self, rows: int | None) -> None:
        """Start workers, at first and then wherever a new node has room. `rows` is how many are
        left, if that is known."""
        self._leave_draining_nodes()
        if time.monotonic() < self._start_after:
            return
        is_first = self._start_after == 0.0
        self._start_after = time.monotonic() + SECONDS_BETWEEN_STARTS
        self._use_new_nodes()
        options, cluster = self._job.options, self._job.cluster
        batches = MOST_PIECES if rows is None else -(-rows // options.batch_size)
        try:
            places = worker_places(options, cluster, max(1, batches))
        except UserError:
            if is_first:
                raise
            return  # the last node of them has gone; others may come
        missing = Counter(places)
        missing.subtract(self._places.values())
        new = [place for place, count in missing.items() for _ in range(max(0, count))]
        staying = sum(not worker.is_leaving for worker in self.workers)
        new = new[: max(0, len(places) - staying)]
        if is_first:
            gpu = f", {new[0].gpus:g} GPU each" if new[0].gpus else ", on the processor"
            write_err(
                f"raycap: {len(new)} model actor(s) with {new[0].threads} thread(s){gpu}, "
                f"batches of {options.batch_size}\n"
            )
        cpus = capacity(cluster.decode_on).get("CPU", 1)
        lookahead = max(2, round(cpus / len(places))) + 1
        for place in new:
            self._start(place, lookahead)

    def _start(self, place: Place, lookahead: int) -> None:
        actor_class: Any = ray.remote(ChunkActor)
        name = uuid.uuid4().hex
        actor = actor_class.options(
            num_cpus=0,
            num_gpus=place.gpus,
            max_restarts=0,
            max_concurrency=MOST_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        ).remote(self._order, place.threads, lookahead, self._nodes, name, self._fetchers)
        worker = Worker(actor, name)
        self.workers.append(worker)
        self._places[worker] = place
        self._when_done(actor.ready.remote(), worker, None)

    def _use_new_nodes(self) -> None:
        """Tell workers how many processors decode now. When the cluster has grown so much, start
        more fetching actors. Each host then has another one: the old ones have to end before, and
        what they were asked for is asked again."""
        fetchers, label = self._fetchers, self._job.cluster.decode_on
        if not fetchers.actors:
            return
        count, cpus = count_fetchers(label)
        if cpus == fetchers.cpus:
            return
        if count < GROWTH * len(fetchers.actors):
            self._fetchers = replace(fetchers, cpus=cpus)
        else:
            fetchers.end()
            number = fetchers.generation + 1
            self._fetchers = start_fetchers(self._how, label, self._nodes, number)
        for worker in self.workers:
            worker.actor.use_fetchers.remote(self._fetchers)

    def _leave_draining_nodes(self) -> None:
        """Workers on nodes that will be taken away get no new chunks. They finish those that they
        have, if there is time, and end; new ones are started elsewhere."""
        if time.monotonic() < self._notices_after:
            return
        self._notices_after = time.monotonic() + SECONDS_BETWEEN_NOTICES
        draining = draining_nodes()
        for worker in list(self.workers):
            if not worker.is_leaving and self._places[worker].node in draining:
                worker.is_leaving = True
                self._start_after = time.monotonic()  # without a wait
            if worker.is_leaving and not worker.chunks:
                self.stop_worker(worker)

    def pause(self, seconds: float) -> None:
        """Start no worker for some time."""
        self._start_after = time.monotonic() + seconds

    def stop_worker(self, worker: Worker) -> None:
        """End a worker. What it was working on is not made."""
        if worker in self.workers:
            self.workers.remove(worker)
            del self._places[worker]
        worker.chunks.clear()
        ray.kill(worker.actor)
        for fetcher in self._fetchers.actors:
            fetcher.forget.remote(worker.name)

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)
        self._when_done(worker.actor.make.remote(chunk), worker, chunk)

    def ask_progress(self) -> None:
        """Ask workers how far they are."""
        for worker in self.workers:
            if worker.is_ready and worker.chunks and not worker.is_asked:
                worker.is_asked = True
                self._when_done(worker.actor.progress.remote(), worker, None)

    def _when_done(self, answer: Any, worker: Worker, chunk: Chunk | None) -> None:
        def done(future: Any) -> None:
            try:
                self._events.put(Answered(worker, chunk, future.result()))
            except Exception as error:  # noqa: BLE001 - the run decides what to do about it
                self._events.put(Failed(worker, chunk, error))

        answer.future().add_done_callback(done)

    def has_free_processors(self) -> bool:
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
        self,
        order: list[Any],
        threads: int,
        lookahead: int,
        nodes: dict[str, str] | None,
        name: str,
        fetchers: Fetchers,
    ) -> None:
        self._order, self._threads = order, threads
        self._lookahead, self._nodes = lookahead, nodes
        self._name, self._fetchers = name, fetchers
        self._loader: RayLoader | None = None
        self._lock = threading.Lock()

    def ready(self) -> None:
        """Loads the model. Ray would not say which error ended `__init__`."""
        order: WorkOrder = ray.get(self._order[0])
        node = ray.get_runtime_context().get_node_id()[:8]
        name = f"{socket.gethostname()}/{node} {os.getpid()}"
        with self._lock:
            loader = self._loader = RayLoader(
                self._name,
                order.loading(),
                order.rows_per_task,
                self._lookahead,
                self._fetchers,
                self._nodes,
            )
        self._worker = ChunkWorker(order, loader, self._threads, name)

    def use_fetchers(self, fetchers: Fetchers) -> None:
        with self._lock:
            self._fetchers = fetchers
            if self._loader is not None:
                self._loader.use_fetchers(fetchers)

    def make(self, chunk: Chunk) -> FinishedChunk:
        return self._worker.make(chunk)

    def progress(self) -> WorkerProgress:
        """How far it is, when it could begin something new, or after some time."""
        at_first = self._worker.progress()
        end = time.monotonic() + SECONDS_BETWEEN_ANSWERS
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = self._worker.progress()
            done = now.rows_done - at_first.rows_done
            if done >= now.rows_to_do or time.monotonic() > end:
                return now
