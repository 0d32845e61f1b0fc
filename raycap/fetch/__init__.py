"""Fetches pictures: a URI (path, object store, http, https) to bytes, or a reason why not."""

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
from raycap.fetch.errors import FetchError, unexpected
from raycap.fetch.host_queue import HostQueue
from raycap.fetch.options import Fetch
from raycap.fetch.trust import Trust
from raycap.uris import is_local, is_web

if TYPE_CHECKING:
    from raycap.fetch.web import Redirect

__all__ = ["Fetch", "Fetched", "Fetcher", "Trust"]

# Bodies that `fetch_each` holds in memory at a time, whatever their number, and one body more.
BYTES_IN_MEMORY = 128 * 2**20
# What a fetch counts for from its start.
FIRST_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Fetched:
    """The bytes behind a URI, or why there are none."""

    data: bytes
    error: str  # "" for none
    requests: int = field(default=0, compare=False)  # redirects and retries included
    # Of those requests, without the waits between them.
    seconds: float = field(default=0.0, compare=False)


class _Download:
    """One picture that is being fetched, through redirects and retries."""

    def __init__(
        self, fetcher: "Fetcher", uri: str, seconds: float, share: MemoryShare | None = None
    ) -> None:
        self.fetcher = fetcher
        self.uri = uri  # where to look next: changes with each redirect
        self.seconds = seconds  # left until the deadline; waits for our own limits do not count
        self.share = share  # of the memory for bodies; None if the caller holds them all anyway
        self.redirects = self.retries = self.requests = 0
        self.requested_for = 0.0  # seconds
        self.result: Future[Fetched] = Future()
        self.is_wanted = True

    def finish(self, data: bytes, error: str) -> None:
        # Half a character (a lone surrogate) of an odd URI would make the whole table unwritable.
        error = error.encode(errors="replace").decode()
        self.result.set_result(Fetched(data, error, self.requests, self.requested_for))


class Fetcher:
    """Fetches pictures with its own threads, within each host's limits.

    It is made in the task that uses it. `trust` says which local paths and stores a URI may name;
    `options` may permit more.
    """

    def __init__(self, options: Fetch, trust: Trust) -> None:
        # urllib3 takes 50 ms, which `raycap --help` need not spend.
        from raycap.fetch.web import WebClient

        self._options = options
        self._trust = trust.also(options.trusted())
        self._web = WebClient(options)
        self._random = random.Random()  # the global one has the user's seed
        self._queue: HostQueue[_Download] = HostQueue(options.per_host, options.host_rate)
        self._threads = 0
        self._starting = threading.Lock()
        # Idle threads hold no reference to the fetcher, so that they end when it is dropped.
        self._stop_threads = weakref.finalize(self, self._queue.stop)

    def fetch(self, uri: str) -> Fetched:
        """Fetches one picture; never raises."""
        return self.fetch_all([uri])[0]

    def fetch_all(self, uris: Sequence[str]) -> list[Fetched]:
        """Fetches many pictures at once; returns them in the order given and never raises."""
        downloads = [_Download(self, uri, self._options.deadline) for uri in uris]
        self._start_threads(len(downloads))
        for download in downloads:
            self._enqueue(download)
        return [download.result.result() for download in downloads]

    def fetch_each(
        self, uris: Sequence[str], bytes_in_memory: int = BYTES_IN_MEMORY
    ) -> Iterator[tuple[int, Fetched]]:
        """Yields pictures as they arrive, each with its index in `uris`; never raises.

        Bodies take at most `bytes_in_memory` and one body more: other fetches wait. A body counts
        until the next one is asked for, so the caller should not keep it. Local files are read one
        at a time, in order, while others are on their way.
        """
        budget = MemoryBudget(bytes_in_memory)
        arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        local = collections.deque(index for index, uri in enumerate(uris) if is_local(uri))
        downloads = {
            index: _Download(self, uri, self._options.deadline, budget.share())
            for index, uri in enumerate(uris)
            if not is_local(uri)
        }
        self._start_threads(len(downloads))
        for index, download in downloads.items():
            download.result.add_done_callback(lambda _, index=index: arrived.put(index))  # type: ignore[misc]
            self._enqueue(download)
        try:
            while downloads or local:
                try:
                    index = arrived.get(block=not local)
                except queue.Empty:
                    index = local.popleft()
                    yield index, self._read_local(uris[index])
                else:
                    download = downloads.pop(index)
                    yield index, download.result.result()
                    download.result = Future()  # drops the body
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
        return download.result.result()

    def close(self) -> None:
        """Ends the threads and closes connections; waiting downloads fail with a reason."""
        for download in self._queue.close():
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

    def _start_threads(self, wanted: int) -> None:
        with self._starting:
            while self._threads < min(wanted, self._options.threads):
                self._threads += 1
                threading.Thread(
                    target=_work, args=(self._queue,), daemon=True, name="raycap-fetch"
                ).start()

    def _is_permitted(self, download: _Download) -> bool:
        """Whether the URI may be fetched; finishes the download if not."""
        try:
            self._trust.check(download.uri)
        except FetchError as error:
            download.finish(b"", error.reason)
            return False
        return True

    def _enqueue(self, download: _Download, wait: float = 0.0) -> None:
        if not self._is_permitted(download):
            return
        try:
            # Files and stores have no limits for each host.
            host = self._web.host(download.uri) if is_web(download.uri) else ""
        except FetchError as error:
            return download.finish(b"", error.reason)
        if not self._queue.put(host, download, wait):
            download.finish(b"", "the fetcher was closed")

    def _run(self, download: _Download) -> None:
        """Makes one request, then finishes the download or puts it back into the queue."""
        if not download.is_wanted:
            return download.finish(b"", "the caller stopped early")
        try:
            outcome = self._request(download)
        except FetchError as error:
            self._retry(download, error)
        except Exception as error:  # noqa: BLE001 - one picture's fault becomes its row's reason
            download.finish(b"", unexpected(error))
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
                # Waiting for memory is not the server's fault.
                took -= share.waited - waited_before
                if not isinstance(outcome, bytes):
                    share.release()
            download.seconds -= took
            download.requests += 1
            download.requested_for += took

    def _redirect(self, download: _Download, url: str) -> None:
        most = self._options.max_redirects
        if download.redirects == most:
            return download.finish(b"", f"more than {most} redirects (--fetch.max-redirects)")
        download.redirects += 1
        download.uri = url
        self._enqueue(download)

    def _retry(self, download: _Download, error: FetchError) -> None:
        if not error.again or download.retries == self._options.retries:
            return download.finish(b"", error.reason)
        # A random wait ("full jitter"), so that many clients do not return at the same moment.
        longest = self._options.backoff * 2 ** min(download.retries, 10)
        wait = max(error.wait, self._random.uniform(0, longest))
        if wait >= download.seconds:
            reason = f"{error.reason}; the next try would miss the deadline (--fetch.deadline)"
            return download.finish(b"", reason)
        download.retries += 1
        download.seconds -= wait
        self._enqueue(download, wait)


def _work(downloads: HostQueue[_Download]) -> None:
    """What one thread does until the queue is closed."""
    while (taken := downloads.take()) is not None:
        host, download = taken
        try:
            download.fetcher._run(download)
        finally:
            downloads.done(host)
        del taken, download  # keeps no reference to the fetcher while it waits
