"""What a fetching actor has for a worker: pictures are gathered, given out once, and never waited
for in vain."""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from raycap.bulk import fetch_actor
from raycap.bulk.fetch_actor import FetchActor
from raycap.fetch import Fetch, Unfinished
from raycap.fetch.errors import FetchError
from raycap.fetch.owners import owner_of
from raycap.fetch.trust import Trust
from raycap.images import Reading, Square

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


def with_actor(act: Callable[[FetchActor], Any], count: int = 1) -> None:
    """The first one of so many."""

    async def run() -> None:
        fetch, trust = Fetch(threads=8), Trust(anything=True)
        await act(FetchActor(0, count, 2, fetch, trust, Reading(), Square(8)))

    asyncio.run(asyncio.wait_for(run(), 60))


def wanted(held: dict[str, threading.Event], *numbers: int) -> list[tuple[int, Unfinished]]:
    for number in numbers:
        held.setdefault(f"memory://{number}", threading.Event())
    return [(number, Unfinished(f"memory://{number}", 30.0)) for number in numbers]


def test_what_arrives_is_given_out_once(held: dict[str, threading.Event]) -> None:
    async def act(actor: FetchActor) -> None:
        await actor.add("w", wanted(held, 1, 2, 3))
        held["memory://2"].set()
        given, bodies = await actor.take("w", 10)
        assert given.numbers == [2] and bodies["bytes"].to_pylist() == [b"memory://2"]
        taken = asyncio.ensure_future(actor.take("w", 10))
        await actor.add("w", wanted(held, 1, 3, 4))  # 1 and 3 are on their way
        for each in held.values():
            each.set()
        found: list[int] = []
        while len(found) < 3:
            given, bodies = await taken
            assert [f"memory://{each}".encode() for each in given.numbers] == bodies[
                "bytes"
            ].to_pylist()
            found += given.numbers
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
            given, _ = await actor.take("w", 2)
            sizes.append(len(given.numbers))
        assert max(sizes) <= 2

    with_actor(act)


def test_pictures_are_decoded_where_they_were_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls at once: each picture comes in one of them, with its pixels or its reason, and no
    body is held any more."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "#ff0000").save(file, "png")

    def read(uri: str, *more: Any) -> bytes:
        more[-1](len(file.getvalue()))
        if uri.endswith("/7"):
            raise FetchError("it is not there")
        return b"no picture" if uri.endswith("/8") else file.getvalue()

    monkeypatch.setattr("raycap.fetch.files.read", read)

    async def act(actor: FetchActor) -> None:
        count = 70
        await actor.add("w", [(n, Unfinished(f"memory://{n}", 30.0)) for n in range(count)])
        found: dict[int, dict[str, Any]] = {}
        while len(found) < count:
            for given, loaded in await asyncio.gather(actor.load("w", 20), actor.load("w", 20)):
                assert not found.keys() & set(given.numbers)
                assert len(given.numbers) == len(loaded) <= 20
                pixels = loaded["pixels"].combine_chunks().to_numpy_ndarray()
                rows = loaded.drop_columns(["pixels"]).to_pylist()
                for number, row, square in zip(given.numbers, rows, pixels, strict=True):
                    found[number] = row | {"colour": square[4, 4].tolist()}
        bad = {number: found.pop(number) for number in (7, 8)}
        assert bad[7]["status"] == "failed_to_fetch"
        assert bad[7]["error_message"] == "it is not there"
        assert bad[8]["status"] == "failed_to_decode"
        assert bad[8]["error_message"].startswith("not a picture")
        assert {(row["status"], row["width"], *row["colour"]) for row in found.values()} == {
            ("success", 8, 255, 0, 0)
        }
        assert actor._budget._held == 0

    with_actor(act)


@pytest.mark.parametrize("method", ["load", "take"])
def test_hosts_of_another_actor_are_left_to_it(method: str) -> None:
    urls = [f"http://host{number}.invalid/a.png" for number in range(20)]
    others = [url for url in urls if owner_of(url, 2) == 1]

    async def act(actor: FetchActor) -> None:
        await actor.add("w", [(n, Unfinished(url, 30.0)) for n, url in enumerate(others)])
        given, table = await getattr(actor, method)("w", 100)
        assert (given.numbers, len(table)) == ([], 0)
        assert [start.uri for _, start in given.elsewhere] == others

    assert others
    with_actor(act, count=2)
