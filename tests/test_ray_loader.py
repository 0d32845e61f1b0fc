"""What a worker makes of the answers of fetching actors: each row once, whatever is lost, answered
twice or too late."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pytest

from raycap.bulk.fetch_actor import FetchAnswer, Fetchers
from raycap.bulk.pictures import LoadedRows
from raycap.bulk.ray_loader import RayLoader
from raycap.fetch import Fetch, Fetched
from raycap.images import Fit, Square
from raycap.images.loading import LoadedPicture

pytestmark = pytest.mark.usefixtures("no_ray")

ROWS = 4  # that are loaded together


class Call:
    """One call of an actor that has no answer yet."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.answer: Future[Any] = Future()

    def future(self) -> "Future[Any]":
        return self.answer


class Method:
    """A method of an actor, which notes its calls."""

    def __init__(self, answers: int = 1) -> None:
        self.calls: list[Call] = []
        self.answers = answers

    def options(self, **_: Any) -> "Method":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(Call(*arguments))
        return self.calls[-1] if self.answers == 1 else (self.calls[-1], "bodies")


class Actor:
    """In the place of a fetching actor, whose answers the test gives."""

    def __init__(self) -> None:
        self.add, self.load, self.take = Method(), Method(), Method(2)

    def wanted(self) -> list[int]:
        return [number for call in self.add.calls for number, _ in call.arguments[1]]


def manifest(rows: int) -> pa.Table:
    return pa.table(
        {
            "key": [str(row) for row in range(rows)],
            "uri": [f"http://example.org/{row}.png" for row in range(rows)],
            "embedded": [False] * rows,
            "error": [""] * rows,
        }
    )


def answer(life: str, numbers: list[int], behind: int = 0) -> tuple[FetchAnswer, pa.Table]:
    """Each picture has its number as its digest."""
    loaded = LoadedRows(None, len(numbers))
    for row, number in enumerate(numbers):
        picture = LoadedPicture("success", "", None, "png", 1, 1, str(number), Fetched(b"", ""))
        loaded.put(row, picture)
    return FetchAnswer(life, numbers, [], behind), loaded.to_arrow()


@pytest.fixture
def start() -> Iterator[Callable[..., RayLoader]]:
    loaders: list[RayLoader] = []

    def start(fetchers: Fetchers) -> RayLoader:
        how = {"fetch": Fetch(), "intake": Fit()}
        loaders.append(RayLoader("w", how, ROWS, 3, fetchers, None))
        return loaders[-1]

    yield start
    for loader in loaders:
        loader.stop()


def wait_for(calls: list[Call], count: int) -> Call:
    """Fails by the time limit of the test alone."""
    while len(calls) < count:
        wait_a_moment()
    return calls[count - 1]


def take(loader: RayLoader, rows: int) -> dict[str, str]:
    """The digest of each key that comes next."""
    found: dict[str, str] = {}
    while len(found) < rows:
        loaded = loader.next(60)
        assert loaded is not None
        keys = loaded.table["key"].to_pylist()
        assert [str(place.row) for place in loaded.places] == keys
        assert not found.keys() & set(keys)
        found |= dict(zip(keys, loaded.table["sha256"].to_pylist(), strict=True))
    return found


@pytest.mark.parametrize("behind", [0, 100, 1020, 5000])
def test_what_a_fetching_actor_has_does_not_wait_for_a_server(
    behind: int, start: Callable[..., RayLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that wait are given others beside them. Those that are only to be decoded are not."""
    monkeypatch.setattr("raycap.bulk.ray_loader.SECONDS_TO_WAIT", 0.01)
    actor = Actor()
    loader = start(Fetchers([actor], 2, 2))
    loader.add(0, manifest(ROWS + 1020))
    first = wait_for(actor.load.calls, 1)
    while len(actor.wanted()) < ROWS + 1020:
        wait_a_moment()
    first.answer.set_result(answer("a", actor.wanted()[:ROWS], behind))
    take(loader, ROWS)
    wait_for(actor.load.calls, 2)
    while loader.rows_waiting != 1020 - min(behind, 1020):
        wait_a_moment()


def test_rows_that_are_answered_twice_come_once(start: Callable[..., RayLoader]) -> None:
    actor = Actor()
    loader = start(Fetchers([actor], 2, 2))
    loader.add(0, manifest(6))
    first = wait_for(actor.load.calls, 1)
    numbers = actor.wanted()
    first.answer.set_result(answer("a", numbers[:4]))
    wait_for(actor.load.calls, 3)  # it was full: two calls at once
    actor.load.calls[1].answer.set_result(answer("a", numbers[2:5]))
    actor.load.calls[2].answer.set_result(answer("a", numbers[3:]))
    assert take(loader, 6) == {str(row): str(number) for row, number in enumerate(numbers)}
    assert loader.next(0.1) is None


def test_rows_of_a_lost_actor_are_asked_for_again_once(
    start: Callable[..., RayLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycap.bulk.ray_loader.SECONDS_AFTER_A_LOSS", 0.0)
    actor = Actor()
    loader = start(Fetchers([actor], 2, 2))
    loader.add(0, manifest(6))
    numbers = actor.wanted() if wait_for(actor.load.calls, 1) else []
    actor.load.calls[0].answer.set_result(answer("a", numbers[:4]))
    wait_for(actor.load.calls, 3)
    for call in actor.load.calls[1:3]:  # both are lost with their actor
        call.answer.set_exception(LookupError("w"))
    wait_for(actor.load.calls, 4).answer.set_result(answer("b", numbers[4:]))
    assert take(loader, 6) == {str(row): str(number) for row, number in enumerate(numbers)}
    assert actor.wanted().count(numbers[0]) == 1


def test_new_actors_are_asked_for_what_the_old_ones_have_not_given(
    start: Callable[..., RayLoader],
) -> None:
    old, new = Actor(), [Actor(), Actor()]
    loader = start(Fetchers([old], 2, 2))
    loader.add(0, manifest(8))
    wait_for(old.load.calls, 1)
    numbers = old.wanted()
    old.load.calls[0].answer.set_result(answer("a", numbers[:4]))
    assert len(take(loader, 4)) == 4
    loader.use_fetchers(Fetchers(new, 2, 4, generation=1))
    owner = next(each for each in new * 6000 if each.load.calls or wait_a_moment())
    late = [call for call in old.load.calls if not call.answer.done()]
    for call in late:  # the old actor gives what it has after all
        call.answer.set_result(answer("a", numbers[4:]))
    asked = owner.wanted()
    assert len(asked) == 4 and not set(asked) & set(numbers)
    owner.load.calls[0].answer.set_result(answer("b", asked))
    assert take(loader, 4) == {str(row + 4): str(number) for row, number in enumerate(asked)}
    assert loader.next(0.1) is None


def wait_a_moment() -> bool:
    time.sleep(0.005)
    return False


@pytest.mark.parametrize(("cpus", "helps"), [(2, False), (3, True)])
def test_tasks_decode_for_an_actor_that_is_behind_if_there_are_other_processors(
    start: Callable[..., RayLoader], cpus: int, helps: bool
) -> None:
    actor = Actor()
    loader = start(Fetchers([actor], 2, cpus))
    loader.add(0, manifest(16))
    wait_for(actor.load.calls, 1)
    assert not actor.take.calls
    actor.load.calls[0].answer.set_result(answer("a", actor.wanted()[:4]))
    wait_for(actor.load.calls, 3)
    assert take(loader, 4)
    loader.add(1, manifest(1))  # it has looked again when this is asked for
    while len(actor.wanted()) < 17:
        wait_a_moment()
    assert bool(actor.take.calls) == helps


@pytest.mark.parametrize(("side", "rows"), [(16, 128), (224, 128), (1024, ROWS * 2)])
def test_an_answer_holds_more_of_small_pictures(side: int, rows: int) -> None:
    actor = Actor()
    how = {"fetch": Fetch(), "intake": Square(side)}
    loader = RayLoader("w", how, ROWS, 3, Fetchers([actor], 2, 2), None)
    loader.add(0, manifest(1))
    assert wait_for(actor.load.calls, 1).arguments == ("w", rows)
    loader.stop()
