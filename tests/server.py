"""A real web server on loopback that serves pictures and misbehaves on request."""

import gzip
import http.server
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BODY = bytes(range(256)) * 20  # 5,120 bytes, what a well-behaved answer holds
HTML = b"<html>not a picture</html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a path by its pictures or by its misbehaviour's name, and keeps count."""

    protocol_version = "HTTP/1.1"
    server: "Server"
    answered_here = False  # whether this connection has had an answer that a test asks about

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.options = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.count(self.path)
        picture = self.server.pictures.get(unquote(url.path))
        try:
            if picture is not None and "Range" in self.headers:
                self.part_of(picture)
            elif picture is not None:
                self.whole(picture)
            else:
                MISBEHAVIOURS.get(url.path, lambda handler: handler.whole(b"gone", 404))(self)
        except OSError:  # the client had enough
            self.close_connection = True

    def log_message(self, *words: object) -> None:
        """Stay silent: the test asserts what matters."""

    def head(self, status: int = 200, **headers: object) -> None:
        """Sends status and headers (`_` means `-`); the connection takes no more requests."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def whole(self, body: bytes, status: int = 200, **headers: object) -> None:
        """A proper answer that keeps the connection."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def part_of(self, body: bytes) -> None:
        """The bytes that the request asks for; with ?fails=2 the third time."""
        if self.times() <= int(self.options.get("fails", 0)):
            return self.whole(b"oh", 503)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        content_range = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        return self.whole(part, 206, Content_Range=content_range) if part else self.whole(b"", 416)

    def times(self) -> int:
        """How often this very URL was asked for, this time included."""
        return self.server.asked[self.path]

    def drip(self, text: bytes) -> None:
        """One byte every 20 ms, over and over, until the client or the test has had enough."""
        while True:
            for byte in text:
                if self.server.closing.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))


def _drip_body(handler: Handler) -> None:
    handler.head(Content_Length=100_000)
    handler.drip(b"x")


def _drip_headers(handler: Handler) -> None:
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.drip(b"X-More: and more\r\n")


def _drip_chunks(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    handler.drip(b"1\r\nx\r\n")


def _endless(handler: Handler) -> None:
    handler.head()
    while not handler.server.closing.is_set():
        handler.wfile.write(BODY)


def _endless_chunks(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    while not handler.server.closing.is_set():
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(BODY), BODY))


def _endlessly(start: bytes, block: bytes) -> Callable[[Handler], object]:
    """Sends `start`, then `block` over and over, as fast as possible; counted in `server.sent`."""
    repeated = block * (-(-(1 << 16) // len(block)))

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(start)
        while not handler.server.closing.is_set():
            handler.server.sent += handler.connection.send(repeated)

    return answer


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
# Answers that never end, each where another part of a parser has to stop.
ENDLESS = {
    "status-line": _endlessly(b"HTTP/1.1 200 ", b"very "),
    "header-line": _endlessly(_OK + b"X-More: ", b"and more "),
    "headers": _endlessly(_OK, b"X-More: and more\r\n"),
    "long-headers": _endlessly(_OK, b"X-More: " + b"m" * 60_000 + b"\r\n"),
    "no-headers": _endlessly(_OK, b"no header at all\r\n"),
    "continue": _endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early-hints": _endlessly(b"", _EARLY_HINTS),
    "body": _endlessly(_OK + b"\r\n", b"x"),
    "body-of-negative-length": _endlessly(_OK + b"Content-Length: -1\r\n\r\n", b"x"),
    "negative-chunk": _endlessly(_CHUNKED + b"-1\r\n", b"x"),
    "odd-chunk": _endlessly(_CHUNKED + b"+0x1\r\n", b"x"),
    "malformed-chunk": _endlessly(_CHUNKED + b"many\r\n", b"x"),
    "huge-chunk": _endlessly(_CHUNKED + b"fffffffffffff\r\n", b"x"),
    "chunk-beyond-numbers": _endlessly(_CHUNKED + b"f" * 1000 + b"\r\n", b"x"),
    "chunk-size": _endlessly(_CHUNKED, b"1"),
    "chunk-extension": _endlessly(_CHUNKED + b"1;", b"x"),
    "small-chunks": _endlessly(_CHUNKED, b"1;" + b"e" * 60 + b"\r\nx\r\n"),
    "trailers": _endlessly(_CHUNKED + b"0\r\n", b"X-More: and more\r\n"),
    "trailer-line": _endlessly(_CHUNKED + b"0\r\n", b"x"),
    "gzip": _endlessly(_OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY), b"\0"),
    "error-page": _endlessly(
        b"HTTP/1.1 404 Gone\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x"
    ),
}


def _after_interim_answers(handler: Handler) -> None:
    handler.wfile.write(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + 2 * _EARLY_HINTS
    )
    handler.whole(BODY)


def _raw_deflate(handler: Handler) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    handler.whole(packer.compress(BODY) + packer.flush(), Content_Encoding="deflate")


def _raw_deflate_bomb(handler: Handler) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    handler.whole(packer.compress(bytes(20_000_000)) + packer.flush(), Content_Encoding="deflate")


def _once_a_connection(handler: Handler) -> None:
    """A good response; the next request on the connection is read, and the connection closed."""
    if handler.answered_here:
        handler.wfile.write(handler.options.get("then", "").encode())
        handler.close_connection = True
    else:
        # Long enough for requests to overlap, so that several connections are kept.
        time.sleep(0.05)
        handler.answered_here = True
        handler.whole(BODY)


def _robots_tag(handler: Handler) -> None:
    """X-Robots-Tag headers as the query asks for them, divided by "|"."""
    handler.send_response(200)
    for tag in handler.options["is"].split("|"):
        handler.send_header("X-ROBOTS-tag", tag)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY)


def _odd_headers(handler: Handler) -> None:
    handler.wfile.write(_OK + b"no header at all\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    handler.close_connection = True


def _http2(handler: Handler) -> None:
    handler.close_connection = True
    handler.wfile.write(b"HTTP/2.0 200 OK\r\n\r\n")


def _partial(handler: Handler) -> None:
    """206 with a Content-Range as the query asks for it."""
    content_range = handler.options.get("range")
    handler.whole(BODY, 206, **({"Content_Range": content_range} if content_range else {}))


def _short(handler: Handler) -> None:
    handler.head(Content_Length=len(BODY))
    handler.wfile.write(BODY[:1000])


def _short_chunks(handler: Handler) -> None:
    handler.head(Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%b" % (len(BODY), BODY[:1000]))


def _long(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(BODY)


def _bomb(handler: Handler) -> None:
    handler.whole(gzip.compress(bytes(20_000_000)), Content_Encoding="gzip")


def _gzip_and_more(handler: Handler) -> None:
    handler.head(Content_Encoding="gzip")
    handler.wfile.write(gzip.compress(BODY))
    while not handler.server.closing.is_set():
        handler.wfile.write(gzip.compress(b""))


def _busy_once(handler: Handler) -> None:
    if handler.times() == 1:
        handler.whole(b"later", 429, Retry_After=handler.options["wait"])
    else:
        handler.whole(BODY)


def _fails_twice(handler: Handler) -> None:
    handler.whole(b"oh", 500) if handler.times() < 3 else handler.whole(BODY)


def _closes(handler: Handler) -> None:
    handler.close_connection = True


def _silent(handler: Handler) -> None:
    handler.close_connection = True
    handler.server.closing.wait()


def _not_http(handler: Handler) -> None:
    handler.close_connection = True
    handler.wfile.write(b"SSH-2.0-something\r\n")


def _slow(handler: Handler) -> None:
    with handler.server.at_work():
        time.sleep(0.02)  # long enough for requests to overlap, if the client lets them
    handler.whole(handler.path.encode())


MISBEHAVIOURS: dict[str, Callable[[Handler], object]] = {
    "/good": lambda handler: handler.whole(BODY),
    "/echo-headers": lambda handler: handler.whole(str(handler.headers).encode()),
    **{f"/endless-{what}": answer for what, answer in ENDLESS.items()},
    "/interim": _after_interim_answers,
    "/switch": lambda handler: handler.whole(b"", 101),
    "/deflate": lambda handler: handler.whole(zlib.compress(BODY), Content_Encoding="deflate"),
    "/raw-deflate": _raw_deflate,
    "/raw-deflate-bomb": _raw_deflate_bomb,
    "/gzip-as-deflate": lambda handler: handler.whole(
        gzip.compress(BODY), Content_Encoding="deflate"
    ),
    "/not-deflate": lambda handler: handler.whole(b"\xff" + BODY, Content_Encoding="deflate"),
    "/once-a-connection": _once_a_connection,
    "/robots": _robots_tag,
    "/partial": _partial,
    "/odd-headers": _odd_headers,
    "/http2": _http2,
    "/drip-body": _drip_body,
    "/drip-headers": _drip_headers,
    "/drip-chunks": _drip_chunks,
    "/endless": _endless,
    "/endless-chunks": _endless_chunks,
    "/declares-too-much": lambda handler: handler.head(Content_Length=10**12),
    "/contradicts-itself": lambda handler: handler.whole(BODY, Content_Length="5120, 9000"),
    "/short": _short,
    "/short-chunks": _short_chunks,
    "/short-once": lambda handler: (
        _short(handler) if handler.times() == 1 else handler.whole(BODY)
    ),
    "/long": _long,
    "/bomb": _bomb,
    "/gzip": lambda handler: handler.whole(gzip.compress(BODY), Content_Encoding="gzip"),
    "/half-gzip": lambda handler: handler.whole(
        gzip.compress(BODY)[:-20], Content_Encoding="gzip"
    ),
    "/gzip-and-more": _gzip_and_more,
    "/brotli": lambda handler: handler.whole(BODY, Content_Encoding="br"),
    "/made-up-encoding": lambda handler: handler.whole(BODY, Content_Encoding="jpeg"),
    "/not-gzip": lambda handler: handler.whole(BODY, Content_Encoding="gzip"),
    "/loop": lambda handler: handler.whole(b"", 302, Location="/loop"),
    "/redirect": lambda handler: handler.whole(b"there", 302, Location=handler.options["to"]),
    "/status": lambda handler: handler.whole(b"no", int(handler.options["code"])),
    "/busy-once": _busy_once,
    "/fails-twice": _fails_twice,
    "/empty": lambda handler: handler.whole(b""),
    "/html": lambda handler: handler.whole(HTML, Content_Type="text/html"),
    "/closes": _closes,
    "/silent": _silent,
    "/not-http": _not_http,
    "/slow": _slow,
}


class Server(http.server.ThreadingHTTPServer):
    """Requests are in `asked` and `order`, the most /slow ones at a time in `most_at_once`."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, pictures: Mapping[str, bytes], certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pictures = pictures
        self.scheme = "https" if certificate else "http"
        self.names: list[str | None] = []  # that TLS clients asked for (SNI)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            context.sni_callback = lambda connection, name, _: self.names.append(name)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.closing = threading.Event()
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []
        self.most_at_once = 0
        self.sent = 0  # bytes of endless answers that the system took
        self._now = 0
        self._lock = threading.Lock()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of `path` here."""
        return f"{self.scheme}://{host}:{self.server_port}{path}"

    def count(self, path: str) -> None:
        """Note one request."""
        with self._lock:
            self.asked[path] += 1
            self.order.append(path)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts requests in progress; once the response is sent, the client may send the next."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, in the handshake for one, is what the tests are about."""


@contextmanager
def serving(
    pictures: Mapping[str, bytes] | None = None, certificate: Path | None = None
) -> Iterator[Server]:
    """A server with `pictures` by path ("/a.jpg") and MISBEHAVIOURS; https with a PEM file."""
    with Server(pictures or {}, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
