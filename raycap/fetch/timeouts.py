"""Calls that take no timeout, given one: DNS and object stores."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, act: Callable[[], T]) -> T:
    """`act()`, or TimeoutError after `seconds`.

    An overdue call is left behind in its own thread until it returns by itself: nothing in Python can end it.
    """
    answer: Future[T] = Future()

    def call() -> None:
        try:
            answer.set_result(act())
        except Exception as error:  # noqa: BLE001 - not swallowed: raised again in the thread that asked
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True, name="raycap-fetch-aside").start()
    return answer.result(max(seconds, 0.0))
