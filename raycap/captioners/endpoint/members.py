"""How many workers send requests now: each of them has an equal share of the job's limits.

Workers are processes on several machines. What they all see is the run folder, so each keeps a
file there, a beat, whose name changes every few seconds:

    OUT/_answers/_members/3f2a.17     worker 3f2a, beat 17

Why not a process that hands out permits: it would be one more thing that can be lost, and a
captioner would need Ray. Why not the limit divided by the number of workers at the start: workers
come with new nodes and go with lost ones.

The limit holds while workers come and go:
- A worker sends only for LEASE seconds after it has last written its beat and then read those of
  the others. One that was suspended, or cut off from the store, sends nothing.
- A new worker writes its beat before it reads the others'. If it sees any, it waits for LEASE
  seconds: until then each of them has read its beat, or sends nothing.
- A worker whose beat has not changed for EXPIRY seconds is gone. It sends nothing then, as EXPIRY
  is the time of a lease, and of another one in which the next beat may be on its way.
- A worker whose lease has run out begins like a new one.
- A worker that has had nothing to send for a while removes its beat; the others then have more.

Clocks of different machines are never compared. A store whose answers take longer than a lease
makes workers wait, and never send too much.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable

from raycap.errors import UserError
from raycap.storage import RunFolder

log = logging.getLogger(__name__)

FOLDER = "_members"
SECONDS_BETWEEN_BEATS = 4.0
LEASE = 10.0
EXPIRY = 2 * LEASE


class Members:
    """This worker and the others. `keep_beating` runs in a thread; `share` is for the sender."""

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._own, self._beat = uuid.uuid4().hex[:12], 0
        # Of each other worker its last beat, and when this worker first saw it.
        self._others: dict[str, tuple[int, float]] = {}
        self._valid_from, self._valid_until = float("inf"), float("-inf")
        self._wanted_at = float("-inf")
        self._count = 1
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="members")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join()

    def share(self) -> float:
        """This worker's share of the limits now; 0 if it may not send."""
        now = self._clock()
        is_new = now - self._wanted_at > EXPIRY
        self._wanted_at = now
        if is_new:
            self._wake.set()
        return 1 / self._count if self._valid_from <= now < self._valid_until else 0.0

    def beat(self) -> None:
        """Writes the next beat and reads those of the others."""
        began = self._clock()
        if self._beat and began >= self._valid_until:
            self.leave()
        is_first = self._beat == 0
        self._beat += 1
        self._folder.write(self._name(self._beat), b"")
        if not is_first:
            self._folder.remove_file(self._name(self._beat - 1))
        now = self._clock()
        seen = self._read_others()
        for worker, beat in seen.items():
            if worker not in self._others or self._others[worker][0] != beat:
                self._others[worker] = (beat, now)
        for worker, (beat, since) in list(self._others.items()):
            # Not before, also where it is not seen: a listing may miss a file that is renamed.
            if now - since > EXPIRY:
                del self._others[worker]
                self._folder.remove_file(f"{FOLDER}/{worker}.{beat}")
        self._count = 1 + len(self._others)
        self._valid_until = began + LEASE
        if is_first:
            self._valid_from = now + LEASE if self._others else began

    def leave(self) -> None:
        """Sends nothing from now on, until the next beat."""
        self._valid_from, self._valid_until = float("inf"), float("-inf")
        if self._beat:
            self._folder.remove_file(self._name(self._beat))
        self._own, self._beat = uuid.uuid4().hex[:12], 0

    def _keep_beating(self) -> None:
        while not self._closing:
            self._wake.clear()
            is_wanted = self._clock() - self._wanted_at <= EXPIRY
            try:
                if is_wanted:
                    self.beat()
                elif self._beat:
                    self.leave()
            except UserError as error:  # the store does not answer: the lease runs out
                log.warning("cannot share the limits of requests with other workers: %s", error)
            self._wake.wait(SECONDS_BETWEEN_BEATS if is_wanted else None)
        with contextlib.suppress(UserError):
            self.leave()

    def _name(self, beat: int) -> str:
        return f"{FOLDER}/{self._own}.{beat}"

    def _read_others(self) -> dict[str, int]:
        """The latest beat of each other worker."""
        found: dict[str, int] = {}
        for path in self._folder.names(FOLDER):
            worker, _, beat = path.rpartition("/")[2].partition(".")
            if worker != self._own and beat.isdecimal():
                found[worker] = max(int(beat), found.get(worker, 0))
        return found
