"""Captioners that have many pictures under way at once: servers and engines.

class Echo(AsyncCaptioner):
    async def predict_one(self, picture, row):
        return Prediction(await self.client.ask(picture))

answers = [echo.submit(picture, row) for picture, row in zip(pictures, rows)]
predictions = [answer.result() for answer in answers]
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raycap.captioners.protocol import Captioner, Prediction
from raycap.images import Intake, Reading

T = TypeVar("T")


class AsyncCaptioner(Captioner):
    """Answers for one picture at a time, for many pictures at once.

    Its coroutines run on an event loop in a thread of its own.
    """

    def __init__(self, intake: Intake, in_flight: int, reading: Reading | None = None) -> None:
        super().__init__(intake, reading)
        self.in_flight = in_flight
        self._free = threading.Semaphore(in_flight)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs on the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @abstractmethod
    async def predict_one(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> Prediction:
        """The answer for one picture. What it raises ends the run; what is wrong with this
        picture alone is the prediction's error."""

    async def end(self) -> None:
        """Release what the event loop holds, such as connections."""

    def submit(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> Future[Prediction]:
        """Begin with one picture. Waits while `in_flight` pictures are under way. Safe to call
        from several threads."""
        self._free.acquire()
        answer = asyncio.run_coroutine_threadsafe(self.predict_one(picture, row), self._loop)
        answer.add_done_callback(lambda _: self._free.release())
        return answer

    def predict(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Prediction]:
        answers = [self.submit(*each) for each in zip(pictures, rows, strict=True)]
        try:
            return [answer.result() for answer in answers]
        finally:
            for answer in answers:  # after a fault, the others are of no use
                answer.cancel()

    def close(self) -> None:
        if not self._loop.is_running():
            return
        self.run(self.end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
