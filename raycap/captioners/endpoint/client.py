"""Calls of chat servers: one request with its retries, and what its end says.

What may be the picture's fault is retried a few times and then costs its row. What is the
server's fault is waited out, or ends the run. To tell which it is, the server is asked about a
plain grey picture.
"""

import asyncio
import io
import math
import random
import time
from dataclasses import replace

from PIL import Image

from raycap.captioners.endpoint.answers import ServerAnswer, most_bytes, read_answer
from raycap.captioners.endpoint.chat_request import ChatRequests
from raycap.captioners.endpoint.faults import Fault, Kind
from raycap.captioners.endpoint.key import ApiKey
from raycap.captioners.endpoint.limits import Limiter
from raycap.captioners.endpoint.options import EndpointOptions
from raycap.captioners.endpoint.servers import Server, Servers
from raycap.captioners.endpoint.transport import TIMED_OUT, exchange, new_session
from raycap.captioners.stages import Question
from raycap.errors import UserError

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
# No retry is begun in the last part of a picture's time.
LEAST_SHARE = 0.05
CHECK_SECONDS = 10.0
PROBE_SECONDS, SECONDS_BETWEEN_PROBES, PROBES = 60.0, 5.0, 3
# So many pictures that fail one after the other are a reason to ask whether the server is well.
FAILURES_UNTIL_PROBE = 20


class ChatClient:
    """Sends requests. Made and used in one event loop."""

    def __init__(
        self,
        options: EndpointOptions,
        requests: ChatRequests,
        limiter: Limiter,
        key: ApiKey | None,
    ) -> None:
        endpoint = self._endpoint = options.endpoint
        self._requests, self._limiter, self._key = requests, limiter, key
        self._session = new_session(endpoint.in_flight)
        self._servers = Servers(
            options.urls, endpoint.in_flight, endpoint.patience, self._answers_at_all
        )
        self._grey = _grey_picture(endpoint.format)
        self._probe_lock, self._probed_at = asyncio.Lock(), float("-inf")
        self._failed_in_row, self._has_answered = 0, False

    async def close(self) -> None:
        self._servers.close()
        await self._session.close()

    async def ask(
        self, picture: bytes, question: Question, seed: int, captions: int
    ) -> ServerAnswer:
        """The answer about a picture. Raises Fault if this picture has none, UserError if the
        others would have none either."""
        endpoint, fault = self._endpoint, None
        last: Server | None = None
        attempts = counted = 0
        until = math.inf
        while True:
            server, expected = await self._permit(last)
            sent_at = time.monotonic()
            # The time for a picture begins when its first request is sent.
            until = min(until, sent_at + endpoint.deadline)
            left = until - sent_at
            if fault is not None and left < LEAST_SHARE * endpoint.deadline:
                self._servers.release(server)
                self._limiter.pay_back(expected)
                await self._raise_if_all_fail(server, fault, question)
                raise self._too_late(fault)

            attempts += 1
            body = self._requests.body(picture, question, seed, captions)
            try:
                seconds = min(endpoint.request_timeout, left)
                answer = await self._post(server, body, question, captions, seconds, expected)
                return replace(answer, attempts=attempts)
            except Fault as found:
                fault = found
            finally:
                self._servers.release(server)

            last = server
            if fault.kind is Kind.NO_ACCESS:
                raise self._end(server, fault)
            if fault.kind is Kind.REFUSED:
                if self._requests.adapt(fault.reason, body):
                    continue
                await self._raise_if_all_fail(server, fault, question)
                raise fault
            self._servers.failed(server, fault, sent_at)
            counted += fault.kind is Kind.BAD_ANSWER or (
                fault.kind is Kind.LOST and await self._is_well(server, sent_at, question)
            )
            if counted > endpoint.retries:
                await self._raise_if_all_fail(server, fault, question)
                raise fault
            if fault.kind is not Kind.BUSY:  # the whole server is paused then
                pause = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(attempts - 1, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1))

    async def _permit(self, last: Server | None) -> tuple[Server, float]:
        """A server that may get a request now, and the tokens that are expected of it."""
        while True:
            server = await self._servers.acquire(last)
            try:
                expected = await self._limiter.wait()
            except BaseException:  # also when the task is cancelled
                self._servers.release(server)
                raise
            if not server.is_down and time.monotonic() >= server.paused_until:
                return server, expected
            self._servers.release(server)  # it has asked for a pause meanwhile
            self._limiter.pay_back(expected)

    async def _post(
        self,
        server: Server,
        body: bytes,
        question: Question,
        captions: int,
        seconds: float,
        expected: float,
    ) -> ServerAnswer:
        endpoint, began = self._endpoint, time.monotonic()
        most = most_bytes(question.stage.max_tokens, captions)
        url = f"{server.url}/chat/completions"
        content = await exchange(self._session, "POST", url, self._key, seconds, most, body=body)
        name = endpoint.name if endpoint.check_name else ""
        answer = read_answer(content, name, self._key, question.stage.start)
        self._servers.succeeded(server)
        self._has_answered, self._failed_in_row = True, 0
        counts = (answer.tokens_in, answer.tokens_out)
        used = None if None in counts else float(sum(count or 0 for count in counts))
        self._limiter.note(expected, used)
        return replace(answer, seconds=time.monotonic() - began)

    async def _answers_at_all(self, url: str) -> bool:
        """Whether a server is there; it need not know the question."""
        try:
            await exchange(
                self._session, "GET", f"{url}/models", self._key, CHECK_SECONDS, 1 << 24
            )
        except Fault as fault:
            return fault.kind in (Kind.REFUSED, Kind.NO_ACCESS, Kind.BAD_ANSWER)
        return True

    async def _is_well(self, server: Server, since: float, question: Question) -> bool:
        """Whether the server has answered since then, or does so now."""
        return server.last_success > since or await self._probe(server, since, question) is None

    async def _raise_if_all_fail(self, server: Server, fault: Fault, question: Question) -> None:
        """Raises UserError if the server answers about no picture at all."""
        self._failed_in_row += 1
        if self._has_answered and self._failed_in_row < FAILURES_UNTIL_PROBE:
            return
        found = await self._probe(server, time.monotonic(), question)
        if found is None:
            self._failed_in_row = 0
        elif found.kind in (Kind.REFUSED, Kind.NO_ACCESS, Kind.BAD_ANSWER):
            raise self._end(server, fault)

    async def _probe(self, server: Server, since: float, question: Question) -> Fault | None:
        """Asks such a question, without the values of a row, about a plain grey picture. This is
        a paid call. Returns why it failed."""
        question = question.stage.sample_question()
        fault = Fault(Kind.LOST, "asked a moment ago")
        async with self._probe_lock:
            if server.last_success > since:
                return None
            if time.monotonic() - self._probed_at < SECONDS_BETWEEN_PROBES:
                return fault
            seconds = min(PROBE_SECONDS, self._endpoint.request_timeout)
            for _ in range(PROBES):
                expected = await self._limiter.wait()
                body = self._requests.body(self._grey, question, 0, 1)
                try:
                    await self._post(server, body, question, 1, seconds, expected)
                    return None
                except Fault as found:
                    fault = found
                if fault.kind is not Kind.BAD_ANSWER:  # which may be better the next time
                    break
            self._probed_at = time.monotonic()
            if fault.kind is Kind.NO_ACCESS:
                raise self._end(server, fault)
            return fault

    def _too_late(self, fault: Fault) -> Fault:
        return Fault(
            Kind.LOST,
            f"{TIMED_OUT}: {self._endpoint.deadline:g} s for the picture, --captioner.deadline; "
            f"at last: {fault.reason}",
        )

    def _end(self, server: Server, fault: Fault) -> UserError:
        return UserError(
            f"{server.url} does not caption pictures: {fault.reason}. It was asked for the model "
            f"{self._endpoint.name!r}; when this is mended, the same command goes on where it "
            "stopped"
        )


def _grey_picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (224, 224), (128, 128, 128)).save(file, form)
    return file.getvalue()
