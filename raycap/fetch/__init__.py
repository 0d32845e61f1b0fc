"""A URI to bytes, safely and politely, or a reason: local paths, object stores, http and https."""

import collections
import queue
import random
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from raycap.fetch import files
from raycap.fetch.budget import MemoryBudget, MemoryShare
from raycap.fetch.errors import FetchError, unforeseen
from raycap.fetch.host_queue import HostQueue
from raycap.fetch.options import Fetch
from raycap.fetch.trust import Trust
from raycap.uris import LOCAL, is_web, scheme_of

if TYPE_CHECKING:
    from raycap.fetch.web import Redirect

__all__ = ["Fetch", "Fetched", "Fetcher", "Trust"]

# Bodies that `fetch_each` holds in memory at a time, whatever their number; the largest one comes on top.
BYTES_IN_MEMORY = 128 * 2**20
# What a fetch counts for from its start.
FIRST_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Fetched:
    """The bytes behind a URI, or why there are none."""

    data: bytes
    error: str  # "" for none
    requests: int = field(default=0, compare=False)  # redirects and retries included
    seconds: float = field(
        default=0.0, compare=False
    )  # of those requests, without the waits between them


class _Download:
    """One picture on its way, through redirects and retries."""

    def __init__(
        self, fetcher: "Fetcher", uri: str, seconds: float, share: MemoryShare | None = None
    ) -> None:
        self.fetcher = fetcher
        self.uri = uri  # where to look next: changes with each redirect
        self.seconds = seconds  # what is left of the deadline; turns and limits of our own making cost nothing
        self.redirects = 0
        self.retries = 0
        self.requests = 0
        self.requested_for = 0.0  # seconds
        self.answer: Future[Fetched] = Future()
        self.is_wanted = True
        self.share = share  # of the memory for bodies; none where the caller holds them all anyway

    def finish(self, data: bytes, error: str) -> None:
        # A lone surrogate out of an odd URI would make the reason, and with it a whole table, unwritable.
        error = error.encode(errors="replace").decode()
        self.answer.set_result(Fetched(data, error, self.requests, self.requested_for))


class Fetcher:
    """Fetches with threads of its own, politely to each host; made inside the task that uses it.

    `trust` says which local paths and which places in object stores a URI may name; `options` may add to that.
    """

    def __init__(self, options: Fetch, trust: Trust) -> None:
        from raycap.fetch.web import (
            WebClient,  # urllib3 takes 50 ms, which `raycap --help` should not pay
        )

        self._options = options
        self._trust = trust.also(options.trusted())
        self._web = WebClient(options)
        self._random = random.Random()  # not the global one, whose seed is the user's
        self._turns: HostQueue[_Download] = HostQueue(options.per_host, options.host_rate)
        self._workers = 0
        self._hiring = threading.Lock()
        # Workers know the fetcher only through the download in hand, so one that is merely dropped ends them too.
        self._send_home = weakref.finalize(self, self._turns.close)

    def fetch(self, uri: str) -> Fetched:
        """One picture; never raises."""
        return self.fetch_all([uri])[0]

    def fetch_all(self, uris: Sequence[str]) -> list[Fetched]:
        """Many pictures at once, answered in the order given; never raises."""
        downloads = [_Download(self, uri, self._options.deadline) for uri in uris]
        self._hire(len(downloads))
        for download in downloads:
            self._line_up(download)
        return [download.answer.result() for download in downloads]

    def fetch_each(
        self, uris: Sequence[str], bytes_in_memory: int = BYTES_IN_MEMORY
    ) -> Iterator[tuple[int, Fetched]]:
        """Many pictures, each with its place in `uris`, as they arrive; never raises.

        Bodies hold at most `bytes_in_memory` and one body more: fetches wait for their turn to hold more. A body
        counts until the next one is asked for, so the caller should not keep it. Local files are read one at a
        time, in order, while others are on their way.
        """
        budget = MemoryBudget(bytes_in_memory)
        arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        local = collections.deque(
            place for place, uri in enumerate(uris) if scheme_of(uri) in ("", *LOCAL)
        )
        remote = sorted(set(range(len(uris))).difference(local))
        downloads = {
            place: _Download(self, uris[place], self._options.deadline, budget.share())
            for place in remote
        }
        self._hire(len(downloads))
        for place, download in downloads.items():
            download.answer.add_done_callback(lambda _, place=place: arrived.put(place))  # type: ignore[misc]
            self._line_up(download)
        try:
            while downloads or local:
                try:
                    place = arrived.get(block=not local)
                except queue.Empty:
                    place = local.popleft()
                    yield place, self._read_local(uris[place])
                else:
                    download = downloads.pop(place)
                    yield place, download.answer.result()
                    download.answer = Future()  # lets go of the body
                    if download.share:
                        download.share.release()
        finally:
            for download in downloads.values():  # the caller stopped early
                download.is_wanted = False
            budget.close()

    def _read_local(self, uri: str) -> Fetched:
        download = _Download(self, uri, self._options.deadline)
        if self._is_permitted(download):
            self._run(download)
        return download.answer.result()

    def close(self) -> None:
        """End the threads and close connections; what still waits for its turn is answered with a reason."""
        for download in self._turns.close():
            download.finish(b"", "the fetcher was closed")
        self._web.close()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hire(self, wanted: int) -> None:
        with self._hiring:
            while self._workers < min(wanted, self._options.threads):
                self._workers += 1
                threading.Thread(
                    target=_work, args=(self._turns,), daemon=True, name="raycap-fetch"
                ).start()

    def _is_permitted(self, download: _Download) -> bool:
        """Whether the download may go where it wants to; it has its answer if not."""
        try:
            self._trust.check(download.uri)
        except FetchError as fault:
            download.finish(b"", fault.reason)
            return False
        return True

    def _line_up(self, download: _Download, wait: float = 0.0) -> None:
        if not self._is_permitted(download):
            return
        try:
            # Files and stores, which have no limits, line up at "".
            host = self._web.host(download.uri) if is_web(download.uri) else ""
        except FetchError as fault:
            return download.finish(b"", fault.reason)
        if not self._turns.put(host, download, wait):
            download.finish(b"", "the fetcher was closed")

    def _run(self, download: _Download) -> None:
        """One request for the download, and what follows from it: an answer, or another place in a line."""
        if not download.is_wanted:
            return download.finish(b"", "nobody waits for it any more")
        try:
            outcome = self._request(download)
        except FetchError as fault:
            self._retry(download, fault)
        except Exception as error:  # noqa: BLE001 - one picture's misfortune becomes its row's reason
            download.finish(b"", unforeseen(error))
        else:
            if isinstance(outcome, bytes):
                download.finish(outcome, "")
            else:
                self._redirect(download, outcome.url)

    def _request(self, download: _Download) -> "bytes | Redirect":
        share, grow_to = download.share, None
        if share:
            grow_to = share.grow_to
            grow_to(FIRST_BYTES)
        waited_before = share.waited if share else 0.0
        outcome: bytes | Redirect | None = None
        started = time.monotonic()
        try:
            if is_web(download.uri):
                outcome = self._web.get(download.uri, download.seconds, grow_to)
            else:
                outcome = files.read(download.uri, self._options, download.seconds, grow_to)
            return outcome
        finally:
            took = time.monotonic() - started
            if share:
                took -= (
                    share.waited - waited_before
                )  # waiting for memory is not the server's fault
                if not isinstance(outcome, bytes):
                    share.release()
            download.seconds -= took
            download.requests += 1
            download.requested_for += took

    def _redirect(self, download: _Download, url: str) -> None:
        if download.redirects == self._options.max_redirects:
            return download.finish(
                b"", f"more than {self._options.max_redirects} redirects (--fetch.max-redirects)"
            )
        download.redirects += 1
        download.uri = url
        self._line_up(download)

    def _retry(self, download: _Download, fault: FetchError) -> None:
        if not fault.again or download.retries == self._options.retries:
            return download.finish(b"", fault.reason)
        longest = self._options.backoff * 2 ** min(download.retries, 10)
        wait = max(
            fault.wait, self._random.uniform(0, longest)
        )  # "full jitter": a crowd spreads out by itself
        if wait >= download.seconds:
            return download.finish(
                b"", f"{fault.reason}; the next try would miss the deadline (--fetch.deadline)"
            )
        download.retries += 1
        download.seconds -= wait
        self._line_up(download, wait)


def _work(turns: HostQueue[_Download]) -> None:
    """What one thread does until it is sent home."""
    while (turn := turns.take()) is not None:
        host, download = turn
        try:
            download.fetcher._run(download)
        finally:
            turns.done(host)
        del turn, download  # hold on to no fetcher while waiting
