"""One GET over http or https: the body, a redirect, or FetchError with the reason."""

import base64
import contextlib
import functools
import http.client
import io
import re
import ssl
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin

from urllib3.util import Url, parse_url

from raycap.fetch.connections import (
    CheckedResponse,
    ConnectionPool,
    Dialer,
    RequestLimits,
    Server,
)
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
_ORDINARY = re.compile(r"https?://([a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,3})(?::[0-9]{2,4})?[/?]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ZONE = re.compile(r"%.*(?=\])")  # of an IPv6 address, which is no business of the server's
_PORTS = {"http": 80, "https": 443}


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
        self._robots = {
            "*",
            "raycap",
            re.split(r"[/\s]", options.user_agent.lower(), maxsplit=1)[0],
        }
        dialer = Dialer(self._limits, options.allow_private)
        self._pool = ConnectionPool(dialer, servers=2 * options.threads, idle=options.per_host)

    def get(self, url: str, seconds: float, grow_to: GrowTo | None = None) -> bytes | Redirect:
        """Returns the body at `url`, or a redirect, within `seconds`; raises FetchError.

        `grow_to` is called with the size of the body as it grows. Its waits do not count.
        """
        self._limits.start(seconds)
        target = parse(url)
        scheme = target.scheme or "http"
        host = (target.host or "").rstrip(".")
        server = (scheme, host, target.port or _PORTS[scheme])
        request = self._request(target, server)
        try:
            return self._get(url, server, request, grow_to)
        except _Stale:
            return self._get(url, server, request, grow_to, is_new=True)

    def _get(
        self,
        url: str,
        server: Server,
        request: bytes,
        grow_to: GrowTo | None,
        is_new: bool = False,
    ) -> bytes | Redirect:
        response: CheckedResponse | None = None
        self._limits.start_request()
        connection = None
        try:
            connection = self._pool.take(server, is_new)
            response = connection.get(request)
            return self._answer(url, response, grow_to)
        except (http.client.HTTPException, OSError, zlib.error) as error:
            if self._was_stale(error):
                raise _Stale from error
            raise self._fault(error, server[1], response) from error
        finally:
            if response is not None:
                response.close()
            if connection is not None:
                if response is not None and response.is_over:
                    self._pool.give_back(server, connection)
                else:
                    connection.close()

    def host(self, url: str) -> str:
        """Returns the host of a URL; raises FetchError if it is no URL."""
        return host_of(url)

    def close(self) -> None:
        """Closes the connections that are kept open."""
        self._pool.close()

    def _request(self, target: Url, server: Server) -> bytes:
        scheme, host, port = server
        host = _ZONE.sub("", host) + (f":{port}" if port != _PORTS[scheme] else "")
        headers = {"Host": host, **self._headers(target)}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        # Controls and spaces in it are percent-encoded.
        return f"GET {target.request_uri} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")

    def _was_stale(self, error: Exception) -> bool:
        """Whether the server closed a kept connection before it saw the request.

        That is not the picture's fault: the request is repeated at once and costs no retry.
        """
        closed = not isinstance(error, (TimeoutError, zlib.error))
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
        self, url: str, response: CheckedResponse, grow_to: GrowTo | None
    ) -> bytes | Redirect:
        status = response.status
        if 200 <= status < 300:
            if not self._options.ignore_robots_tag:
                directive = forbids_ai(response.fields.getlist("X-Robots-Tag"), self._robots)
                if directive:
                    raise FetchError(
                        f"the server forbids it: X-Robots-Tag {directive} "
                        "(--fetch.ignore-robots-tag fetches it)"
                    )
            return self._body(response, grow_to)
        location = response.fields.get("Location")
        wait = asked_wait(response.fields.get("Retry-After"))
        with contextlib.suppress(http.client.HTTPException, OSError, FetchError):
            # After a short page that is read to its end, the connection can be used again.
            response.read_some(_CHUNK)
        if status in _MOVED and location:
            return Redirect(_next_url(url, location))
        # The standard phrase, not the server's: so that reports count all of a status together.
        phrase = http.client.responses.get(status, "")
        again = status == 429 or status >= 500
        raise FetchError(f"HTTP {status} {phrase}".rstrip(), again, wait)

    def _body(self, response: CheckedResponse, grow_to: GrowTo | None) -> bytes:
        cap = self._options.max_bytes
        if (response.length or 0) > cap:
            raise too_large(cap)
        encoding = _encoding(response.fields.get("Content-Encoding", ""))
        unpack: zlib._Decompress | None = None
        body = io.BytesIO()
        sent = size = 0  # bytes before and after unpacking; the cap holds for both
        head = self._limits.received
        while True:
            self._limits.allow(head + sent + _CHUNK + _MOST_FRAMING_BYTES, framing_too_large)
            chunk = response.read_some(_CHUNK)
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
            _check_whole(response.fields.get("Content-Range", ""), sent)
        return body.getvalue()  # joining chunks would hold all bytes twice for a moment

    def _fault(self, error: Exception, host: str, response: CheckedResponse | None) -> FetchError:
        if self._limits.left() <= 0:
            return too_late(self._options.deadline)
        if isinstance(error, ssl.SSLCertVerificationError):
            return FetchError(f"the certificate of {host} is not trusted: {error.verify_message}")
        if isinstance(error, ssl.SSLError):
            what = error.reason or type(error).__name__
            return FetchError(f"TLS with {host} failed: {what}", again=True)
        if isinstance(error, TimeoutError):
            return FetchError(
                f"no byte for {self._options.read_timeout:g} s (--fetch.read-timeout)",
                again=True,
                no_answer=True,
            )
        if isinstance(error, zlib.error):
            return FetchError("the body is not what its Content-Encoding says")
        return _broken(error, response)


class _Stale(Exception):
    """The server has closed a kept connection before it saw the request."""


def host_of(url: str) -> str:
    """Returns the host of a URL; raises FetchError if it is no URL."""
    if (ordinary := _ORDINARY.match(url)) and not _CONTROL.search(url):
        return ordinary[1]  # as `parse` would find it, in a tenth of the time
    return parse(url).host or ""


@functools.lru_cache(4096)  # it is asked for several times while the picture waits
def parse(url: str) -> Url:
    """Parses a URL; raises FetchError if it cannot be requested."""
    if _CONTROL.search(url):
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
    if not retry_after:
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


def _broken(inner: object, response: CheckedResponse | None) -> FetchError:
    if isinstance(inner, http.client.LineTooLong) or type(inner) is http.client.HTTPException:
        return headers_too_large()
    if response is not None:
        read = response.body_bytes
        if response.length is None:
            return FetchError("the connection was closed before the end of the body", again=True)
        return FetchError(
            f"the connection was closed after {read:,} of {read + response.length:,} bytes",
            again=True,
        )
    no_http = (http.client.BadStatusLine, http.client.UnknownProtocol)
    if isinstance(inner, no_http) and not isinstance(inner, ConnectionError):
        return FetchError("the server does not speak HTTP", again=True)
    return FetchError("the connection was closed without an answer", again=True, no_answer=True)
