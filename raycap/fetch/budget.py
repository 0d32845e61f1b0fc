"""Limits the memory for the bytes of pictures, over all fetches of one worker."""

import threading
import time


class MemoryBudget:
    """Lets fetches hold `limit` bytes together; one that needs more waits for the others.

    One fetch at a time may exceed the limit. So one can always finish, and the bytes in memory are
    at most `limit` and the largest picture.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()
        self._exempt: MemoryShare | None = None
        self._closed = False

    def share(self) -> "MemoryShare":
        """The share of one fetch, which holds nothing yet."""
        return MemoryShare(self)

    def close(self) -> None:
        """Lets all that wait go on, so that their threads can end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryShare:
    """The bytes that one picture holds, from its first chunk until it is not needed any more."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size = 0
        self.waited = 0.0  # seconds, all in all
        self.is_waiting = False

    def grow_to(self, size: int) -> float:
        """Waits until `size` bytes may be held; returns the seconds that this took."""
        budget = self._budget
        started = time.monotonic()
        with budget._changed:
            more = size - self._size
            if more <= 0:
                return 0.0
            while budget._held + more > budget._limit and not budget._closed:
                if budget._exempt in (None, self):
                    budget._exempt = self
                    break
                self.is_waiting = True
                budget._changed.wait()
            self.is_waiting = False
            budget._held += more
            self._size = size
        waited = time.monotonic() - started
        self.waited += waited
        return waited

    def release(self) -> None:
        """Holds nothing any more."""
        budget = self._budget
        with budget._changed:
            budget._held -= self._size
            self._size = 0
            if budget._exempt is self:
                budget._exempt = None
            budget._changed.notify_all()
