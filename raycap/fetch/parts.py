"""Reads parts of large files over http and https, under the rules for pictures' addresses."""

import io
import random
import re
import threading
import time

from urllib3.util import Url

from raycap.fetch.connections import CheckedResponse
from raycap.fetch.errors import FetchError, framing_too_large
from raycap.fetch.files import GrowTo
from raycap.fetch.options import Fetch
from raycap.fetch.web import _CHUNK, _MOST_FRAMING_BYTES, Redirect, WebClient

_RANGE = re.compile(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18})\s*", re.ASCII | re.IGNORECASE)


class PartClient(WebClient):
    """Asks for ranges of bytes. A server that ignores them is refused: each picture would cost the
    whole file."""

    def __init__(self, options: Fetch) -> None:
        super().__init__(options)
        self._random = random.Random()
        self._wanted = _Wanted()

    def read(self, url: str, start: int, stop: int) -> tuple[bytes, int]:
        """Returns bytes `start` to `stop` of a file, fewer at its end, and its whole size; raises
        FetchError after redirects and retries."""
        tries = redirects = 0
        target = url
        while True:
            self._wanted.start, self._wanted.stop = start, stop
            try:
                answer = self.get(target, self._options.deadline)
            except FetchError as error:
                if not error.again or tries == self._options.retries:
                    raise
                wait = max(error.wait, self._random.uniform(0, self._options.backoff * 2**tries))
                if wait > self._options.deadline:
                    raise
                time.sleep(wait)
                tries, redirects, target = tries + 1, 0, url
                continue
            if not isinstance(answer, Redirect):
                return answer, self._wanted.total
            redirects, target = redirects + 1, answer.url
            if redirects > self._options.max_redirects:
                raise FetchError(f"more than {self._options.max_redirects} redirects")

    def _headers(self, target: Url) -> dict[str, str]:
        wanted = f"bytes={self._wanted.start}-{self._wanted.stop - 1}"
        return super()._headers(target) | {"Accept": "*/*", "Range": wanted}

    def _body(self, response: CheckedResponse, grow_to: GrowTo | None) -> bytes:
        found = _RANGE.fullmatch(response.fields.get("Content-Range", ""))
        encoding = response.fields.get("Content-Encoding", "identity")
        if response.status != 206 or not found or encoding != "identity":
            raise FetchError(
                "the server does not give parts of files (HTTP ranges): copy the file to a disk "
                "or a bucket first"
            )
        start, last, total = map(int, found.groups())
        size = min(self._wanted.stop, total) - self._wanted.start
        if start != self._wanted.start or last + 1 - start != size:
            raise FetchError("the server gave another part than was asked for")
        body, head = io.BytesIO(), self._limits.received
        while True:
            received = head + body.tell() + _CHUNK + _MOST_FRAMING_BYTES
            self._limits.allow(received, framing_too_large)
            chunk = response.read_some(_CHUNK)
            if not chunk:
                break
            body.write(chunk)
            if body.tell() > size:
                raise FetchError("the server gave more than was asked for")
        if body.tell() < size:
            raise FetchError("the connection was closed before the end of the part", again=True)
        self._wanted.total = total
        return body.getvalue()


class _Wanted(threading.local):
    """The part that this thread asks for, and the size of the file by the last answer."""

    start = stop = total = 0
