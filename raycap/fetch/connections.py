"""Connections that go only where they may, and that end at their picture's deadline or limit of bytes."""

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
from raycap.fetch.answers import CheckedResponse, headers_too_large
from raycap.fetch.errors import FetchError
from raycap.fetch.timeouts import call_with_timeout

# Bytes of headers in all, those of interim answers (103 Early Hints) included. Browsers stop at about as many.
HEADER_ROOM = 1 << 18


class RequestLimits(threading.local):
    """What the request in hand may still take, in seconds and in bytes. One thread has one request at a time.

    Bytes are counted where they leave the socket. So no header, chunk size or encoding can make a parser read, or
    hold, more than was allowed.
    """

    def __init__(self, connect_timeout: float, read_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._end = 0.0
        self._bytes_allowed = 0
        self._too_many: Callable[[], FetchError] = headers_too_large
        self.received = 0  # bytes of the answer so far, headers included
        self.dialled = False  # whether this request made a connection of its own

    def start(self, seconds: float) -> None:
        """Give the picture in hand `seconds` from now."""
        self._end = time.monotonic() + seconds

    def start_request(self) -> None:
        """Begin to count; up to the end of the headers HEADER_ROOM bytes are allowed."""
        self._bytes_allowed, self._too_many = HEADER_ROOM, headers_too_large
        self.received, self.dialled = 0, False

    def allow(self, received: int, too_many: Callable[[], FetchError]) -> None:
        """Let `received` go up to this number; `too_many` makes the error for what goes beyond."""
        self._bytes_allowed, self._too_many = received, too_many

    def count(self, received: int) -> None:
        """Add bytes that came out of the socket."""
        self.received += received
        if self.received > self._bytes_allowed:
            raise self._too_many()

    def extend(self, seconds: float) -> None:
        """Give the picture in hand more time."""
        self._end += seconds

    def left(self) -> float:
        """Seconds until the deadline, negative after it."""
        return self._end - time.monotonic()

    def to_connect(self) -> float:
        """How long a connection may take to be made."""
        return self._at_most(self._connect_timeout)

    def to_read(self) -> float:
        """How long the next bytes may be waited for."""
        return self._at_most(self._read_timeout)

    def _at_most(self, seconds: float) -> float:
        left = self.left()
        if left <= 0:
            raise TimeoutError
        return min(seconds, left)


class TimedSocket(socket.socket):
    """Asks for the time before each read, so that a server that drips single bytes cannot outlast the deadline, and
    counts the bytes of each read."""

    limits: RequestLimits

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.limits.to_read())
        received = super().recv_into(*args)
        self.limits.count(received)
        return received


class TimedTLSSocket(ssl.SSLSocket):
    """The same under TLS. (OpenSSL's handshake takes the socket's timeout for the whole of it.)"""

    limits: RequestLimits

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.limits.to_read())
        received = super().recv_into(*args)
        self.limits.count(received)
        return received


class Dialer:
    """Opens sockets: looks a name up once, checks every address, and connects to exactly what was checked.

    A name that changes its answer between check and use (DNS rebinding) gains nothing: there is no second look.
    """

    def __init__(self, limits: RequestLimits, allow_private: bool) -> None:
        self.limits = limits
        self._allow_private = allow_private

    def __call__(self, host: str, port: int) -> TimedSocket:
        self.limits.dialled = True
        found = self._look_up(host.strip("[]"), port)
        permitted = [
            entry for entry in found if self._allow_private or not why_refused(entry[-1][0])
        ]
        if not permitted:
            address = found[0][-1][0]
            raise FetchError(
                f"refused: {address} is {why_refused(address)} (--fetch.allow-private permits it)"
            )
        for place, (family, kind, protocol, _, where) in enumerate(permitted, 1):
            try:
                return self._connect(TimedSocket(family, kind, protocol), where)
            except OSError as error:
                if place == len(permitted):
                    raise self._no_connection(host, error) from error
        raise AssertionError("unreachable: the last address either connects or raises")

    def _look_up(self, host: str, port: int) -> list[Any]:
        try:
            return call_with_timeout(
                self.limits.to_connect(),
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
            )
        except TimeoutError as error:
            raise self._no_connection(host, error) from error
        except (
            socket.gaierror,
            UnicodeError,
        ) as error:  # the latter for labels that are empty or too long
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise FetchError(f"the host name {host} does not resolve", again) from error

    def _connect(self, connection: TimedSocket, where: Any) -> TimedSocket:
        try:
            connection.limits = self.limits
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self.limits.to_connect())
            connection.connect(where)
            connection.settimeout(
                self.limits.to_connect()
            )  # for the TLS handshake, with what is left by now
        except OSError:
            connection.close()
            raise
        return connection

    def _no_connection(self, host: str, error: OSError) -> Exception:
        if self.limits.left() <= 0:
            return TimeoutError()
        if isinstance(error, TimeoutError):
            return FetchError(
                f"no connection to {host} in time (--fetch.connect-timeout)", again=True
            )
        return FetchError(
            f"no connection to {host}: {error.strerror or type(error).__name__}", again=True
        )


class _Connection(HTTPConnection):
    response_class = CheckedResponse

    def __init__(self, *args: Any, dial: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dial = dial

    def _new_conn(self) -> socket.socket:
        return self._dial(self.host, self.port)


class _TLSConnection(HTTPSConnection):
    """Name and certificate stay the host's: only the socket below is ours."""

    response_class = CheckedResponse

    def __init__(self, *args: Any, dial: Dialer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dial = dial

    def _new_conn(self) -> socket.socket:
        return self._dial(self.host, self.port)

    def connect(self) -> None:
        super().connect()
        self.sock.limits = self._dial.limits  # type: ignore[union-attr]


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class ConnectionPools(PoolManager):
    """Open connections to at most `hosts` hosts at a time, at most `places` idle ones to each."""

    def __init__(self, dial: Dialer, hosts: int, places: int) -> None:
        super().__init__(num_pools=hosts)
        self._dial = dial
        self._places = places

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        if scheme == "https":
            return _TLSPool(
                host, port, maxsize=self._places, dial=self._dial, ssl_context=self._trust
            )
        return _Pool(host, port, maxsize=self._places, dial=self._dial)

    @cached_property  # 30 ms, which a list without https never pays
    def _trust(self) -> ssl.SSLContext:
        """The machine's own certificate authorities (SSL_CERT_FILE too) and Mozilla's list beside them."""
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        context.sslsocket_class = TimedTLSSocket
        return context
