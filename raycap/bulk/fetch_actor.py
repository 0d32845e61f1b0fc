"""Processes that fetch pictures from the web for all workers of a job.

Each host is asked by one of them, always the same, so its limits hold for the whole job. They hold
no logical processor: a request that waits keeps none busy. Workers say what they want (`add`) and
take what has arrived (`take`).
"""

import asyncio
import functools
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
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
# Pictures that have arrived are given out when there are enough of them, or after a short time.
BYTES_PER_TAKE = 16 * 2**20
SECONDS_TO_GATHER, SECONDS_BETWEEN_LOOKS = 0.1, 0.01
SECONDS_TO_BE_ASKED = 5.0


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


@dataclass
class _Desk:
    """What one worker wants and has not taken."""

    unfinished: dict[int, Download] = field(default_factory=dict)
    arrived: deque[tuple[int, Download]] = field(default_factory=deque)
    bytes: int = 0  # that have arrived
    something: asyncio.Event = field(default_factory=asyncio.Event)
    is_closed: bool = False

    def arrive(self, number: int, download: Download) -> None:
        if self.is_closed:
            download.release()
            return
        self.arrived.append((number, download))
        self.bytes += len(download.result.result().data)
        self.unfinished.pop(number, None)
        self.something.set()

    def is_enough(self, rows: int) -> bool:
        return len(self.arrived) >= rows or self.bytes >= BYTES_PER_TAKE or not self.unfinished


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
        """Begin to fetch. What is on its way already is not begun again."""
        desk = self._desks.setdefault(worker, _Desk())
        known = {*desk.unfinished, *(number for number, _ in desk.arrived)}
        new = [(number, start) for number, start in wanted if number not in known]
        loop = asyncio.get_running_loop()

        def done(index: int, download: Download) -> None:
            loop.call_soon_threadsafe(desk.arrive, new[index][0], download)

        downloads = self._fetcher.begin([start for _, start in new], self._budget, done)
        numbers = (number for number, _ in new)
        desk.unfinished.update(zip(numbers, downloads, strict=True))

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
        desk.something.clear()
        if not desk.arrived:
            await desk.something.wait()
        end = time.monotonic() + SECONDS_TO_GATHER
        while not desk.is_enough(rows) and time.monotonic() < end:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        numbers: list[int] = []
        pictures: list[Fetched] = []
        elsewhere: list[tuple[int, Unfinished]] = []
        taken: list[Download] = []
        size = 0
        while desk.arrived and len(numbers) < rows and size < BYTES_PER_TAKE:
            number, download = desk.arrived.popleft()
            picture = download.result.result()
            size += len(picture.data)
            taken.append(download)
            if picture.rest:
                elsewhere.append((number, picture.rest))
            else:
                numbers.append(number)
                pictures.append(picture)
        desk.bytes -= size
        bodies = pack(numbers, pictures)
        for download in taken:
            download.release()
        return (self._life, numbers, elsewhere), bodies

    async def forget(self, worker: str) -> None:
        """A worker has ended."""
        desk = self._desks.pop(worker, None)
        if desk is None:
            return
        desk.is_closed = True
        for download in desk.unfinished.values():
            download.is_wanted = False
        # A `take` of the lost worker may still wait here. It must find nothing.
        while desk.arrived:
            desk.arrived.popleft()[1].release()
        desk.something.set()


def _is_owner(owner_of_host: Any, number: int, count: int, host: str) -> bool:
    return bool(owner_of_host(host, count) == number)
