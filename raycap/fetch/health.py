"""Remembers hosts that do not answer, so that their pictures fail at once for some time."""

import threading
import time
from dataclasses import dataclass

# A host that does not answer is asked again after so many seconds, then after twice as many.
FIRST_REST, LONGEST_REST = 60.0, 900.0
# A host that pushes back (Retry-After) so often, and gives nothing in between, is left alone too.
MOST_PUSHES = 3
# Hosts that are remembered. A host that is forgotten is asked again.
MOST_HOSTS = 50_000


@dataclass
class _Failing:
    """A host whose last requests all failed."""

    began: float  # when the first of these requests was made
    requests: int = 0
    pushes: int = 0
    pushed_until: float = 0.0
    reason: str = ""  # of the last one
    down_until: float = 0.0
    rest: float = FIRST_REST


class HostHealth:
    """Which hosts are taken for dead: those that have not answered `most_failures` requests in a
    row. Any answer, also "not found", brings a host back.

    If nothing else has answered either since the first of these requests, this machine's own
    network may be at fault: then no host is taken for dead.
    """

    def __init__(self, most_failures: int) -> None:
        self._most_failures = most_failures
        self._failing: dict[str, _Failing] = {}
        self._last_answer = 0.0  # of any host
        self._lock = threading.Lock()

    def admit(self, host: str) -> str:
        """Why a request to the host is not worth its time, "" if it may be made. After a rest, one
        request is let through."""
        with self._lock:
            failing = self._failing.get(host)
            if failing is None or not failing.down_until:
                return ""
            now = time.monotonic()
            if now >= failing.down_until:  # this request finds out; a second one has to wait
                failing.rest = min(2 * failing.rest, LONGEST_REST)
                failing.down_until = now + failing.rest
                return ""
            return self._why(failing)

    def why_down(self, host: str) -> str:
        """Why its other pictures fail, "" for a host that may be asked."""
        with self._lock:
            failing = self._failing.get(host)
            is_down = failing is not None and failing.down_until > time.monotonic()
            return self._why(failing) if failing is not None and is_down else ""

    def answered(self, host: str) -> None:
        with self._lock:
            self._last_answer = time.monotonic()
            self._failing.pop(host, None)

    def failed(self, host: str, reason: str, began: float) -> None:
        """Note a request that had no answer, and when it was made."""
        with self._lock:
            failing = self._remember(host, reason, began)
            failing.requests += 1
            self._judge(failing, failing.requests >= self._most_failures)

    def pushed_back(self, host: str, reason: str, began: float, wait: float) -> bool:
        """Note that a host asked for a pause. Returns whether to keep it: not if it has given
        nothing after several of them."""
        with self._lock:
            self._last_answer = now = time.monotonic()
            failing = self._remember(host, reason, began)
            if now >= failing.pushed_until:
                failing.pushes += 1
                failing.pushed_until = now + wait
            self._judge(failing, failing.pushes > MOST_PUSHES)
            return not failing.down_until

    def _remember(self, host: str, reason: str, began: float) -> _Failing:
        failing = self._failing.pop(host, None) or _Failing(began)
        failing.reason = reason
        self._failing[host] = failing  # the last one to be forgotten
        if len(self._failing) > MOST_HOSTS:
            del self._failing[next(iter(self._failing))]
        return failing

    def _judge(self, failing: _Failing, has_failed_enough: bool) -> None:
        others_answer = self._last_answer > failing.began
        if self._most_failures and has_failed_enough and others_answer and not failing.down_until:
            failing.down_until = time.monotonic() + failing.rest

    def _why(self, failing: _Failing) -> str:
        return f"{failing.reason}; its host is given a rest (--fetch.host-failures)"
