"""One GET over http or https: the body, a redirect, or FetchError with the reason."""

import base64
import contextlib
import http.client
import io
import logging
import re
import ssl
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin

from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswer
from urllib3.util import Url, parse_url

from raycap.fetch.connections import ConnectionPools, Dialer, RequestLimits
from raycap.fetch.errors import (
    FetchError,
    framing_too_large,
    headers_too_large,
    too_large,
    too_late,
)
from raycap.fetch.files import GrowTo
from raycap.fetch.options import Fetch
from raycap.uris import WEB, scheme_of

_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16  # bytes read at a time
# Bytes that may frame a body: sizes of chunks, trailers. Enough for 50 MB in chunks of 400 bytes.
_MOST_FRAMING_BYTES = 1 << 20
# Directives of X-Robots-Tag with a value after a colon; before any other colon is a robot's name.
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_ROBOT = re.compile(r"\s*([a-z*][\w.*-]*)\s*:(.*)", re.DOTALL)

# urllib3 logs headers that it cannot parse, with the whole URL and the passwords in it.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Redirect:
    """The response that the picture is elsewhere."""

    url: str


class WebClient:
    """Makes GET requests over connections that it keeps open; ignores proxies of the environment.

    A proxy would look names up itself, and the check of addresses would see only the proxy's.
    """

    def __init__(self, options: Fetch) -> None:
        self._options = options
        self._limits = RequestLimits(options.connect_timeout, options.read_timeout)
        self._timeout = Timeout(connect=options.connect_timeout, read=options.read_timeout)
        self._robots = {
            "*",
            "raycap",
            re.split(r"[/\s]", options.user_agent.lower(), maxsplit=1)[0],
        }
        dialer = Dialer(self._limits, options.allow_private)
        self._pools = ConnectionPools(dialer, hosts=2 * options.threads, idle=options.per_host)

    def get(self, url: str, seconds: float, grow_to: GrowTo | None = None) -> bytes | Redirect:
        """Returns the body at `url`, or a redirect, within `seconds`; raises FetchError.

        `grow_to` is called with the size of the body as it grows. Its waits do not count.
        """
        self._limits.start(seconds)
        target = parse(url)
        while True:
            response: BaseHTTPResponse | None = None
            self._limits.start_request()
            try:
                response = self._ask(target)
                return self._answer(url, response, grow_to)
            except (HTTPError, TimeoutError, zlib.error) as error:
                # Each stale connection leaves the pool, so the last try opens a new one.
                if not self._was_stale(error):
                    raise self._fault(error, target.host or "", response) from error
            finally:
                if response is not None:
                    # A response read to its end has already given its connection back.
                    response.close()

    def host(self, url: str) -> str:
        """Returns the host of a URL; raises FetchError if it is no URL."""
        return host_of(url)

    def close(self) -> None:
        """Closes the connections that are kept open."""
        self._pools.clear()

    def _ask(self, target: Url) -> BaseHTTPResponse:
        return self._pools.connection_from_host(target.host, target.port, target.scheme).urlopen(
            "GET",
            target.request_uri,
            headers=self._headers(target),
            retries=False,
            redirect=False,
            timeout=self._timeout,
            preload_content=False,
        )

    def _was_stale(self, error: Exception) -> bool:
        """Whether the server closed a kept connection before it saw the request.

        That is not the picture's fault: the request is repeated at once and costs no retry.
        """
        closed = isinstance(error, (ProtocolError, SSLError))
        return closed and not self._limits.connected and not self._limits.received

    def _headers(self, target: Url) -> dict[str, str]:
        headers = {
            "User-Agent": self._options.user_agent,
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",  # pictures are compressed already
        }
        if target.auth:
            credentials = base64.b64encode(unquote(target.auth).encode()).decode()
            headers["Authorization"] = f"Basic {credentials}"
        return headers

    def _answer(
        self, url: str, response: BaseHTTPResponse, grow_to: GrowTo | None
    ) -> bytes | Redirect:
        status = response.status
        if 200 <= status < 300:
            if not self._options.ignore_robots_tag:
                directive = forbids_ai(response.headers.getlist("X-Robots-Tag"), self._robots)
                if directive:
                    raise FetchError(
                        f"the server forbids it: X-Robots-Tag {directive} "
                        "(--fetch.ignore-robots-tag fetches it)"
                    )
            return self._body(response, grow_to)
        location = response.headers.get("Location")
        wait = asked_wait(response.headers.get("Retry-After"))
        with contextlib.suppress(HTTPError, TimeoutError, FetchError):
            # After a short page that is read to its end, the connection can be used again.
            response.read(_CHUNK, decode_content=False)
        if status in _MOVED and location:
            return Redirect(_next_url(url, location))
        # The standard phrase, not the server's: so that reports count all of a status together.
        phrase = http.client.responses.get(status, "")
        again = status == 429 or status >= 500
        raise FetchError(f"HTTP {status} {phrase}".rstrip(), again, wait)

    def _body(self, response: BaseHTTPResponse, grow_to: GrowTo | None) -> bytes:
        cap = self._options.max_bytes
        if (response.length_remaining or 0) > cap:
            raise too_large(cap)
        encoding = _encoding(response.headers.get("Content-Encoding", ""))
        unpack: zlib._Decompress | None = None
        body = io.BytesIO()
        sent = size = 0  # bytes before and after unpacking; the cap holds for both
        head = self._limits.received
        while True:
            self._limits.allow(head + sent + _CHUNK + _MOST_FRAMING_BYTES, framing_too_large)
            chunk = response.read(_CHUNK, decode_content=False)
            if not chunk:
                break
            if encoding and not sent:
                unpack = _unpacker(encoding, chunk)
            sent += len(chunk)
            if unpack:  # at most one byte too many
                chunk = b"" if unpack.eof else unpack.decompress(chunk, cap - size + 1)
            size += len(chunk)
            if max(sent, size) > cap:
                raise too_large(cap)
            if grow_to:
                self._limits.extend(grow_to(size))
            body.write(chunk)
        if not size:
            raise FetchError("an empty body")
        if unpack and not unpack.eof:
            raise zlib.error("cut short")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            _check_whole(response.headers.get("Content-Range", ""), sent)
        return body.getvalue()  # joining chunks would hold all bytes twice for a moment

    def _fault(self, error: Exception, host: str, response: BaseHTTPResponse | None) -> FetchError:
        if self._limits.left() <= 0:
            return too_late(self._options.deadline)
        inner = error.args[-1] if error.args else error
        if isinstance(inner, ssl.SSLCertVerificationError):
            return FetchError(f"the certificate of {host} is not trusted: {inner.verify_message}")
        if isinstance(error, SSLError):
            what = getattr(inner, "reason", None) or type(inner).__name__
            return FetchError(f"TLS with {host} failed: {what}", again=True)
        if isinstance(error, (NoAnswer, TimeoutError)):
            return FetchError(
                f"no byte for {self._options.read_timeout:g} s (--fetch.read-timeout)",
                again=True,
                no_answer=True,
            )
        if isinstance(error, zlib.error):
            return FetchError("the body is not what its Content-Encoding says")
        if isinstance(error, InvalidHeader):
            return FetchError("a Content-Length that contradicts itself")
        if isinstance(error, ProtocolError):
            return _broken(inner, response)
        raise error


def host_of(url: str) -> str:
    """Returns the host of a URL; raises FetchError if it is no URL."""
    return parse(url).host or ""


def parse(url: str) -> Url:
    """Parses a URL; raises FetchError if it cannot be requested."""
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise FetchError("a control character in the URL")
    try:
        target = parse_url(url)
    except ValueError as error:  # LocationParseError and what IDNA may raise
        raise FetchError("not a URL: its host or port cannot be understood") from error
    if not target.host:
        raise FetchError("not a URL: no host in it")
    if len(target.host) > 253:
        raise FetchError("not a URL: its host name is too long")
    return target


def _encoding(header: str) -> str:
    """Returns a Content-Encoding that can be undone, "" for none; unknown ones are ignored."""
    encoding = header.strip().lower()
    if encoding in ("br", "zstd", "compress") or "," in encoding:
        raise FetchError(f"packed as {encoding[:20]}, which was not asked for")
    return encoding if encoding in ("gzip", "x-gzip", "deflate") else ""


def _unpacker(encoding: str, start: bytes) -> "zlib._Decompress":
    """Returns a decompressor for a body that begins with `start`.

    Deflate should have zlib's header, but many servers omit it.
    """
    has_zlib_header = (
        len(start) > 1 and start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    )
    if encoding == "deflate" and not has_zlib_header and not start.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(-zlib.MAX_WBITS)
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib's header or gzip's


def _check_whole(content_range: str, sent: int) -> None:
    """Raises FetchError for a response 206 that does not have all bytes."""
    found = re.fullmatch(
        r"\s*bytes\s+\d+-\d+/(\d{1,18})\s*", content_range, re.ASCII | re.IGNORECASE
    )
    if not found:
        raise FetchError(
            "HTTP 206 Partial Content, which was not asked for, without saying which part"
        )
    whole = int(found[1])
    if sent != whole:
        raise FetchError(
            f"HTTP 206 Partial Content, which was not asked for: {sent:,} of {whole:,} bytes"
        )


def forbids_ai(headers: Iterable[str], robots: Collection[str]) -> str:
    """Returns the directive of X-Robots-Tag headers that forbids AI, "" for none.

    "noai, noindex" is for all robots, "somebot: noindex, noai" for the robot of that name.
    `robots` are our own names, in lower case.
    """
    for header in headers:
        for_us = True
        for item in header.lower().split(","):
            named = _ROBOT.fullmatch(item)
            if named and named[1] not in _WITH_VALUE:
                for_us, item = named[1] in robots, named[2]
            if for_us and item.strip() in ("noai", "noimageai"):
                return item.strip()
    return ""


def asked_wait(retry_after: str | None) -> float:
    """Returns the seconds of a Retry-After header (seconds or a date), 0 for none."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _next_url(url: str, location: str) -> str:
    with contextlib.suppress(UnicodeError):
        # http.client reads headers as latin-1, servers write UTF-8.
        location = location.encode("latin-1").decode()
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise FetchError("redirected to something that is not a URL") from error
    scheme = scheme_of(target)
    if scheme not in WEB:
        raise FetchError(
            f"refused: a redirect to '{scheme[:20]}' (only http and https are followed)"
        )
    return target


def _broken(inner: object, response: BaseHTTPResponse | None) -> FetchError:
    if isinstance(inner, http.client.LineTooLong) or type(inner) is http.client.HTTPException:
        return headers_too_large()
    if response is not None:
        if response.length_remaining is None:
            return FetchError("the connection was closed before the end of the body", again=True)
        whole = response.tell() + response.length_remaining
        return FetchError(
            f"the connection was closed after {response.tell():,} of {whole:,} bytes", again=True
        )
    no_http = (http.client.BadStatusLine, http.client.UnknownProtocol)
    if isinstance(inner, no_http) and not isinstance(inner, ConnectionError):
        return FetchError("the server does not speak HTTP", again=True)
    return FetchError("the connection was closed without an answer", again=True, no_answer=True)
