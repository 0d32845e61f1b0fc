"""The servers of one captioner: which of them takes the next request, and how many at a time.

Requests to a server that asks for fewer of them become fewer at once, and more again little by
little. A server that does not answer gets no requests until it answers again; others take them.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from raycap.captioners.endpoint.faults import Fault, Kind
from raycap.errors import UserError

# Requests at a time, after the server has asked for fewer, and after so many good answers as there
# are requests at a time.
DECREASE, INCREASE = 0.7, 1.1
LONGEST_PAUSE = 60.0
FIRST_PAUSE = 0.5
FAULTS_UNTIL_DOWN = 3
FIRST_CHECK, LONGEST_BETWEEN_CHECKS = 0.5, 15.0
# A few faults say nothing, however long ago the last good answer was.
FEWEST_FAULTS = 3


class Server:
    """One URL, as this worker knows it."""

    def __init__(self, url: str, most: int) -> None:
        self.url, self._most = url, most
        self.in_flight = 0
        self.limit = float(most)
        self.paused_until = float("-inf")
        self.is_down = False
        self.last_success = float("-inf")
        self._faults_in_row = self._pauses_in_row = 0
        self._decreased_at = float("-inf")

    def may_take(self, now: float) -> bool:
        return not self.is_down and now >= self.paused_until and self.in_flight < int(self.limit)

    def succeeded(self, now: float) -> None:
        self.last_success, self._faults_in_row, self._pauses_in_row = now, 0, 0
        self.limit = min(self._most, self.limit + (INCREASE - 1) * max(1.0, 10 / self.limit))

    def failed(self, fault: Fault, sent_at: float, now: float) -> None:
        """What a fault says about the server."""
        if fault.kind in (Kind.BUSY, Kind.LOST) and sent_at >= self._decreased_at:
            # Requests that were sent before the last decrease say nothing about the new limit.
            self.limit, self._decreased_at = max(1.0, self.limit * DECREASE), now
        if fault.kind is Kind.BUSY:
            self._faults_in_row = 0
            asked = FIRST_PAUSE * 2**self._pauses_in_row if fault.pause is None else fault.pause
            if sent_at >= self.paused_until:
                # Not all workers return at the same moment.
                self.paused_until = now + min(LONGEST_PAUSE, asked) * random.uniform(1, 1.2)
                self._pauses_in_row = min(10, self._pauses_in_row + 1)
        elif fault.kind in (Kind.LOST, Kind.UNREACHABLE):
            self._faults_in_row += 1
            if fault.kind is Kind.UNREACHABLE or self._faults_in_row >= FAULTS_UNTIL_DOWN:
                self.is_down, self._faults_in_row = True, 0
        else:
            self._faults_in_row = 0


class Servers:
    """All servers. `check` asks one whether it answers at all."""

    def __init__(
        self,
        urls: tuple[str, ...],
        most: int,
        patience: float,
        check: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.all = [Server(url, most) for url in urls]
        self._patience, self._check = patience, check
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._checks: set[asyncio.Task[None]] = set()
        self._trouble: tuple[float, int, str] | None = None  # since when, faults, the last one

    async def acquire(self, last: Server | None = None) -> Server:
        """Returns a server that may get a request now; rather not `last`, which has just failed.

        Raises UserError if no server has answered well for too long.
        """
        while True:
            now = time.monotonic()
            free = [server for server in self.all if server.may_take(now)]
            if free:
                loads = [(each is last, each.in_flight / each.limit, each) for each in free]
                server = min(loads, key=lambda load: load[:2])[2]
                server.in_flight += 1
                return server
            self._raise_if_hopeless(now)
            ends = [each.paused_until - now for each in self.all if each.paused_until > now]
            await self._wait(min([1.0, *ends]))

    def release(self, server: Server) -> None:
        """The request is over."""
        server.in_flight -= 1
        self._wake_one()

    def succeeded(self, server: Server) -> None:
        self._trouble = None
        server.succeeded(time.monotonic())

    def failed(self, server: Server, fault: Fault, sent_at: float) -> None:
        """Notes a fault. Raises UserError if no server has answered well for too long."""
        now, was_down = time.monotonic(), server.is_down
        server.failed(fault, sent_at, now)
        if server.is_down and not was_down:
            check = asyncio.ensure_future(self._check_until_up(server))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        since, faults = self._trouble[:2] if self._trouble else (now, 0)
        self._trouble = (since, faults + 1, fault.reason)
        self._raise_if_hopeless(now)

    def close(self) -> None:
        for check in self._checks:
            check.cancel()

    def _raise_if_hopeless(self, now: float) -> None:
        if self._trouble is None:
            return
        since, faults, reason = self._trouble
        if now - since > self._patience and faults >= FEWEST_FAULTS:
            raise UserError(
                f"{', '.join(server.url for server in self.all)}: no good answer for "
                f"{self._patience:g} seconds (--captioner.patience), at last: {reason}. Start the "
                "server, or wait until it has time; the same command then goes on where it stopped"
            )

    async def _check_until_up(self, server: Server) -> None:
        pause = FIRST_CHECK
        while True:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            if await self._check(server.url):
                break
            if self._trouble is not None:
                since, faults, reason = self._trouble
                self._trouble = (since, faults + 1, reason)
            pause = min(2 * pause, LONGEST_BETWEEN_CHECKS)
        # It has not shown yet how much it bears.
        server.is_down, server.limit = False, max(1.0, server.limit * DECREASE)
        self._wake_one()

    async def _wait(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            if future in self._waiting:
                self._waiting.remove(future)

    def _wake_one(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
