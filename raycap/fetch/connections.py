"""HTTP connections to permitted addresses, within a picture's deadline and limit of bytes."""

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import certifi
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from raycap.fetch.addresses import why_refused
from raycap.fetch.errors import FetchError, headers_too_large
from raycap.fetch.timeouts import call_with_timeout

# Bytes of headers, with those of interim responses (103 Early Hints). Browsers allow as many.
MOST_HEADER_BYTES = 1 << 18
_LONGEST_LINE = 1 << 16
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


class RequestLimits(threading.local):
    """The seconds and bytes that are left for the current request; a thread has one at a time.

    Bytes are counted as they leave the socket. So no header, chunk size or encoding can make a
    parser read more than is allowed.
    """

    def __init__(self, connect_timeout: float, read_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._end = 0.0
        self._bytes_allowed = 0
        self._too_many: Callable[[], FetchError] = headers_too_large
        self.received = 0  # bytes of the response so far, with headers
        self.connected = False  # whether this request opened a connection

    def start(self, seconds: float) -> None:
        """Gives the current picture `seconds` from now."""
        self._end = time.monotonic() + seconds

    def start_request(self) -> None:
        """Begins to count bytes; MOST_HEADER_BYTES are allowed up to the end of the headers."""
        self._bytes_allowed, self._too_many = MOST_HEADER_BYTES, headers_too_large
        self.received, self.connected = 0, False

    def allow(self, received: int, too_many: Callable[[], FetchError]) -> None:
        """Allows `received` to reach this number; `too_many` makes the error for more."""
        self._bytes_allowed, self._too_many = received, too_many

    def count(self, received: int) -> None:
        """Adds bytes that were read from the socket."""
        self.received += received
        if self.received > self._bytes_allowed:
            raise self._too_many()

    def extend(self, seconds: float) -> None:
        """Gives the current picture more time."""
        self._end += seconds

    def left(self) -> float:
        """Returns the seconds until the deadline, negative after it."""
        return self._end - time.monotonic()

    def to_connect(self) -> float:
        """Returns the seconds that opening a connection may take."""
        return self._at_most(self._connect_timeout)

    def to_read(self) -> float:
        """Returns the seconds to wait for the next bytes."""
        return self._at_most(self._read_timeout)

    def _at_most(self, seconds: float) -> float:
        left = self.left()
        if left <= 0:
            raise TimeoutError
        return min(seconds, left)


class TimedSocket(socket.socket):
    """Sets its timeout before each read: a server cannot exceed the deadline byte by byte."""

    limits: RequestLimits

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.limits.to_read())
        received = super().recv_into(*args)
        self.limits.count(received)
        return received


class TimedTLSSocket(ssl.SSLSocket):
    """The same for TLS. (The socket's timeout holds for the handshake as a whole.)"""

    limits: RequestLimits

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.limits.to_read())
        received = super().recv_into(*args)
        self.limits.count(received)
        return received


class Dialer:
    """Opens sockets: looks a name up once, checks its addresses, and connects to a checked one.

    The name is not looked up again, so an answer that changes after the check (DNS rebinding) has
    no effect.
    """

    def __init__(self, limits: RequestLimits, allow_private: bool) -> None:
        self.limits = limits
        self._allow_private = allow_private

    def __call__(self, host: str, port: int) -> TimedSocket:
        self.limits.connected = True
        found = self._look_up(host.strip("[]"), port)
        permitted = [
            entry for entry in found if self._allow_private or not why_refused(entry[-1][0])
        ]
        if not permitted:
            address = found[0][-1][0]
            raise FetchError(
                f"refused: {address} is {why_refused(address)} (--fetch.allow-private permits it)"
            )
        failure: OSError | None = None
        for family, kind, protocol, _, address in permitted:
            try:
                return self._connect(TimedSocket(family, kind, protocol), address)
            except OSError as error:
                failure = error
        assert failure is not None
        raise self._no_connection(host, failure) from failure

    def _look_up(self, host: str, port: int) -> list[Any]:
        try:
            return call_with_timeout(
                self.limits.to_connect(),
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
            )
        except TimeoutError as error:
            raise self._no_connection(host, error) from error
        except (socket.gaierror, UnicodeError) as error:
            # UnicodeError: labels that are empty or too long.
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise FetchError(
                f"the host name {host} does not resolve", again, no_answer=True
            ) from error

    def _connect(self, connection: TimedSocket, address: Any) -> TimedSocket:
        try:
            connection.limits = self.limits
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self.limits.to_connect())
            connection.connect(address)
            # For the TLS handshake, with what is left by now.
            connection.settimeout(self.limits.to_connect())
        except OSError:
            connection.close()
            raise
        return connection

    def _no_connection(self, host: str, error: OSError) -> Exception:
        if self.limits.left() <= 0:
            return TimeoutError()
        if isinstance(error, TimeoutError):
            return FetchError(
                f"no connection to {host} in time (--fetch.connect-timeout)",
                again=True,
                no_answer=True,
            )
        return FetchError(
            f"no connection to {host}: {error.strerror or type(error).__name__}",
            again=True,
            no_answer=True,
        )


class CheckedResponse(http.client.HTTPResponse):
    """Skips interim responses and accepts well-formed chunk sizes only.

    The standard library takes 103 Early Hints for the response, and reads to the end of the
    connection when a chunk has size -1. The two methods are not public. Without them reasons get
    worse, but nothing becomes less safe: bytes are counted at the socket.
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


class _Connection(HTTPConnection):
    response_class = CheckedResponse

    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        return self._dialer(self.host, self.port)


class _TLSConnection(HTTPSConnection):
    """Checks the certificate for the host's name; only the socket below is ours."""

    response_class = CheckedResponse

    def __init__(self, *args: Any, dialer: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dialer = dialer

    def _new_conn(self) -> socket.socket:
        return self._dialer(self.host, self.port)

    def connect(self) -> None:
        super().connect()
        self.sock.limits = self._dialer.limits  # type: ignore[union-attr]


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class ConnectionPools(PoolManager):
    """Open connections to at most `hosts` hosts, with at most `idle` unused ones to each."""

    def __init__(self, dialer: Dialer, hosts: int, idle: int) -> None:
        super().__init__(num_pools=hosts)
        self._dialer = dialer
        self._idle = idle

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        if scheme == "https":
            return _TLSPool(
                host,
                port,
                maxsize=self._idle,
                dialer=self._dialer,
                ssl_context=self._trusted_authorities,
            )
        return _Pool(host, port, maxsize=self._idle, dialer=self._dialer)

    @cached_property  # 30 ms, which a list without https does not need
    def _trusted_authorities(self) -> ssl.SSLContext:
        """The machine's own certificate authorities (with SSL_CERT_FILE) and Mozilla's list."""
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        context.sslsocket_class = TimedTLSSocket
        return context
