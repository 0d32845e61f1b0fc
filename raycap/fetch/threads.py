"""Threads that make requests. Slow requests do not keep the others waiting."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from raycap.fetch.host_queue import HostQueue

T = TypeVar("T")

# A request that takes longer than this is slow.
SECONDS_TO_BE_SLOW = 0.5
MOST_SLOW = 1024
SECONDS_BETWEEN_LOOKS = 0.1
# Hosts of which the last quick answer is remembered.
MOST_HOSTS = 50_000


class RequestThreads(Generic[T]):
    """Threads that take items from a queue: up to `most`, and another one for each slow request.

    A host is slow while one of its requests is, and none that began later was quick. Requests to
    it are slow from their start: dead hosts, each asked for many pictures, keep no thread.

    `request` makes the request of one item. `waits_for_us` says of an item in progress that its
    server is not to blame for the time that it takes.
    """

    def __init__(
        self,
        items: HostQueue[T],
        most: int,
        request: Callable[[str, T], None],
        waits_for_us: Callable[[T], bool],
    ) -> None:
        self._items, self._most = items, most
        self._request, self._waits_for_us = request, waits_for_us
        self._lock = threading.Lock()
        self._threads = self._slow = 0
        self._in_progress: dict[int, tuple[float, str, T]] = {}  # by thread
        self._last_quick: dict[str, float] = {}  # by host: when a quick request ended
        self._slow_hosts: set[str] = set()
        self._watch: threading.Thread | None = None

    def start(self, wanted: int) -> None:
        """Have threads for so many items."""
        with self._lock:
            while self._threads < min(wanted, self._most) + self._slow:
                self._start_one()
            if self._watch is None and self._threads >= self._most:
                self._watch = threading.Thread(
                    target=self._look_for_slow_ones, daemon=True, name="raycap-fetch-watch"
                )
                self._watch.start()

    def _start_one(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, daemon=True, name="raycap-fetch").start()

    def _work(self) -> None:
        """What one thread does until the queue is closed, or until there are too many threads."""
        me = threading.get_ident()
        while (taken := self._items.take()) is not None:
            host, item = taken
            began = time.monotonic()
            self._in_progress[me] = (began, host, item)
            if host in self._slow_hosts:
                self._replace_this_thread()
            try:
                self._request(host, item)
            finally:
                del self._in_progress[me]
                self._note_end(host, began)
                self._items.done(host)
            del taken, item  # keeps no reference to the fetcher while it waits
            with self._lock:
                if self._threads > self._most + self._slow:
                    self._threads -= 1
                    return

    def _replace_this_thread(self) -> None:
        """Start a thread for requests to other hosts."""
        with self._lock:
            if self._slow < MOST_SLOW:
                self._slow += 1  # until the next look
                if self._threads < self._most + self._slow:
                    self._start_one()

    def _note_end(self, host: str, began: float) -> None:
        now = time.monotonic()
        if host and now - began < SECONDS_TO_BE_SLOW:
            if len(self._last_quick) >= MOST_HOSTS:
                self._last_quick.clear()
            self._last_quick[host] = now

    def _look_for_slow_ones(self) -> None:
        while not self._items.is_closed:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            slow = self._count_slow()
            with self._lock:
                self._slow = min(slow, MOST_SLOW)
                # As many as are slow are missing; `_work` ends those that are too many later.
                while self._slow and self._threads < self._most + self._slow:
                    self._start_one()

    def _count_slow(self) -> int:
        """How many requests are slow now. Finds the slow hosts too."""
        now = time.monotonic()
        theirs = [
            (began, host)
            for began, host, item in list(self._in_progress.values())
            if not self._waits_for_us(item)
        ]
        self._slow_hosts = {
            host
            for began, host in theirs
            if host
            and now - began > SECONDS_TO_BE_SLOW
            and self._last_quick.get(host, 0.0) < began
        }
        return sum(
            now - began > SECONDS_TO_BE_SLOW or host in self._slow_hosts for began, host in theirs
        )
