"""Loaders: they turn the manifest rows of many chunks into loaded pictures, in the order in which
the pictures arrive."""

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from raycap.bulk.bodies import pack
from raycap.bulk.pictures import load_table
from raycap.fetch import Download, Fetch, Fetched, Fetcher, Trust
from raycap.fetch.budget import MemoryBudget
from raycap.images.guard import read_in_child
from raycap.uris import is_web

# Of bodies that wait to be decoded, in one process that fetches.
BYTES_OF_BODIES = 128 * 2**20
# Rows that one of several threads decodes at a time.
ROWS_OF_A_THREAD = 16


class RowPlace(NamedTuple):
    """A row of a chunk that is in work."""

    work: int  # the number that the worker gave the chunk
    row: int


@dataclass(frozen=True)
class Loaded:
    """Some rows of any chunks."""

    places: Sequence[RowPlace]
    table: pa.Table


class Loader(Protocol):
    """Fetches and decodes pictures."""

    def add(self, work: int, rows: pa.Table) -> None:
        """Begin to load the rows of a chunk."""

    def next(self, seconds: float | None) -> Loaded | None:
        """The rows that are loaded next, each row once; None if there are none in time."""

    def forget(self, work: int) -> None:
        """All rows of this chunk are loaded."""

    def stop(self) -> None:
        """What is not begun is not loaded any more; `next` returns None."""

    @property
    def rows_waiting(self) -> int:
        """Rows that only wait for a server, and keep nothing busy."""


def web_rows(rows: pa.Table) -> list[bool]:
    """Which rows are fetched from the web."""
    columns = (rows["uri"].to_pylist(), rows["embedded"].to_pylist(), rows["error"].to_pylist())
    return [
        is_web(uri or "") and not (embedded or error)
        for uri, embedded, error in zip(*columns, strict=True)
    ]


class LocalLoader:
    """Loads pictures in this process: its fetcher has threads, and a few more threads decode, each
    one table ahead of the model. Each decodes in a child process: a picture that kills its decoder
    must not end the run."""

    def __init__(self, how: dict[str, Any], batch: int, threads: int = 1) -> None:
        self._how = {**how, "read": read_in_child}
        self._batch = batch if threads == 1 else min(batch, ROWS_OF_A_THREAD)
        self._fetch: Fetch = how["fetch"]
        self._trust: Trust = how["trust"]
        self._fetcher: Fetcher | None = None
        self._budget = MemoryBudget(BYTES_OF_BODIES)
        # What is to be decoded: slices of chunks, and pictures that have arrived.
        self._parts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._rows: dict[int, pa.Table] = {}
        self._loaded: queue.Queue[Loaded | BaseException | None] = queue.Queue(threads)
        self._waiting = 0
        self._threads = threads  # that decode
        self._lock = threading.Lock()
        self._is_stopped = False
        for _ in range(threads):
            threading.Thread(target=self._decode_all, daemon=True, name="load").start()

    @property
    def rows_waiting(self) -> int:
        return self._waiting

    def add(self, work: int, rows: pa.Table) -> None:
        web = np.array(web_rows(rows), bool)
        self._rows[work] = rows
        here, there = np.flatnonzero(~web), np.flatnonzero(web)
        for start in range(0, len(here), self._batch):
            part = here[start : start + self._batch].tolist()
            self._parts.put([RowPlace(work, row) for row in part])
        if len(there):
            places = [RowPlace(work, row) for row in there.tolist()]
            self._start_fetching(places, rows["uri"].take(there).to_pylist())

    def _start_fetching(self, places: list[RowPlace], uris: list[str]) -> None:
        fetcher = self._fetcher = self._fetcher or Fetcher(self._fetch, self._trust)
        with self._lock:
            self._waiting += len(places)

        def done(index: int, download: Download) -> None:
            with self._lock:
                self._waiting -= 1
            self._parts.put((places[index], download))

        fetcher.begin([fetcher.first(uri) for uri in uris], self._budget, done)

    def next(self, seconds: float | None) -> Loaded | None:
        try:
            loaded = self._loaded.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(loaded, BaseException):
            raise loaded
        if loaded is None:
            self._loaded.put(None)  # it stays stopped
        return loaded

    def forget(self, work: int) -> None:
        self._rows.pop(work, None)

    def stop(self) -> None:
        self._is_stopped = True
        self._parts.put(None)

    def _decode_all(self) -> None:
        ahead: deque[Any] = deque()
        try:
            while not self._is_stopped:
                part = ahead.popleft() if ahead else self._parts.get()
                if isinstance(part, list):
                    self._loaded.put(Loaded(part, self._load(part)))
                    continue
                arrived = [part]
                while len(arrived) < self._batch and not self._parts.empty():
                    part = self._parts.get()
                    (ahead if isinstance(part, list) or part is None else arrived).append(part)
                if None not in arrived:
                    self._decode_arrived(arrived)
                del part, arrived
        except BaseException as error:  # noqa: BLE001 - raised again where the rows are wanted
            self._loaded.put(error)
            self._is_stopped = True
        self._parts.put(None)  # for the other threads
        with self._lock:
            self._threads -= 1
            is_last = not self._threads
        if is_last:
            if self._fetcher:
                self._fetcher.close()
            self._loaded.put(None)

    def _decode_arrived(self, arrived: list[tuple[RowPlace, Download]]) -> None:
        places = [place for place, _ in arrived]
        fetched: list[Fetched] = [download.result.result() for _, download in arrived]
        table = self._load(places, pack(range(len(fetched)), fetched))
        for _, download in arrived:
            download.release()
        self._loaded.put(Loaded(places, table))

    def _load(self, places: list[RowPlace], bodies: pa.Table | None = None) -> pa.Table:
        return load_table(rows_at(self._rows, places), **self._how, bodies=bodies)


def rows_at(rows: dict[int, pa.Table], places: Sequence[RowPlace]) -> pa.Table:
    """These rows of several chunks."""
    first = places[0]
    if all(place == (first.work, first.row + number) for number, place in enumerate(places)):
        return rows[first.work].slice(first.row, len(places))
    groups: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(place.work, []).append(number)
    if len(groups) == 1:
        return rows[first.work].take([place.row for place in places])
    # Columns of the user's own may have one type in one shard and another in the next.
    taken = pa.concat_tables(
        [
            rows[work].take([places[number].row for number in numbers])
            for work, numbers in groups.items()
        ],
        promote_options="permissive",
    )
    order = np.argsort(np.concatenate([np.array(numbers) for numbers in groups.values()]))
    return taken.take(order)
