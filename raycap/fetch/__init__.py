"""Fetches pictures: a URI (path, object store, http, https) to bytes, or a reason why not."""

import collections
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from raycap.fetch import files
from raycap.fetch.budget import MemoryBudget, MemoryShare
from raycap.fetch.errors import FetchError, unexpected
from raycap.fetch.health import HostHealth
from raycap.fetch.host_queue import HostQueue
from raycap.fetch.options import Fetch
from raycap.fetch.threads import RequestThreads
from raycap.fetch.trust import Trust
from raycap.uris import is_local, is_web

if TYPE_CHECKING:
    from raycap.fetch.web import Redirect, WebClient

__all__ = ["Download", "Fetch", "Fetched", "Fetcher", "Trust", "Unfinished"]

# Bodies that `fetch_each` holds in memory at a time, whatever their number, and one body more.
BYTES_IN_MEMORY = 128 * 2**20
# What a fetch counts for from its start.
FIRST_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Unfinished:
    """How far the fetch of a picture is, for another fetcher that goes on with it."""

    uri: str  # where to look next: changes with each redirect
    seconds: float  # left until the deadline; waits for our own limits do not count
    redirects: int = 0
    retries: int = 0
    requests: int = 0
    requested_for: float = 0.0  # seconds


@dataclass(frozen=True)
class Fetched:
    """The bytes behind a URI, or why there are none."""

    data: bytes
    error: str  # "" for none
    requests: int = field(default=0, compare=False)  # redirects and retries included
    # Of those requests, without the waits between them.
    seconds: float = field(default=0.0, compare=False)
    # Neither bytes nor an error: another fetcher has to go on.
    rest: Unfinished | None = None


class Download:
    """One picture that is being fetched, through redirects and retries."""

    def __init__(
        self, fetcher: "Fetcher", start: Unfinished, share: MemoryShare | None = None
    ) -> None:
        self.fetcher = fetcher
        self.uri, self.seconds = start.uri, start.seconds
        self.share = share  # of the memory for bodies; None if the caller holds them all anyway
        self.redirects, self.retries = start.redirects, start.retries
        self.requests, self.requested_for = start.requests, start.requested_for
        self.result: Future[Fetched] = Future()
        self.is_wanted = True

    def finish(self, data: bytes, error: str) -> None:
        # Half a character (a lone surrogate) of an odd URI would make the whole table unwritable.
        error = error.encode(errors="replace").decode()
        self.result.set_result(Fetched(data, error, self.requests, self.requested_for))

    def unfinished(self) -> Unfinished:
        so_far = (self.redirects, self.retries, self.requests, self.requested_for)
        return Unfinished(self.uri, self.seconds, *so_far)

    def release(self) -> None:
        """Forget the body. Its memory is for others."""
        self.result = Future()
        if self.share:
            self.share.release()


class Fetcher:
    """Fetches pictures with its own threads, within each host's limits.

    It is made in the process that uses it. `trust` says which local paths and stores a URI may
    name; `options` may permit more. `owns` says of a host whether this fetcher asks it; of others
    it says that somebody else has to go on.
    """

    def __init__(
        self, options: Fetch, trust: Trust, owns: Callable[[str], bool] | None = None
    ) -> None:
        self._options = options
        self._trust = trust.also(options.trusted())
        self._owns = owns
        self._web_client: WebClient | None = None
        self._lock = threading.Lock()
        self._random = random.Random()  # the global one has the user's seed
        self._queue: HostQueue[Download] = HostQueue(options.per_host, options.host_rate)
        self._health = HostHealth(options.host_failures)
        # Idle threads hold no reference to the fetcher, so that they end when it is dropped.
        self._threads = RequestThreads(self._queue, options.threads, _run, _waits_for_memory)
        self._stop_threads = weakref.finalize(self, self._queue.stop)

    @property
    def _web(self) -> "WebClient":
        """Its connections to the web. They take as long to load as ten pictures from a disk."""
        with self._lock:
            if self._web_client is None:
                from raycap.fetch.web import WebClient

                self._web_client = WebClient(self._options)
            return self._web_client

    def fetch(self, uri: str) -> Fetched:
        """Fetches one picture; never raises."""
        return self.fetch_all([uri])[0]

    def fetch_all(self, uris: Sequence[str]) -> list[Fetched]:
        """Fetches many pictures at once; returns them in the order given and never raises."""
        downloads = [Download(self, self.first(uri)) for uri in uris]
        self._threads.start(len(downloads))
        for download in downloads:
            self._enqueue(download)
        return [download.result.result() for download in downloads]

    def first(self, uri: str) -> Unfinished:
        """The fetch of a picture before its first request."""
        return Unfinished(uri, self._options.deadline)

    def begin(
        self,
        wanted: Sequence[Unfinished],
        budget: MemoryBudget,
        done: Callable[[int, Download], None],
    ) -> list[Download]:
        """Begins to fetch pictures; `done` is called in other threads, with the index of each one.
        Their bodies take memory of `budget` until they are released."""
        self._threads.start(len(wanted))
        downloads = [Download(self, start, budget.share()) for start in wanted]
        for index, download in enumerate(downloads):
            download.result.add_done_callback(
                lambda _, index=index, download=download: done(index, download)  # type: ignore[misc]
            )
            self._enqueue(download)
        return downloads

    def fetch_each(
        self,
        uris: Sequence[str],
        bytes_in_memory: int = BYTES_IN_MEMORY,
        patience: float | None = None,
    ) -> Iterator[tuple[int, Fetched]]:
        """Yields pictures as they arrive, each with its index in `uris`; never raises.

        Bodies take at most `bytes_in_memory` and one body more: other fetches wait. A body counts
        until the next one is asked for, so the caller should not keep it. Local files are read one
        at a time, in order, while others are on their way. When nothing has arrived for `patience`
        seconds, all others come as unfinished ones.
        """
        budget = MemoryBudget(bytes_in_memory)
        arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        local = collections.deque(index for index, uri in enumerate(uris) if is_local(uri))
        downloads = {
            index: Download(self, self.first(uri), budget.share())
            for index, uri in enumerate(uris)
            if not is_local(uri)
        }
        self._threads.start(len(downloads))
        for index, download in downloads.items():
            download.result.add_done_callback(lambda _, index=index: arrived.put(index))  # type: ignore[misc]
            self._enqueue(download)
        try:
            while downloads or local:
                try:
                    index = arrived.get(block=not local, timeout=patience)
                except queue.Empty:
                    if local:
                        index = local.popleft()
                        yield index, self._read_local(uris[index])
                        continue
                    for index in downloads:
                        yield index, Fetched(b"", "", rest=self.first(uris[index]))
                    return
                download = downloads.pop(index)
                yield index, download.result.result()
                download.release()
        finally:
            for download in downloads.values():  # the caller stopped early
                download.is_wanted = False
            budget.close()

    def _read_local(self, uri: str) -> Fetched:
        download = Download(self, self.first(uri))
        if self._is_permitted(download):
            self.run("", download)
        return download.result.result()

    def close(self) -> None:
        """Ends the threads and closes connections; waiting downloads fail with a reason."""
        for download in self._queue.close():
            download.finish(b"", "the fetcher was closed")
        if self._web_client is not None:
            self._web_client.close()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _is_permitted(self, download: Download) -> bool:
        """Whether the URI may be fetched; finishes the download if not."""
        try:
            self._trust.check(download.uri)
        except FetchError as error:
            download.finish(b"", error.reason)
            return False
        return True

    def _enqueue(self, download: Download, wait: float = 0.0) -> None:
        if not self._is_permitted(download):
            return
        try:
            # Files and stores have no limits for each host.
            host = self._web.host(download.uri) if is_web(download.uri) else ""
        except FetchError as error:
            return download.finish(b"", error.reason)
        if host and self._owns and not self._owns(host):
            return download.result.set_result(Fetched(b"", "", rest=download.unfinished()))
        if not self._queue.put(host, download, wait):
            download.finish(b"", "the fetcher was closed")

    def run(self, host: str, download: Download) -> None:
        """Makes one request, then finishes the download or puts it back into the queue."""
        if not download.is_wanted:
            return download.finish(b"", "the caller stopped early")
        if host and (reason := self._health.admit(host)):
            return download.finish(b"", reason)
        began = time.monotonic()
        try:
            outcome = self._request(download)
        except FetchError as error:
            self._note_error(host, error, began)
            self._retry(host, download, error)
        except Exception as error:  # noqa: BLE001 - one picture's fault becomes its row's reason
            download.finish(b"", unexpected(error))
        else:
            if host:
                self._health.answered(host)
            if isinstance(outcome, bytes):
                download.finish(outcome, "")
            else:
                self._redirect(download, outcome.url)

    def _note_error(self, host: str, error: FetchError, began: float) -> None:
        if not host:
            return
        if error.no_answer:
            self._health.failed(host, error.reason, began)
        elif not (error.again and error.wait):
            self._health.answered(host)
        elif self._health.pushed_back(host, error.reason, began, error.wait):
            self._queue.pause(host, min(error.wait, self._options.deadline))

    def _request(self, download: Download) -> "bytes | Redirect":
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

    def _redirect(self, download: Download, url: str) -> None:
        most = self._options.max_redirects
        if download.redirects == most:
            return download.finish(b"", f"more than {most} redirects (--fetch.max-redirects)")
        download.redirects += 1
        download.uri = url
        self._enqueue(download)

    def _retry(self, host: str, download: Download, error: FetchError) -> None:
        if error.again and host and (reason := self._health.why_down(host)):
            return download.finish(b"", reason)
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


def _run(host: str, download: Download) -> None:
    download.fetcher.run(host, download)


def _waits_for_memory(download: Download) -> bool:
    return download.share is not None and download.share.is_waiting
