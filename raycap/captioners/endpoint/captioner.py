"""The captioner whose model is behind a URL, opened: a picture's calls, and what becomes of their
answers."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycap.captioners.asking import Candidate, Refused, ask_prompts
from raycap.captioners.asynchronous import AsyncCaptioner
from raycap.captioners.endpoint.answers import Choice, ServerAnswer
from raycap.captioners.endpoint.chat_request import ChatRequests
from raycap.captioners.endpoint.client import ChatClient
from raycap.captioners.endpoint.faults import Fault
from raycap.captioners.endpoint.journal import Journal, call_digest
from raycap.captioners.endpoint.key import find_key
from raycap.captioners.endpoint.limits import Limiter
from raycap.captioners.endpoint.members import Members
from raycap.captioners.endpoint.options import EndpointOptions
from raycap.captioners.protocol import CHUNK, Prediction
from raycap.captioners.stages import Question
from raycap.errors import UserError
from raycap.storage import RunFolder


class EndpointCaptioner(AsyncCaptioner):
    """Sends pictures to the servers of its options."""

    def __init__(self, options: EndpointOptions) -> None:
        endpoint = options.endpoint
        self._key = find_key(endpoint.key_env, endpoint.key_file, options.urls)
        self._options = options
        self._identity = json.dumps(options.identity(), sort_keys=True)
        self._broken: UserError | None = None
        self._asking: set[asyncio.Task[Any]] = set()
        super().__init__(options.intake(), endpoint.in_flight)
        self.prompts = tuple(stage.name for stage in options.stages)
        self.run(self._begin())

    async def _begin(self) -> None:
        """Makes what belongs to the event loop."""
        options, endpoint = self._options, self._options.endpoint
        folder = RunFolder(options.journal) if options.journal else None
        limits = (endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._members = Members(folder) if folder is not None and any(limits) else None
        if self._members is not None:
            self._members.start()
        self._journal = Journal(folder) if folder is not None else None
        requests = ChatRequests(options)
        limiter = Limiter(*limits, requests.tokens_expected(), self._members)
        self._client = ChatClient(options, requests, limiter, self._key)

    async def predict_one(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> Prediction:
        """The answers about one encoded picture. Raises UserError if the servers answer about no
        picture."""
        if self._broken is not None:  # not every picture waits as long as the first one
            raise self._broken
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        data = picture.tobytes()
        digest = row.get("sha256") or hashlib.sha256(data).hexdigest()
        try:
            return await self._predict(data, digest, row)
        except UserError as error:
            self._broken = error
            raise

    async def _predict(self, data: bytes, digest: str, row: Mapping[str, Any]) -> Prediction:
        """All prompts, one after the other."""
        stages = self._options.stages
        calls: list[ServerAnswer] = []

        async def ask(question: Question) -> list[Candidate]:
            wanted = self._options.num_captions if question.stage is stages[-1] else 1
            try:
                made = await self._answers(data, question, wanted, digest, row.get(CHUNK) or "")
            except Fault as fault:
                raise Refused(fault.reason) from None
            calls.extend(made)
            texts = [choice for answer in made for choice in _texts(answer)][:wanted]
            if not texts:
                raise Refused(made[0].choices[0].error)
            return [Candidate(each.text, each.score, each.finish_reason) for each in texts]

        prediction = await ask_prompts(stages, row, ask)
        if prediction.error:
            return prediction
        of_calls = {
            "tokens_in": _total([call.tokens_in for call in calls]),
            "tokens_out": _total([call.tokens_out for call in calls]),
            "seconds": sum(call.seconds for call in calls),
            "attempts": sum(call.attempts for call in calls),
        }
        return replace(prediction, extras={**prediction.extras, **of_calls})

    async def _answers(
        self, data: bytes, question: Question, wanted: int, digest: str, group: str
    ) -> list[ServerAnswer]:
        """As many calls as it takes for all captions, mostly one."""
        endpoint = self._options.endpoint
        answers: list[ServerAnswer] = []
        asked = list(question.draw())
        if asked:
            asked.append(f"temperature {question.temperature}")
        if question.stage.names:  # the identity says the prompt without the values
            asked.append(question.prompt)
        missing = wanted
        for number in range(wanted):
            captions = missing if endpoint.one_request else 1
            answer = None
            if self._journal is not None:
                call = call_digest(self._identity, digest, number, captions, *asked)
                answer = await self._journal.find(group, call)
            if answer is None:
                seed = question.seed(digest, number)
                answer = await self._client.ask(data, question, seed, captions)
                # Without a chunk, a later --retry would look like a resumed run.
                if self._journal is not None and (group or _texts(answer)):
                    self._journal.keep(group, call, answer)
            answers.append(answer)
            missing -= len(_texts(answer))
            if missing <= 0 or not _texts(answer):
                break
        return answers

    async def end(self) -> None:
        """Ends all requests, and writes what has been answered."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._client.close()
        if self._members is not None:
            await asyncio.to_thread(self._members.close)
        if self._journal is not None:
            await self._journal.close()


def _texts(answer: ServerAnswer) -> list[Choice]:
    return [choice for choice in answer.choices if not choice.error]


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
