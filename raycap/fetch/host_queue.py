"""A queue of work for hosts, with a limit of items in progress and a rate for each host."""

import heapq
import itertools
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a worker waits before it looks again whether the queue was stopped.
SECONDS_BETWEEN_LOOKS = 10.0


class _Host(Generic[T]):
    """The items that wait for one host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[T] = deque()
        self.in_progress = 0
        self.not_before = 0.0  # on the monotonic clock: when its rate lets the next item start
        self.scheduled = False  # in `_ready` or in `_timers`


class HostQueue(Generic[T]):
    """A queue whose workers never wait for one host while another has work that may start.

    At most `per_host` items of a host are in progress at a time, at most `host_rate` start in a
    second (0 for no limit), and hosts are served in rotation. The host "" has no limits. An item
    that waits before a retry occupies no worker.
    """

    def __init__(self, per_host: int, host_rate: float) -> None:
        self._per_host = per_host
        self._pause = 1 / host_rate if host_rate else 0.0
        self._changed = threading.Condition()
        # Only hosts with items waiting or in progress, or with a pause to keep.
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: deque[_Host[T]] = deque()  # hosts of which an item may start at once
        # A heap of (time, number, host, item). Without an item, the host's pause ends.
        self._timers: list[tuple[float, int, str, T | None]] = []
        self._number = itertools.count()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def put(self, host: str, item: T, wait: float = 0.0) -> bool:
        """Adds `item` for `host` in `wait` seconds; returns False if the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            if wait > 0:
                self._set_timer(time.monotonic() + wait, host, item)
            else:
                self._add(host, item)
            self._changed.notify()
            return True

    def take(self) -> tuple[str, T] | None:
        """Waits for an item that may start; returns it and its host, None if the queue is closed.

        `done` must be called when its work is finished.
        """
        with self._changed:
            while not self._closed:
                next_timer = self._run_timers()
                if self._ready:
                    host = self._ready.popleft()
                    host.scheduled = False
                    item = host.waiting.popleft()
                    host.in_progress += 1
                    host.not_before = time.monotonic() + (self._pause if host.name else 0.0)
                    self._schedule(host)
                    if self._ready:
                        self._changed.notify()
                    return host.name, item
                # The garbage collector may call `stop` in this very thread, right here: then
                # nothing would end a wait without limit.
                self._changed.wait(min(next_timer, SECONDS_BETWEEN_LOOKS))
            return None

    def done(self, host: str) -> None:
        """Says that one item of `host` is finished."""
        with self._changed:
            self._hosts[host].in_progress -= 1
            self._schedule(self._hosts[host])
            self._changed.notify()

    def pause(self, host: str, seconds: float) -> None:
        """Lets no item of `host` start for some time. Only while one of them is in progress."""
        with self._changed:
            held = self._hosts[host]
            held.not_before = max(held.not_before, time.monotonic() + seconds)

    def stop(self) -> None:
        """Lets `take` return None from now on; may be called by a finalizer, at any moment."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> list[T]:
        """Stops the queue; returns the items that still waited."""
        with self._changed:
            self.stop()
            left = [item for _, _, _, item in self._timers if item is not None]
            for host in self._hosts.values():
                left += host.waiting
                host.waiting.clear()
            self._timers.clear()
            return left

    def _add(self, name: str, item: T) -> None:
        host = self._hosts.setdefault(name, _Host(name))
        host.waiting.append(item)
        self._schedule(host)

    def _schedule(self, host: _Host[T]) -> None:
        """Makes the host ready, or sets a timer for it, or forgets it if nothing is left to do."""
        if host.scheduled:
            return
        if host.not_before > time.monotonic():
            host.scheduled = True
            self._set_timer(host.not_before, host.name, None)
        elif host.waiting and (host.in_progress < self._per_host or not host.name):
            host.scheduled = True
            self._ready.append(host)
        elif not host.waiting and not host.in_progress:
            self._hosts.pop(host.name, None)

    def _set_timer(self, when: float, host: str, item: T | None) -> None:
        heapq.heappush(self._timers, (when, next(self._number), host, item))

    def _run_timers(self) -> float:
        """Does what is due; returns the seconds until the next timer, infinity for none."""
        while self._timers:
            wait = self._timers[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, name, item = heapq.heappop(self._timers)
            if item is not None:
                self._add(name, item)
            else:
                self._hosts[name].scheduled = False
                self._schedule(self._hosts[name])
        return float("inf")
