"""One HTTP exchange with a server: a body of bounded size, or a Fault.

No redirects, no cookies, no compressed answers, no proxies of the environment.
"""

import asyncio
import contextlib
import email.utils
import io
import time
from typing import Any

import aiohttp

from raycap import __version__
from raycap.captioners.endpoint.faults import Fault, Kind, quoted
from raycap.captioners.endpoint.key import ApiKey

CONNECT_SECONDS = 10.0
# Servers based on uvicorn close a connection that was idle for 5 seconds; it is not used then.
KEEP_ALIVE_SECONDS = 4.0
MOST_BYTES_OF_AN_ERROR = 1 << 16
# From this size on, a body is sent piece by piece.
LARGE_BODY = 1 << 19

NO_ACCESS = "the server gives no access"
REFUSED = "the server refused the request"
REDIRECTS = "the server redirects"
OVERLOADED = "the server is overloaded"
FAILED = "the server failed"
TOO_LARGE = "the server's answer is too large"
COMPRESSED = "the server's answer is compressed"
LOST = "the connection broke"
TIMED_OUT = "no answer in time"
UNREACHABLE = "no connection to the server"

_GATEWAY = (408, 425, 502, 504)
_BUSY = (429, 503, 529)


def new_session(at_a_time: int) -> aiohttp.ClientSession:
    """A session for so many requests at a time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=2 * at_a_time, keepalive_timeout=KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={
            "User-Agent": f"raycap/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
    )


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    key: ApiKey | None,
    seconds: float,
    most: int,
    body: bytes | None = None,
) -> bytes:
    """The body of an answer with status 200; anything else raises Fault."""
    headers = {"Authorization": key.header()} if key is not None else {}
    data: Any = body
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = body if len(body) < LARGE_BODY else io.BytesIO(body)
    # No error is chained to another one: those of aiohttp hold the request with its headers.
    try:
        async with (
            asyncio.timeout(seconds),
            session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as response,
        ):
            if response.status == 200:
                return await _read(response, most)
            content = b""
            with contextlib.suppress(Fault):  # the status says enough
                content = await _read(response, MOST_BYTES_OF_AN_ERROR)
            raise _fault_of_status(response, content.decode("utf-8", "replace"), key)
    except Fault:
        raise
    except aiohttp.ConnectionTimeoutError:
        raise Fault(Kind.UNREACHABLE, f"{UNREACHABLE}: it does not answer") from None
    except TimeoutError:
        raise Fault(Kind.LOST, f"{TIMED_OUT}: {seconds:.3g} s for one request") from None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        reason = quoted(str(error.__cause__ or "TLS failed"), key)
        raise Fault(Kind.NO_ACCESS, f"{NO_ACCESS}: its certificate: {reason}") from None
    except aiohttp.ClientConnectorError as error:
        reason = error.os_error.strerror or type(error).__name__
        raise Fault(Kind.UNREACHABLE, f"{UNREACHABLE}: {reason}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Fault(Kind.LOST, f"{LOST}: {type(error).__name__}") from None


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise Fault(Kind.BAD_ANSWER, f"{COMPRESSED}: {encoding[:20]!r} was not asked for")
    too_large = Fault(Kind.BAD_ANSWER, f"{TOO_LARGE}: more than {most:,} bytes")
    if (response.content_length or 0) > most:
        response.close()
        raise too_large
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > most:
            response.close()  # otherwise the rest would be read for the next request
            raise too_large
    return bytes(content)


def _fault_of_status(response: aiohttp.ClientResponse, text: str, key: ApiKey | None) -> Fault:
    status = response.status
    said = f"HTTP {status}, {quoted(text, key)}" if text.strip() else f"HTTP {status}"
    if 300 <= status < 400:
        target = quoted(response.headers.get("Location", "nowhere"), key)
        return Fault(
            Kind.REFUSED,
            f"{REDIRECTS}: HTTP {status} to {target}; this is not followed, so give the address "
            "itself as --model if you trust it",
        )
    if status == 401:
        return Fault(Kind.NO_ACCESS, f"{NO_ACCESS}: HTTP 401, " + ABOUT_THE_KEY[key is not None])
    if status == 402 or "insufficient_quota" in text:
        return Fault(Kind.NO_ACCESS, f"{NO_ACCESS}: {said}")
    if status == 403:  # not what it says: it may quote the key
        return Fault(Kind.REFUSED, f"{REFUSED}: HTTP 403, " + ABOUT_THE_KEY[key is not None])
    if status in _BUSY:
        return Fault(Kind.BUSY, f"{OVERLOADED}: {said}", _retry_after(response))
    if status in _GATEWAY:
        return Fault(Kind.LOST, f"{FAILED}: {said}")
    if 400 <= status < 500:
        return Fault(Kind.REFUSED, f"{REFUSED}: {said}")
    return Fault(Kind.BAD_ANSWER, f"{FAILED}: {said}")


ABOUT_THE_KEY = {
    True: "it does not accept the API key: see --captioner.key-env and --captioner.key-file",
    False: "no API key was sent: name its variable with --captioner.key-env, or its file with "
    "--captioner.key-file",
}


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that the server asks to wait: a number or a date. It is the caller's to bound
    them."""
    text = response.headers.get("Retry-After", "").strip()
    milliseconds = response.headers.get("Retry-After-Ms", "").strip()
    if milliseconds[:12].isdecimal() and milliseconds.isascii():
        return int(milliseconds[:12]) / 1000
    if text.isdecimal() and text.isascii():
        return float(int(text[:12]))
    try:
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:  # by the server's own clock
        now = email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, date - now)
