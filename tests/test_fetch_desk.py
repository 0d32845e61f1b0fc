"""What a fetching actor has for a worker: pictures are gathered, given out once, and never waited
for in vain."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from raycap.bulk import fetch_actor
from raycap.bulk.fetch_actor import FetchActor
from raycap.fetch import Fetch, Unfinished
from raycap.fetch.trust import Trust

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """Pictures that arrive when their event is set."""
    events: dict[str, threading.Event] = {}

    def read(uri: str, *_: Any) -> bytes:
        assert events[uri].wait(60)
        return uri.encode()

    monkeypatch.setattr("raycap.fetch.files.read", read)
    monkeypatch.setattr(fetch_actor, "SECONDS_TO_GATHER", 0.05)
    return events


def with_actor(act: Callable[[FetchActor], Any]) -> None:
    async def run() -> None:
        await act(FetchActor(Fetch(threads=8), Trust(anything=True), 0, 1))

    asyncio.run(asyncio.wait_for(run(), 60))


def wanted(held: dict[str, threading.Event], *numbers: int) -> list[tuple[int, Unfinished]]:
    for number in numbers:
        held.setdefault(f"memory://{number}", threading.Event())
    return [(number, Unfinished(f"memory://{number}", 30.0)) for number in numbers]


def test_what_arrives_is_given_out_once(held: dict[str, threading.Event]) -> None:
    async def act(actor: FetchActor) -> None:
        await actor.add("w", wanted(held, 1, 2, 3))
        held["memory://2"].set()
        (_, numbers, _), bodies = await actor.take("w", 10)
        assert numbers == [2] and bodies["bytes"].to_pylist() == [b"memory://2"]
        taken = asyncio.ensure_future(actor.take("w", 10))
        await actor.add("w", wanted(held, 1, 3, 4))  # 1 and 3 are on their way
        for each in held.values():
            each.set()
        found: list[int] = []
        while len(found) < 3:
            (_, numbers, _), bodies = await taken
            assert [f"memory://{each}".encode() for each in numbers] == bodies["bytes"].to_pylist()
            found += numbers
            taken = asyncio.ensure_future(actor.take("w", 10))
        assert sorted(found) == [1, 3, 4]
        await asyncio.sleep(0.1)
        await actor.forget("w")
        await taken  # it does not wait for ever

    with_actor(act)


def test_no_more_is_given_than_was_asked_for(held: dict[str, threading.Event]) -> None:
    async def act(actor: FetchActor) -> None:
        rows = wanted(held, *range(5))
        for each in held.values():
            each.set()
        await actor.add("w", rows)
        sizes = []
        while sum(sizes) < 5:
            (_, numbers, _), _ = await actor.take("w", 2)
            sizes.append(len(numbers))
        assert max(sizes) <= 2

    with_actor(act)
