"""HTTP answers as the standard library reads them, with what it does not check."""

import http.client
import re

from raycap.fetch.errors import FetchError

_LONGEST_LINE = 1 << 16
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


def headers_too_large() -> FetchError:
    """The one reason for every kind of headers that do not end."""
    return FetchError("headers without end (more than 100, or more than 256 kB)")


def framing_too_large() -> FetchError:
    """For bytes that bring no body: sizes of tiny chunks, trailers."""
    return FetchError("a body framed without end (tiny chunks, or trailers)")


class CheckedResponse(http.client.HTTPResponse):
    """Skips interim answers and takes only well-formed chunk sizes.

    The standard library would take 103 Early Hints for the answer, and read to the end of the connection when a
    chunk has size -1. The two methods are not public. Should they go away, reasons get worse but nothing becomes
    less safe: bytes are counted at the socket (see `connections.RequestLimits`).
    """

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 < status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_LONGEST_LINE + 1)
        if not line:
            raise http.client.IncompleteRead(b"")
        size = line.partition(b";")[0].strip()
        if len(line) > _LONGEST_LINE or not _CHUNK_SIZE.fullmatch(size):
            raise FetchError("a chunk of the body has no valid size")
        return int(size, 16)
