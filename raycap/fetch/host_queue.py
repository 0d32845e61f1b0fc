"""Whose turn is it: lines of work before hosts, each with a limit and a rate; knows nothing of what the work is."""

import heapq
import itertools
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class _Line(Generic[T]):
    """Those who wait for one host."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: deque[T] = deque()
        self.active = 0
        self.not_before = 0.0  # on the monotonic clock: when its rate lets the next one start
        self.listed = False  # among the open lines or in the calendar


class HostQueue(Generic[T]):
    """A queue whose workers never wait for one host while another has work that may start.

    At most `per_host` items of a host are out at a time, at most `host_rate` a second start (0 for no limit), and
    the hosts take turns. The host "" has no limits. Who waits on purpose (a back-off) holds no worker either.
    """

    def __init__(self, per_host: int, host_rate: float) -> None:
        self._per_host = per_host
        self._pause = 1 / host_rate if host_rate else 0.0
        self._changed = threading.Condition()
        self._lines: dict[
            str, _Line[T]
        ] = {}  # only those with something waiting, out, or a rate still to keep
        self._open: deque[_Line[T]] = deque()  # lines whose first may start at once
        self._calendar: list[
            tuple[float, int, str, T | None]
        ] = []  # a heap of (when, number, host, who comes then)
        self._number = itertools.count()
        self._closed = False

    def put(self, host: str, item: T, wait: float = 0.0) -> bool:
        """Line `item` up for `host` in `wait` seconds; False once closed."""
        with self._changed:
            if self._closed:
                return False
            if wait > 0:
                self._note(time.monotonic() + wait, host, item)
            else:
                self._join(host, item)
            self._changed.notify()
            return True

    def take(self) -> tuple[str, T] | None:
        """The next item and its host, as soon as one may start; None once closed. `done` must follow."""
        with self._changed:
            while not self._closed:
                next_event = self._run_calendar()
                if self._open:
                    line = self._open.popleft()
                    line.listed = False
                    item = line.waiting.popleft()
                    line.active += 1
                    line.not_before = time.monotonic() + (self._pause if line.host else 0.0)
                    self._list(line)
                    if self._open:
                        self._changed.notify()
                    return line.host, item
                self._changed.wait(next_event)
            return None

    def done(self, host: str) -> None:
        """Give the place at `host` back."""
        with self._changed:
            line = self._lines[host]
            line.active -= 1
            self._list(line)
            self._changed.notify()

    def close(self) -> list[T]:
        """Send all workers home; returns those who still waited."""
        with self._changed:
            self._closed = True
            left = [item for _, _, _, item in self._calendar if item is not None]
            for line in self._lines.values():
                left += line.waiting
                line.waiting.clear()
            self._calendar.clear()
            self._changed.notify_all()
            return left

    def _join(self, host: str, item: T) -> None:
        line = self._lines.setdefault(host, _Line(host))
        line.waiting.append(item)
        self._list(line)

    def _list(self, line: _Line[T]) -> None:
        """Put the line where it belongs: open, in the calendar, or away."""
        if line.listed:
            return
        if line.not_before > time.monotonic():
            line.listed = True
            self._note(line.not_before, line.host, None)
        elif line.waiting and (line.active < self._per_host or not line.host):
            line.listed = True
            self._open.append(line)
        elif not line.waiting and not line.active:
            self._lines.pop(line.host, None)

    def _note(self, when: float, host: str, item: T | None) -> None:
        heapq.heappush(self._calendar, (when, next(self._number), host, item))

    def _run_calendar(self) -> float | None:
        """Do what is due; returns the seconds until the next entry, None if there is none."""
        while self._calendar:
            wait = self._calendar[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, host, item = heapq.heappop(self._calendar)
            if item is not None:
                self._join(host, item)
            else:
                line = self._lines[host]
                line.listed = False
                self._list(line)
        return None
