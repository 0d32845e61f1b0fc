"""Requests and tokens per minute: when the next request may be sent.

With 600 requests a minute there is one every tenth of a second. Credit grows evenly with time, a
request waits until it can be paid, and little is saved up: so no minute, wherever it begins, has
more than 600, and a server that counts by the second is not surprised either.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

# A worker that was held up may send at once what it has missed of so many seconds.
SAVED_UP = 0.25
# A waiting request looks this often whether the worker's share has changed.
LONGEST_SLEEP = 1.0
# Of the answers that the guess of the next one's tokens is made of, the latest counts so much.
NEWEST = 0.1


class Share(Protocol):
    """How much of the limits is for this process."""

    def share(self) -> float:
        """From 0 (nothing may be sent now) to 1 (there is no other process)."""


class Whole:
    """There is no other process."""

    def share(self) -> float:
        return 1.0


class Bucket:
    """So many units a minute; 0: no limit."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._credit: float | None = None
        self._counted_at = 0.0

    def delay(self, units: float, share: float, now: float) -> float:
        """Seconds until there is credit for so many units; 0 if there is now."""
        if not self._per_minute:
            return 0.0
        if self._credit is None:
            # Alone it begins at once. Of many workers that begin together, each earns its first.
            self._credit, self._counted_at = units if share == 1 else 0.0, now
        limit = self._per_minute * share
        most = units + limit * SAVED_UP / 60
        # A minute has what is earned in it, and what was saved up before. Both together are the
        # limit, unless it is below two requests a minute for this worker.
        rate = max(limit - most, limit / 2) / 60
        self._credit = min(most, self._credit + rate * (now - self._counted_at))
        self._counted_at = now
        missing = units - self._credit
        if missing < 1e-6 * units:
            return 0.0
        return missing / rate if rate else LONGEST_SLEEP

    def take(self, units: float) -> None:
        """Pays for so many units; a number below 0 is paid back."""
        if self._credit is not None:
            self._credit -= units


class Limiter:
    """The limits of requests and tokens, of which this process has a share."""

    def __init__(
        self,
        requests_per_minute: float,
        tokens_per_minute: float,
        tokens_expected: float,
        share: Share | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests, self._tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self._is_limited = bool(requests_per_minute or tokens_per_minute)
        self._share, self._clock = share or Whole(), clock
        self._expected = tokens_expected
        self._turn = asyncio.Lock()

    async def wait(self) -> float:
        """Returns when a request may be sent: the tokens that it is expected to take."""
        if not self._is_limited:
            return 0.0
        async with self._turn:  # in the order of arrival
            while True:
                now, share, expected = self._clock(), self._share.share(), self._expected
                delays = (
                    self._requests.delay(1, share, now),
                    self._tokens.delay(expected, share, now),
                )
                if share and not any(delays):
                    self._requests.take(1)
                    self._tokens.take(expected)
                    return expected
                await asyncio.sleep(min(LONGEST_SLEEP, max(delays) or 0.1))

    def pay_back(self, expected: float) -> None:
        """The request was not sent after all."""
        self._requests.take(-1)
        self._tokens.take(-expected)

    def note(self, expected: float, used: float | None) -> None:
        """A request took so many tokens; None where the server does not say."""
        if self._is_limited and used is not None:
            self._tokens.take(used - expected)
            self._expected += NEWEST * (used - self._expected)
