"""A chat server on loopback that speaks OpenAI's protocol and misbehaves on request.

A picture whose bytes are the text "reset 3" has its connection reset; one whose bytes are no such
text gets a caption that names it: "picture 5f70bf18". So tests send words where users send JPEGs.
"""

import asyncio
import base64
import contextlib
import email.utils
import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

MODEL = "tiny-vl"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
REASONS = {429: "Too Many Requests", 503: "Service Unavailable"}


class ChatRequest:
    """One request, read whole."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path, self.headers = path, headers
        self.fields: dict[str, Any] = json.loads(body) if body else {}
        self.picture = b""
        for message in self.fields.get("messages", ()):
            if message["role"] != "user":
                continue
            for part in message["content"]:
                if part["type"] != "image_url":
                    continue
                kind, _, data = part["image_url"]["url"].partition(";base64,")
                assert kind.startswith("data:image/")
                self.picture = base64.b64decode(data, validate=True)

    @property
    def word(self) -> str:
        """The first word of a picture that is a text."""
        return self.picture[:40].decode("latin-1").partition(" ")[0]


def caption_of(picture: bytes, seed: object = None) -> str:
    text = f"picture {hashlib.sha256(picture).hexdigest()[:8]}"
    return text if seed is None else f"{text} seed {seed}"


class ChatServer:
    """`asked` counts requests by picture, `answered` good answers that were sent whole."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.models: list[str] | None = [MODEL]
        self.lists_models = True  # or fails to, as `transformers serve` with an empty cache
        self.key = ""  # that requests must have; "": any
        self.always: Behaviour | None = None  # instead of what pictures say
        self.logprob: float | None = -0.5
        self.most_choices = 100
        self.asked: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self.requests: list[ChatRequest] = []
        self.keeps_requests = True
        self.times: list[float] = []  # of requests
        self.paths: Counter[str] = Counter()
        self.failures: dict[bytes, int] = defaultdict(int)
        self.in_flight = self.most_in_flight = 0
        self.bytes_sent = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (request := await _read_request(reader)) is not None:
                if not await self._answer(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client had enough, or the test
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: ChatRequest, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection may be used again."""
        self.paths[request.path] += 1
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            sent = request.headers.get("authorization", "nothing")
            return await self.send(writer, error(f"wrong key: {sent}"), 401)
        if request.path.endswith("/models"):
            if not self.lists_models:
                return await self.send(writer, b"Internal Server Error", 500)
            if self.models is None:
                return await self.send(writer, error("no such page"), 404)
            data = {"data": [{"id": name} for name in self.models]}
            return await self.send(writer, data)
        self.asked[request.picture] += 1
        self.times.append(time.monotonic())
        if self.keeps_requests:
            self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            behave = self.always or BEHAVIOURS.get(request.word, good)
            await behave(self, request, writer)
        finally:
            self.in_flight -= 1
        return not writer.is_closing()

    async def send(
        self, writer: asyncio.StreamWriter, data: Any, status: int = 200, headers: str = ""
    ) -> bool:
        """A proper answer that keeps the connection. `data` is JSON, or the bytes of a body."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        kind = "" if "content-type" in headers.lower() else "Content-Type: application/json\r\n"
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n{kind}{headers}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return True

    def completion(self, request: ChatRequest, **changed: Any) -> dict[str, Any]:
        count = min(self.most_choices, request.fields.get("n", 1))
        choices = []
        for index in range(count):
            seed = request.fields.get("seed")
            text = caption_of(request.picture, seed if not index else f"{seed}.{index}")
            choice = {"index": index, "message": {"role": "assistant", "content": text}}
            choice["finish_reason"] = "stop"
            if request.fields.get("logprobs") and self.logprob is not None:
                each = self.logprob - index
                tokens = [{"token": "a", "logprob": each - 0.1}, {"token": "b", "logprob": each}]
                choice["logprobs"] = {"content": tokens}
            choices.append(choice)
        return {
            "id": "1",
            "object": "chat.completion",
            "model": request.fields["model"],
            "choices": choices,
            "usage": {"prompt_tokens": 90, "completion_tokens": 4 * count, "total_tokens": 94},
            **changed,
        }


Behaviour = Callable[[ChatServer, ChatRequest, asyncio.StreamWriter], Awaitable[object]]


def error(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "some_error"}}


async def good(server: ChatServer, request: ChatRequest, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(server.delay)
    await server.send(writer, server.completion(request))
    server.answered[request.picture] += 1


async def late(server: ChatServer, request: ChatRequest, writer: asyncio.StreamWriter) -> None:
    """The later it was asked, the earlier it answers."""
    await asyncio.sleep(0.3 / server.asked.total())
    await good(server, request, writer)


def status(code: int, text: str = "oh", headers: str = "") -> Behaviour:
    async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        await server.send(writer, error(text), code, headers)

    return answer


def body(content: bytes, headers: str = "") -> Behaviour:
    async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        await server.send(writer, content, 200, headers)

    return answer


def changed(**fields: Any) -> Behaviour:
    """A good answer with some other fields."""

    async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        await server.send(writer, server.completion(request, **fields))

    return answer


def choice(message: Any, **fields: Any) -> Behaviour:
    return changed(choices=[{"index": 0, "message": message, "finish_reason": "stop", **fields}])


def at_first(times: int, behaviour: Behaviour) -> Behaviour:
    """Misbehaves for the first requests with each picture."""

    async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        server.failures[request.picture] += 1
        failing = server.failures[request.picture] <= times
        await (behaviour if failing else good)(server, request, writer)

    return answer


def endless(start: bytes, block: bytes, pause: float = 0.0) -> Behaviour:
    async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        writer.write(start)
        while not writer.is_closing():
            writer.write(block)
            server.bytes_sent += len(block)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


async def reset(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    writer.transport.abort()


async def hang_up(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    writer.close()


async def hang(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    await asyncio.sleep(1000)


async def cut(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    """The connection ends in the middle of the body."""
    whole = json.dumps(server.completion(request)).encode()
    writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(whole) + whole[: len(whole) // 2])
    await writer.drain()
    writer.close()


async def busy(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    """More than four at a time are refused."""
    if server.in_flight > 4:
        await server.send(writer, error("too many"), 429, "Retry-After: 0\r\n")
    else:
        await asyncio.sleep(0.02)
        await good(server, request, writer)


def date_in(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


SURROGATE = b'{"choices":[{"message":{"content":"half \\ud83d of it"},"finish_reason":"stop"}]}'
HUGE = b"Content-Length: 10000000000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BEHAVIOURS: dict[str, Behaviour] = {
    "late": late,
    "slow-headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n", 0.05),
    "many-headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 999),
    "slow-body": endless(OK + b"Content-Length: 500\r\n\r\n", b" ", 0.05),
    "endless-body": endless(OK + b"\r\n", b" " * 65536),
    "endless-chunks": endless(OK + CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "declares-10-GB": endless(OK + HUGE, b" " * 65536),
    "endless-error": endless(b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 65536),
    "no-http": endless(b"SSH-2.0-something\r\n", b"x"),
    "html": body(b"<!DOCTYPE html><html>welcome</html>", "Content-Type: text/html\r\n"),
    "broken-json": body(b'{"choices": [{"message": '),
    "other-json": body(b"[1, 2]"),
    "nan": body(b'{"choices": NaN}'),
    "deep": body(b"[" * 100_000),
    "empty-body": body(b""),
    "truncated-utf8": body('{"choices":[{"message":{"content":"caf\u00e9'.encode()[:-1]),
    "utf-16": body('{"choices":[]}'.encode("utf-16")),
    "half-character": body(SURROGATE),
    "stream": body(b'data: {"choices":[]}\n\n', "Content-Type: text/event-stream\r\n"),
    "text-plain": body(
        b'{"choices":[{"message":{"content":"plain"}}]}', "Content-Type: text/plain\r\n"
    ),
    "gzip": body(b"\x1f\x8b", "Content-Encoding: gzip\r\n"),
    "no-choices": changed(choices=[]),
    "choices-null": changed(choices=None),
    "choices-words": changed(choices=["a dog"]),
    "error-in-200": body(json.dumps(error("out of memory")).encode()),
    "other-model": changed(model="huge-vl-900B"),
    "no-message": changed(choices=[{"index": 0}]),
    "no-text": choice({"content": "  "}),
    "null-text": choice({"content": None}),
    "number-text": choice({"content": 5}),
    "parts": choice({"content": [{"type": "text", "text": "a "}, {"text": "dog"}]}),
    "refusal": choice({"content": None, "refusal": "I cannot"}),
    "filtered": choice({"content": "half a cap"}, finish_reason="content_filter"),
    "cut-off": choice({"content": "half a cap"}, finish_reason="length"),
    "thinking": choice({"content": None, "reasoning_content": "so"}, finish_reason="length"),
    "odd-finish": choice({"content": "a dog"}, finish_reason={"a": 1}),
    "odd-logprobs": choice({"content": "a dog"}, logprobs={"content": [{"logprob": "x"}]}),
    "huge-logprobs": choice({"content": "a dog"}, logprobs={"content": [{"logprob": -(10**400)}]}),
    "odd-usage": changed(usage={"prompt_tokens": -1, "completion_tokens": 1e300}),
    "reset": reset,
    "hang-up": hang_up,
    "hang": hang,
    "cut": cut,
    "status-204": body(b""),
    "redirect": status(302, "there", "Location: http://10.0.0.1/secret\r\n"),
    "redirect-here": status(307, "there", "Location: /v1/models\r\n"),
    **{f"status-{code}": status(code) for code in (400, 403, 404, 413, 422, 500, 502, 503)},
    "reset-once": at_first(1, reset),
    "cut-once": at_first(1, cut),
    "500-once": at_first(1, status(500)),
    "502-twice": at_first(2, status(502)),
    "json-once": at_first(1, body(b"{")),
    "429-thrice": at_first(3, status(429, headers="Retry-After: 0\r\n")),
    "503-thrice": at_first(3, status(503, headers="Retry-After: 0\r\n")),
}


async def _read_request(reader: asyncio.StreamReader) -> ChatRequest | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return ChatRequest(first.split()[1], headers, content)


class Serving:
    """A server in a thread with an event loop of its own; it can be stopped and started again."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener: asyncio.Server | None = None
        self._thread.start()

    def start(self) -> None:
        self._run(self._start())

    def stop(self) -> None:
        """Closes the port and all connections."""
        self._run(self._stop())

    def end(self) -> None:
        self.stop()
        self._run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        server = self.server
        self._listener = await asyncio.start_server(
            server.handle, "127.0.0.1", server.port, limit=1 << 24, backlog=1024
        )
        server.port = self._listener.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self.server._writers):
            writer.transport.abort()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def serving(delay: float = 0.0) -> Iterator[ChatServer]:
    """A server, for the time of a test."""
    with serving_again(delay) as held:
        yield held.server


@contextlib.contextmanager
def serving_again(delay: float = 0.0) -> Iterator[Serving]:
    """A server that the test stops and starts."""
    held = Serving(ChatServer(delay))
    held.start()
    try:
        yield held
    finally:
        held.end()
