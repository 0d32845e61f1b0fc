"""One GET over http or https: the body, where it moved to, or what went wrong; knows no queue and no retries."""

import base64
import contextlib
import http.client
import ssl
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin

from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswer
from urllib3.util import Url, parse_url

from raycap.fetch.connections import Clock, Dial, Pools
from raycap.fetch.fault import FetchError, too_large, too_late
from raycap.fetch.options import Fetch
from raycap.uris import WEB, scheme_of

_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16  # bytes read at a time


@dataclass(frozen=True)
class Moved:
    """The answer that the picture is elsewhere."""

    url: str


class Web:
    """GETs through kept-open connections; proxies named by the environment are not used.

    A proxy would look names up itself, and the address check would only ever see the proxy's own address.
    """

    def __init__(self, options: Fetch) -> None:
        self._options = options
        self._clock = Clock(options.connect_timeout, options.read_timeout)
        self._timeout = Timeout(connect=options.connect_timeout, read=options.read_timeout)
        dial = Dial(self._clock, options.allow_private)
        self._pools = Pools(dial, hosts=2 * options.threads, places=options.per_host)

    def get(self, url: str, seconds: float) -> bytes | Moved:
        """The body behind `url` within `seconds`, or where it moved to; raises FetchError."""
        self._clock.start(seconds)
        target = parsed(url)
        response: BaseHTTPResponse | None = None
        try:
            response = self._pools.connection_from_host(target.host, target.port, target.scheme).urlopen(
                "GET",
                target.request_uri,
                headers=self._headers(target),
                retries=False,
                redirect=False,
                timeout=self._timeout,
                preload_content=False,
            )
            return self._answer(url, response)
        except (HTTPError, TimeoutError, zlib.error) as error:
            raise self._fault(error, target.host or "", response) from error
        finally:
            if response is not None:
                response.close()  # one that was read to its end has already given its connection back

    def host(self, url: str) -> str:
        """Who would be asked; raises FetchError where the URL is none."""
        return parsed(url).host or ""

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._pools.clear()

    def _headers(self, target: Url) -> dict[str, str]:
        headers = {
            "User-Agent": self._options.user_agent,
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",  # pictures are packed already
        }
        if target.auth:
            headers["Authorization"] = "Basic " + base64.b64encode(unquote(target.auth).encode()).decode()
        return headers

    def _answer(self, url: str, response: BaseHTTPResponse) -> bytes | Moved:
        status = response.status
        if 200 <= status < 300:
            return self._body(response)
        location = response.headers.get("Location")
        wait = asked_wait(response.headers.get("Retry-After"))
        with contextlib.suppress(HTTPError, TimeoutError):
            response.read(_CHUNK, decode_content=False)  # read to its end, a short page spares a new connection
        if status in _MOVED and location:
            return Moved(_next_url(url, location))
        words = http.client.responses.get(status, "")  # never the server's own, which would not count as one
        raise FetchError(f"HTTP {status} {words}".rstrip(), again=status == 429 or status >= 500, wait=wait)

    def _body(self, response: BaseHTTPResponse) -> bytes:
        cap = self._options.max_bytes
        if (response.length_remaining or 0) > cap:
            raise too_large(cap)
        unpack = _unpacker(response.headers.get("Content-Encoding", ""))
        chunks, sent, size = [], 0, 0  # bytes before and after unpacking, each held to the cap
        while chunk := response.read(_CHUNK, decode_content=False):
            sent += len(chunk)
            if unpack:  # at most to one byte too many, however small the bomb
                chunk = b"" if unpack.eof else unpack.decompress(chunk, cap - size + 1)
            size += len(chunk)
            if max(sent, size) > cap:
                raise too_large(cap)
            chunks.append(chunk)
        if not size:
            raise FetchError("an empty body")
        if unpack and not unpack.eof:
            raise zlib.error("cut short")
        return b"".join(chunks)

    def _fault(self, error: Exception, host: str, response: BaseHTTPResponse | None) -> FetchError:
        if self._clock.left() <= 0:
            return too_late(self._options.deadline)
        inner = error.args[-1] if error.args else error
        if isinstance(inner, ssl.SSLCertVerificationError):
            return FetchError(f"the certificate of {host} is not trusted: {inner.verify_message}")
        if isinstance(error, SSLError):
            what = getattr(inner, "reason", None) or type(inner).__name__
            return FetchError(f"TLS with {host} failed: {what}", again=True)
        if isinstance(error, (NoAnswer, TimeoutError)):
            return FetchError(f"no byte for {self._options.read_timeout:g} s (--fetch.read-timeout)", again=True)
        if isinstance(error, zlib.error):
            return FetchError("the body is not what its Content-Encoding says")
        if isinstance(error, InvalidHeader):
            return FetchError("a Content-Length that contradicts itself")
        if isinstance(error, ProtocolError):
            return _broken(inner, response)
        raise error


def parsed(url: str) -> Url:
    """`url` taken apart; raises FetchError where it cannot be asked for."""
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


def _unpacker(encoding: str) -> "zlib._Decompress | None":
    """What undoes a Content-Encoding that nobody asked for; made-up ones are ignored, the bytes decide."""
    encoding = encoding.strip().lower()
    if encoding in ("br", "zstd", "compress") or "," in encoding:
        raise FetchError(f"packed as {encoding[:20]}, which was not asked for")
    return zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "x-gzip", "deflate") else None


def asked_wait(retry_after: str | None) -> float:
    """The seconds that a Retry-After header asks for, 0 for none; the header holds seconds or a date."""
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
        location = location.encode("latin-1").decode()  # http.client reads headers as latin-1, servers write UTF-8
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise FetchError("redirected to something that is not a URL") from error
    scheme = scheme_of(target)
    if scheme not in WEB:
        raise FetchError(f"refused: a redirect to '{scheme[:20]}' (only http and https are followed)")
    return target


def _broken(inner: object, response: BaseHTTPResponse | None) -> FetchError:
    if response is not None:
        if response.length_remaining is None:
            return FetchError("the connection was closed before the end of the body", again=True)
        whole = response.tell() + response.length_remaining
        return FetchError(f"the connection was closed after {response.tell():,} of {whole:,} bytes", again=True)
    if isinstance(inner, http.client.BadStatusLine) and not isinstance(inner, ConnectionError):
        return FetchError("the server does not speak HTTP", again=True)
    return FetchError("the connection was closed without an answer", again=True)
