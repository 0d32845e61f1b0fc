"""Processes that fetch pictures from the web for all workers of a job, and decode them.

Each host is asked by one of them, always the same, so its limits hold for the whole job. They hold
no logical processor: a request that waits keeps none busy. Workers say what they want (`add`) and
get what has arrived: decoded by children of this process (`load`), so that bodies do not travel,
or as it is, for a task that decodes it elsewhere (`take`).
"""

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from raycap.bulk.bodies import pack
from raycap.bulk.loading import BYTES_OF_BODIES
from raycap.bulk.pictures import LoadedRows
from raycap.cluster.nodes import capacity
from raycap.fetch import Download, Fetch, Fetcher, Trust, Unfinished
from raycap.fetch.budget import MemoryBudget
from raycap.images import Intake, Reading
from raycap.images.guard import PICTURES_TOGETHER
from raycap.images.loading import read_fetched

# One process fetches, and decodes, for so many processors.
CPUS_PER_FETCHER = 4
MOST_FETCHERS = 64
# Pictures that have arrived are given out when there are enough of them, or after a short time:
# an answer with few of them costs as much as its pictures.
BYTES_PER_TAKE = 16 * 2**20
SECONDS_TO_GATHER = 0.5
SECONDS_TO_BE_ASKED, SECONDS_BETWEEN_LOOKS = 5.0, 0.01
SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class Fetchers:
    """The fetching actors of a job, spread over the nodes that decode. Each host belongs to one of
    them. Ray starts one that is lost on another node."""

    actors: list[Any]
    decoders: int  # children of each one
    cpus: int  # of all nodes that decode
    generation: int = 0  # others that take the place of these have a higher one

    def end(self) -> None:
        """Returns when no process of them asks any host: their successors may begin."""
        for actor in self.actors:
            ray.kill(actor)
        end = time.monotonic() + SECONDS_TO_END
        for actor in self.actors:
            with contextlib.suppress(RayError):  # it answers no more
                while time.monotonic() < end:
                    ray.get(actor.forget.remote(""), timeout=SECONDS_TO_END)


NO_FETCHERS = Fetchers([], 0, 0)


def count_fetchers(label: str) -> tuple[int, int]:
    """How many fetching actors the nodes with the label should have, and their processors."""
    cpus = max(1, int(capacity(label).get("CPU", 1)))
    return max(1, min(MOST_FETCHERS, cpus // CPUS_PER_FETCHER)), cpus


def start_fetchers(
    how: dict[str, Any], label: str, nodes: dict[str, str] | None, generation: int = 0
) -> Fetchers:
    """`how` says how pictures are loaded."""
    count, cpus = count_fetchers(label)
    decoders = -(-cpus // count)
    actor: Any = ray.remote(FetchActor)
    options = actor.options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=10_000,
        scheduling_strategy="SPREAD",
        label_selector=nodes or {},
    )
    how = {name: how[name] for name in ("fetch", "trust", "reading", "intake")}
    actors = [options.remote(number, count, decoders, **how) for number in range(count)]
    return Fetchers(actors, decoders, cpus, generation)


@dataclass(frozen=True)
class FetchAnswer:
    """Which rows come with it."""

    life: str  # of the actor: it has another one after it was started again
    numbers: list[int]
    elsewhere: list[tuple[int, Unfinished]]  # with these another fetcher has to go on
    behind: int = 0  # other rows that have arrived and are not given out yet


class _Desk:
    """What one worker wants and has not taken. Threads that fetch bring it here, and wake the
    event loop only when there is something to give out: else it would wake for each picture."""

    def __init__(self) -> None:
        self.unfinished: dict[int, Download | None] = {}
        self.arrived: deque[tuple[int, Download]] = deque()
        self.bytes = 0  # that have arrived
        self.is_closed = False
        self.turn = asyncio.Lock()  # of calls that wait for what arrives
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

    def __init__(
        self,
        number: int,
        count: int,
        decoders: int,
        fetch: Fetch,
        trust: Trust,
        reading: Reading,
        intake: Intake,
    ) -> None:
        from raycap.fetch.owners import owner_of_host

        owns = functools.partial(_is_owner, owner_of_host, number, count)
        self._fetcher = Fetcher(fetch, trust, owns)
        self._budget = MemoryBudget(BYTES_OF_BODIES)
        self._desks: dict[str, _Desk] = {}
        self._life = uuid.uuid4().hex
        self._reading, self._intake = reading, intake
        # Each thread has a child process that decodes.
        self._decoders = decoders
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    async def add(self, worker: str, wanted: list[tuple[int, Unfinished]]) -> None:
        """Begin to fetch."""
        desk = self._desks.get(worker)
        if desk is None:
            desk = self._desks[worker] = _Desk()
        desk.want(wanted, self._fetcher, self._budget)

    async def load(self, worker: str, rows: int) -> tuple[FetchAnswer, pa.Table]:
        """Up to so many pictures, decoded, when some have arrived."""
        answer, given = await self._arrived(worker, rows)
        loaded = LoadedRows(self._intake if given else None, len(given))
        together = min(PICTURES_TOGETHER, -(-len(given) // (2 * self._decoders)) or 1)
        loop = asyncio.get_running_loop()
        parts = [
            loop.run_in_executor(
                self._threads, self._decode, loaded, start, given[start : start + together]
            )
            for start in range(0, len(given), together)
        ]
        del given  # bodies are held no longer than they are needed
        await asyncio.gather(*parts)
        return answer, loaded.to_arrow()

    async def take(self, worker: str, rows: int) -> tuple[FetchAnswer, pa.Table]:
        """The same, as bodies."""
        answer, given = await self._arrived(worker, rows)
        bodies = pack(answer.numbers, [download.result.result() for download in given])
        for download in given:
            download.release()
        return answer, bodies

    async def _arrived(self, worker: str, rows: int) -> tuple[FetchAnswer, list[Download]]:
        end = time.monotonic() + SECONDS_TO_BE_ASKED
        while worker not in self._desks and time.monotonic() < end:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)  # calls may overtake each other
        desk = self._desks.get(worker)
        if desk is None:  # this process is new, and knows nothing of what the worker wants
            raise LookupError(worker)
        async with desk.turn:
            await desk.wait_for(1, None)
            await desk.wait_for(rows, SECONDS_TO_GATHER)
            given = desk.give_out(rows)
            behind = len(desk.arrived)
        numbers, elsewhere, downloads = [], [], []
        for number, download in given:
            if rest := download.result.result().rest:
                elsewhere.append((number, rest))
                download.release()
            else:
                numbers.append(number)
                downloads.append(download)
        return FetchAnswer(self._life, numbers, elsewhere, behind), downloads

    def _decode(self, loaded: LoadedRows, start: int, downloads: list[Download]) -> None:
        """Called by the threads that decode."""
        try:
            fetched = [download.result.result() for download in downloads]
            for row, picture in enumerate(read_fetched(fetched, self._reading, self._intake)):
                loaded.put(start + row, picture)
        finally:
            for download in downloads:
                download.release()

    async def forget(self, worker: str) -> None:
        """A worker has ended."""
        desk = self._desks.pop(worker, None)
        if desk is not None:
            desk.close()


def _is_owner(owner_of_host: Any, number: int, count: int, host: str) -> bool:
    return bool(owner_of_host(host, count) == number)
