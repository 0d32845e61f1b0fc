"""Threads that make requests: hosts that do not answer keep none of them."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from raycap.fetch import threads
from raycap.fetch.host_queue import HostQueue
from raycap.fetch.threads import RequestThreads

MOST = 2


class Requests:
    """Requests that end when they may. What was begun is counted by host."""

    def __init__(self) -> None:
        self.queue: HostQueue[threading.Event] = HostQueue(per_host=1000, host_rate=0)
        self.threads = RequestThreads(self.queue, MOST, self._request, lambda _: False)
        self.begun: list[str] = []

    def _request(self, host: str, may_end: threading.Event) -> None:
        self.begun.append(host)
        may_end.wait()

    def add(self, host: str, may_end: threading.Event) -> None:
        self.queue.put(host, may_end)
        self.threads.start(MOST)


@pytest.fixture
def requests() -> Iterator[Requests]:
    made = Requests()
    yield made
    made.queue.stop()


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end, "this never became so"
        time.sleep(0.01)


def now() -> threading.Event:
    ended = threading.Event()
    ended.set()
    return ended


def test_a_host_that_is_slow_keeps_no_thread_for_another_request(requests, monkeypatch):
    never = threading.Event()
    requests.add("dead", never)
    requests.add("good", now())
    # After the dead host is found, the watch stops: each of its requests must bring a thread.
    wait_for(lambda: requests.threads._slow_hosts == {"dead"})
    monkeypatch.setattr(threads, "SECONDS_TO_BE_SLOW", 3600.0)
    monkeypatch.setattr(requests.threads, "_count_slow", lambda: requests.threads._slow)
    for _ in range(20):
        requests.add("dead", never)
    requests.add("good", now())
    wait_for(lambda: requests.begun.count("good") == 2)
    never.set()


def test_a_host_with_one_slow_picture_is_not_slow(requests, monkeypatch):
    monkeypatch.setattr(threads, "SECONDS_TO_BE_SLOW", 0.2)
    never = threading.Event()
    requests.add("good", never)
    wait_for(lambda: requests.threads._slow == 1)
    requests.add("good", now())
    wait_for(lambda: not requests.threads._slow_hosts and len(requests.begun) == 2)
    # Its other requests take MOST threads, besides the slow one, until they are slow too.
    monkeypatch.setattr(threads, "SECONDS_TO_BE_SLOW", 3600.0)
    monkeypatch.setattr(requests.threads, "_count_slow", lambda: 1)
    for _ in range(20):
        requests.add("good", never)
    wait_for(lambda: len(requests.begun) >= 2 + MOST)
    time.sleep(0.5)
    # A thread that has become one too many still makes one request.
    assert len(requests.begun) <= 2 + MOST + 1
    never.set()


def test_slow_requests_have_a_limit(requests, monkeypatch):
    monkeypatch.setattr(threads, "MOST_SLOW", 5)
    monkeypatch.setattr(threads, "SECONDS_TO_BE_SLOW", 0.1)
    never = threading.Event()
    for _ in range(40):
        requests.add("dead", never)
    wait_for(lambda: len(requests.begun) >= MOST + 5)
    time.sleep(0.5)
    assert len(requests.begun) == MOST + 5
    never.set()


def test_hosts_that_were_quick_are_remembered_up_to_a_limit(requests, monkeypatch):
    monkeypatch.setattr(threads, "MOST_HOSTS", 10)
    for number in range(35):
        requests.add(f"host-{number}", now())
    wait_for(lambda: len(requests.begun) == 35)
    assert len(requests.threads._last_quick) <= 10
