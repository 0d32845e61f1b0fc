"""HTTP connections to permitted addresses, within a picture's deadline and limit of bytes."""

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import certifi

from raycap.fetch.addresses import why_refused
from raycap.fetch.errors import FetchError, headers_too_large
from raycap.fetch.timeouts import call_with_timeout

# Bytes of headers, with those of interim responses (103 Early Hints). Browsers allow as many.
MOST_HEADER_BYTES = 1 << 18
_LONGEST_LINE, _MOST_HEADERS = 1 << 16, 100
# Bytes that are read from a socket at once: a small picture and its headers.
_BUFFER = 1 << 15
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

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        return super().makefile("rb", buffering=_BUFFER)

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.limits.to_read())
        received = super().recv_into(*args)
        self.limits.count(received)
        return received


class TimedTLSSocket(ssl.SSLSocket):
    """The same for TLS. (The socket's timeout holds for the handshake as a whole.)"""

    limits: RequestLimits

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        return super().makefile("rb", buffering=_BUFFER)

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


class Headers:
    """The headers of a response, by their names in any case."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._values: dict[str, list[str]] = {}
        last: list[str] = []
        for line in lines:
            text = line.decode("latin-1")
            name, colon, value = text.partition(":")
            if text[:1] in " \t":  # it goes on with the line before
                last[-1:] = [f"{each} {text.strip()}" for each in last[-1:]]
            elif colon:
                last = self._values.setdefault(name.rstrip().lower(), [])
                last.append(value.strip())

    def get(self, name: str, default: str = "") -> str:
        """The value of a header; several values are joined by commas."""
        return ", ".join(self.getlist(name)) or default

    def getlist(self, name: str) -> list[str]:
        return self._values.get(name.lower(), [])


class CheckedResponse(http.client.HTTPResponse):
    """The response to a GET. Skips interim responses and accepts well-formed sizes only.

    The standard library takes 103 Early Hints for the response, reads to the end of the
    connection when a chunk has size -1, and parses headers as those of mail, which takes longer
    than all else. Some of these methods are not public. Without `_read_status` and
    `_read_next_chunk_size` reasons get worse, but nothing becomes less safe: bytes are counted at
    the socket.
    """

    fields: Headers
    body_bytes = 0  # that were read

    def begin(self) -> None:
        version, self.status, self.reason = self._read_status()
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise http.client.UnknownProtocol(version)
        self.fields = Headers(self._header_lines())
        self.chunked = self.fields.get("Transfer-Encoding").strip().lower() == "chunked"
        self.chunk_left = None
        self.length = None if self.chunked else self._declared_length()
        if self.status in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED):
            self.length = 0
        options = self.fields.get("Connection").lower()
        keeps_open = "close" not in options and (version != "HTTP/1.0" or "keep-alive" in options)
        has_end = self.chunked or self.length is not None
        self.will_close = not (keeps_open and has_end)

    @property
    def is_over(self) -> bool:
        """Whether it was read to its end, and another one can follow on the connection."""
        return self.isclosed() and not self.will_close

    def read_some(self, size: int) -> bytes:
        """Up to so many bytes of the body; b"" at its end."""
        data = self.read(size)
        self.body_bytes += len(data)
        if not data and self.length:
            raise http.client.IncompleteRead(b"", self.length)
        return data

    def _declared_length(self) -> int | None:
        text = self.fields.get("Content-Length")
        try:
            lengths = {int(each) for each in text.split(",")}
        except ValueError:
            return None
        if len(lengths) > 1:
            raise FetchError("a Content-Length that contradicts itself")
        length = lengths.pop()
        return length if length >= 0 else None

    def _header_lines(self) -> Iterator[bytes]:
        for _ in range(_MOST_HEADERS + 1):
            line = self.fp.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                raise headers_too_large()
            if line in (b"\r\n", b"\n", b""):
                return
            yield line
        raise headers_too_large()

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            for _ in self._header_lines():
                pass

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_LONGEST_LINE + 1)
        if not line:
            raise http.client.IncompleteRead(b"")
        size = line.partition(b";")[0].strip()
        if len(line) > _LONGEST_LINE or not _CHUNK_SIZE.fullmatch(size):
            raise FetchError("a chunk of the body has no valid size")
        return int(size, 16)


class Connection:
    """An open connection to a host."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    def get(self, request: bytes) -> CheckedResponse:
        with contextlib.suppress(BrokenPipeError):  # it may have answered before it closed
            self._socket.sendall(request)
        response = CheckedResponse(self._socket)
        try:
            response.begin()
        except BaseException:  # a response that is not closed keeps the socket open
            response.close()
            raise
        return response

    def is_quiet(self) -> bool:
        """Whether nothing has arrived: neither the end of the connection nor data that was not
        asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()


# The scheme, host and port.
Server = tuple[str, str, int]


class ConnectionPool:
    """Opens connections, and keeps those that can be used again: at most `idle` for a server, of
    the `servers` that were used last."""

    def __init__(self, dialer: Dialer, servers: int, idle: int) -> None:
        self._dialer = dialer
        self._most_servers, self._most_idle = servers, idle
        self._idle: dict[Server, list[Connection]] = {}
        self._lock = threading.Lock()

    def take(self, server: Server, is_new: bool = False) -> Connection:
        """A connection to a server, for this thread alone; one that was not used before if it has
        to be new."""
        while not is_new and (connection := self._take_idle(server)) is not None:
            if connection.is_quiet():
                return connection
            connection.close()
        scheme, host, port = server
        opened = self._dialer(host, port)
        return Connection(opened if scheme == "http" else self._secured(opened, host))

    def _take_idle(self, server: Server) -> Connection | None:
        with self._lock:
            connections = self._idle.get(server)
            return connections.pop() if connections else None

    def give_back(self, server: Server, connection: Connection) -> None:
        dropped = []
        with self._lock:
            connections = self._idle.pop(server, [])
            connections.append(connection)
            if len(connections) > self._most_idle:
                dropped.append(connections.pop(0))
            self._idle[server] = connections  # the last one to be dropped
            if len(self._idle) > self._most_servers:
                dropped += self._idle.pop(next(iter(self._idle)))
        for each in dropped:
            each.close()

    def close(self) -> None:
        with self._lock:
            held, self._idle = self._idle, {}
        for connections in held.values():
            for connection in connections:
                connection.close()

    def _secured(self, opened: TimedSocket, host: str) -> TimedTLSSocket:
        """Checks the certificate for the host's name."""
        name = host.strip("[]").partition("%")[0].rstrip(".")
        try:
            secured = self._trusted_authorities.wrap_socket(opened, server_hostname=name)
        except BaseException:  # the caller does not have the socket yet, and cannot close it
            opened.close()
            raise
        assert isinstance(secured, TimedTLSSocket)
        secured.limits = opened.limits
        return secured

    @cached_property  # 30 ms, which a list without https does not need
    def _trusted_authorities(self) -> ssl.SSLContext:
        """The machine's own certificate authorities (with SSL_CERT_FILE) and Mozilla's list."""
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = TimedTLSSocket
        return context
