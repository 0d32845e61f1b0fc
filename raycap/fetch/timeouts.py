"""Gives a timeout to calls that take none: DNS and object stores."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, function: Callable[[], T]) -> T:
    """Returns `function()`; raises TimeoutError after `seconds`.

    An overdue call goes on in its own thread until it returns: nothing in Python can end it.
    """
    result: Future[T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            result.set_exception(error)

    threading.Thread(target=call, daemon=True, name="raycap-fetch-timeout").start()
    return result.result(max(seconds, 0.0))
