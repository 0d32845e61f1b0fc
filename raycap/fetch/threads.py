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


class RequestThreads(Generic[T]):
    """Threads that take items from a queue: up to `most`, and another one for each slow request.

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
        self._in_progress: dict[int, tuple[float, T]] = {}  # by thread
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
            self._in_progress[me] = (time.monotonic(), item)
            try:
                self._request(host, item)
            finally:
                del self._in_progress[me]
                self._items.done(host)
            del taken, item  # keeps no reference to the fetcher while it waits
            with self._lock:
                if self._threads > self._most + self._slow:
                    self._threads -= 1
                    return

    def _look_for_slow_ones(self) -> None:
        while not self._items.is_closed:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = time.monotonic()
            slow = 0
            for since, item in list(self._in_progress.values()):
                slow += now - since > SECONDS_TO_BE_SLOW and not self._waits_for_us(item)
            item = None  # type: ignore[assignment] # keeps no reference while it waits
            with self._lock:
                self._slow = min(slow, MOST_SLOW)
                # As many as are slow are missing; `_work` ends those that are too many later.
                while self._slow and self._threads < self._most + self._slow:
                    self._start_one()
