"""Processes that fetch pictures from the web for all workers of a job.

Each host is asked by one of them, always the same, so its limits hold for the whole job. They hold
no logical processor: a request that waits keeps none busy. Workers say what they want (`add`) and
take what has arrived (`take`).
"""

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from collections import deque
from typing import Any

import pyarrow as pa
import ray

from raycap.bulk.bodies import pack
from raycap.bulk.loading import BYTES_OF_BODIES
from raycap.cluster.autoscaler import has_autoscaler
from raycap.cluster.nodes import capacity
from raycap.fetch import Download, Fetch, Fetched, Fetcher, Trust, Unfinished
from raycap.fetch.budget import MemoryBudget

# One process fetches for so many processors that decode.
CPUS_PER_FETCHER = 4
MOST_FETCHERS = 64
FETCHERS_OF_GROWING_CLUSTERS = 8
# Pictures that have arrived are given out when there are enough of them, or after a short time:
# a task that decodes few of them costs as much as its pictures.
BYTES_PER_TAKE = 16 * 2**20
SECONDS_TO_GATHER = 0.5
SECONDS_TO_BE_ASKED, SECONDS_BETWEEN_LOOKS = 5.0, 0.01


def start_fetchers(fetch: Fetch, trust: Trust, label: str, nodes: dict[str, str] | None) -> Any:
    """The fetching actors of a job, spread over the nodes that decode. Their number stays the
    same: a host then never has two of them. Ray starts one that is lost on another node."""
    cpus = capacity(label).get("CPU", 1.0)
    least = FETCHERS_OF_GROWING_CLUSTERS if has_autoscaler() else 1
    count = max(least, min(MOST_FETCHERS, int(cpus // CPUS_PER_FETCHER)))
    actor: Any = ray.remote(FetchActor)
    options = actor.options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=10_000,
        scheduling_strategy="SPREAD",
        label_selector=nodes or {},
    )
    return [options.remote(fetch, trust, number, count) for number in range(count)]


class _Desk:
    """What one worker wants and has not taken. Threads that fetch bring it here, and wake the
    event loop only when there is something to give out: else it would wake for each picture."""

    def __init__(self) -> None:
        self.unfinished: dict[int, Download | None] = {}
        self.arrived: deque[tuple[int, Download]] = deque()
        self.bytes = 0  # that have arrived
        self.is_closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        # Set when so many rows have arrived, or as many as a `take` can have.
        self._rows_awaited = 0
        self._is_enough = asyncio.Event()

    def want(
        self, wanted: list[tuple[int, Unfinished]], fetcher: Fetcher, budget: MemoryBudget
    ) -> None:
        """Begin to fetch. What is on its way already is not begun again."""
        with self._lock:
            known = {*self.unfinished, *(number for number, _ in self.arrived)}
            new = [(number, start) for number, start in wanted if number not in known]
            self.unfinished.update(dict.fromkeys(number for number, _ in new))

        def done(index: int, download: Download) -> None:
            self.arrive(new[index][0], download)

        begun = fetcher.begin([start for _, start in new], budget, done)
        with self._lock:
            for (number, _), download in zip(new, begun, strict=True):
                if number in self.unfinished:  # it may have arrived already
                    self.unfinished[number] = download

    def arrive(self, number: int, download: Download) -> None:
        """Called by the threads that fetch."""
        with self._lock:
            if self.is_closed:
                download.release()
                return
            self.arrived.append((number, download))
            self.bytes += len(download.result.result().data)
            self.unfinished.pop(number, None)
            wakes = bool(self._rows_awaited) and self._has(self._rows_awaited)
            if wakes:
                self._rows_awaited = 0
        if wakes:
            self._loop.call_soon_threadsafe(self._is_enough.set)

    async def wait_for(self, rows: int, seconds: float | None) -> None:
        """Wait until so many rows have arrived, or 16 MB, or all there are."""
        with self._lock:
            self._is_enough.clear()
            if self.is_closed or self._has(rows):
                return
            self._rows_awaited = rows
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_enough.wait(), seconds)

    def _has(self, rows: int) -> bool:
        if self.arrived and not self.unfinished:
            return True
        return len(self.arrived) >= rows or self.bytes >= BYTES_PER_TAKE

    def give_out(self, rows: int) -> list[tuple[int, Download]]:
        """Up to so many of what has arrived, and about 16 MB."""
        given: list[tuple[int, Download]] = []
        size = 0
        with self._lock:
            while self.arrived and len(given) < rows and size < BYTES_PER_TAKE:
                given.append(self.arrived.popleft())
                size += len(given[-1][1].result.result().data)
            self.bytes -= size
        return given

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            for download in self.unfinished.values():
                if download is not None:
                    download.is_wanted = False
            # A `take` of the lost worker may still wait here. It must find nothing.
            while self.arrived:
                self.arrived.popleft()[1].release()
        self._is_enough.set()


class FetchActor:
    """Fetches from some hosts. Actor number `number` of `count`."""

    def __init__(self, fetch: Fetch, trust: Trust, number: int, count: int) -> None:
        from raycap.fetch.owners import owner_of_host

        owns = functools.partial(_is_owner, owner_of_host, number, count)
        self._fetcher = Fetcher(fetch, trust, owns)
        self._budget = MemoryBudget(BYTES_OF_BODIES)
        self._desks: dict[str, _Desk] = {}
        self._life = uuid.uuid4().hex

    async def add(self, worker: str, wanted: list[tuple[int, Unfinished]]) -> None:
        """Begin to fetch."""
        desk = self._desks.get(worker)
        if desk is None:
            desk = self._desks[worker] = _Desk()
        desk.want(wanted, self._fetcher, self._budget)

    async def take(
        self, worker: str, rows: int
    ) -> tuple[tuple[str, list[int], list[tuple[int, Unfinished]]], pa.Table]:
        """Up to so many pictures, when some have arrived: which life of this actor it is, their
        numbers, those with which another fetcher has to go on, and the bodies."""
        end = time.monotonic() + SECONDS_TO_BE_ASKED
        while worker not in self._desks and time.monotonic() < end:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)  # calls may overtake each other
        desk = self._desks.get(worker)
        if desk is None:  # this process is new, and knows nothing of what the worker wants
            raise LookupError(worker)
        await desk.wait_for(1, None)
        await desk.wait_for(rows, SECONDS_TO_GATHER)
        numbers: list[int] = []
        pictures: list[Fetched] = []
        elsewhere: list[tuple[int, Unfinished]] = []
        given = desk.give_out(rows)
        for number, download in given:
            picture = download.result.result()
            if picture.rest:
                elsewhere.append((number, picture.rest))
            else:
                numbers.append(number)
                pictures.append(picture)
        bodies = pack(numbers, pictures)
        for _, download in given:
            download.release()
        return (self._life, numbers, elsewhere), bodies

    async def forget(self, worker: str) -> None:
        """A worker has ended."""
        desk = self._desks.pop(worker, None)
        if desk is not None:
            desk.close()


def _is_owner(owner_of_host: Any, number: int, count: int, host: str) -> bool:
    return bool(owner_of_host(host, count) == number)
