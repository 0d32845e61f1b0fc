"""Slow and dead hosts cost their own rows only; a host's limits hold for the whole job; processes
that are lost while rows wait lose nothing."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import toy_captioner
from hypothesis import given
from hypothesis import strategies as st
from server import MISBEHAVIOURS, Handler, Server, serving
from small_captioner import photos
from toy_captioner import SizeOptions

from raycap.bulk import fetch_actor
from raycap.bulk.captions import captions_job
from raycap.bulk.job import TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.cluster import Cluster
from raycap.fetch import Fetch, Fetcher, health
from raycap.fetch.health import FIRST_REST, LONGEST_REST, HostHealth
from raycap.fetch.owners import owner_of
from raycap.fetch.trust import ONLY_WEB
from raycap.images import Reading
from raycap.sources import Urls

MARK = "RAYCAP_TESTS"  # in the environment of processes that these tests start


def quick(**changes: Any) -> Fetch:
    usual = {"allow_private": True, "backoff": 0.0, "deadline": 60.0, "read_timeout": 60.0}
    return Fetch(**{**usual, **changes})


def job(urls: list[str], folder: Path, fetch: Fetch, local_rows: int, **options: Any) -> TableJob:
    """Captions of these addresses, in batches of four."""
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    asked = CaptionOptions(
        out=str(folder / "out"), batch=4, part_rows=1000, **{"actors": 1, "threads": 1, **options}
    )
    how = (fetch, Reading(), Cluster(local_rows=local_rows))
    return captions_job(SizeOptions(), Urls(path=str(folder / "urls.txt")), asked, *how)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(folder / "out" / "captions").to_pylist()
    found = {row["key"]: row for row in table}
    assert len(found) == len(table), "each key once"
    return found


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    return (photos(tmp_path / "photos", [0]) / "00000.png").read_bytes()


@pytest.fixture
def ray_with_toy(one_ray: None) -> Iterator[None]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(toy_captioner)
    yield
    cloudpickle.unregister_pickle_by_value(toy_captioner)


# Hosts that do not answer.


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    return clock


def fail(hosts: HostHealth, times: int, began: float) -> None:
    for _ in range(times):
        hosts.failed("dead", "no answer", began)


def test_a_dead_host_rests_and_is_asked_again_once(clock: Clock) -> None:
    hosts = HostHealth(3)
    fail(hosts, 2, began=clock.now)
    clock.now += 1
    hosts.answered("other")
    assert hosts.admit("dead") == ""
    fail(hosts, 1, began=clock.now)
    assert hosts.admit("dead").startswith("no answer; ") and hosts.admit("other") == ""
    rest = FIRST_REST
    for _ in range(6):
        clock.now += rest
        assert [bool(hosts.admit("dead")) for _ in range(3)] == [False, True, True]
        fail(hosts, 1, began=clock.now)
        rest = min(2 * rest, LONGEST_REST)
        clock.now += rest - 1
        assert hosts.admit("dead")
        clock.now -= rest - 1
    clock.now += rest
    assert hosts.admit("dead") == ""
    hosts.answered("dead")
    assert [hosts.admit("dead"), hosts.why_down("dead")] == ["", ""]


def test_an_own_network_that_is_down_makes_no_host_dead(clock: Clock) -> None:
    hosts = HostHealth(3)
    hosts.answered("other")
    clock.now += 1
    fail(hosts, 50, began=clock.now)
    assert hosts.admit("dead") == ""


def test_zero_takes_no_host_for_dead(clock: Clock) -> None:
    hosts = HostHealth(0)
    fail(hosts, 50, began=clock.now)
    clock.now += 1
    hosts.answered("other")
    fail(hosts, 50, began=clock.now)
    assert hosts.admit("dead") == ""


def test_a_host_that_only_asks_for_pauses_is_left_alone(clock: Clock) -> None:
    hosts = HostHealth(10)
    kept = []
    for _ in range(health.MOST_PUSHES + 1):
        clock.now += 20
        # Requests that were under way together are one push.
        kept.append([hosts.pushed_back("busy", "HTTP 429", clock.now - 1, 20) for _ in range(16)])
    assert [all(each) for each in kept] == [True] * health.MOST_PUSHES + [False]
    assert hosts.admit("busy").startswith("HTTP 429; ")


def test_hosts_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_HOSTS", 5)
    hosts = HostHealth(3)
    for number in range(50):
        hosts.failed(f"host{number}", "no answer", 0.0)
    assert len(hosts._failing) == 5


def test_a_dead_host_is_not_asked_for_each_of_its_pictures() -> None:
    with (
        serving() as server,
        Fetcher(quick(threads=2, per_host=1, retries=0, host_failures=5), ONLY_WEB) as fetcher,
    ):
        dead = [server.url(f"/closes?{number}", "localhost") for number in range(40)]
        good = [server.url(f"/good?{number}") for number in range(40)]
        answers = fetcher.fetch_all(dead + good)
        asked = sum(path.startswith("/closes") for path in server.order)
    assert {answer.error for answer in answers[40:]} == {""}
    reasons = [answer.error for answer in answers[:40]]
    assert all(reason.startswith("the connection was closed without an") for reason in reasons)
    assert 5 <= asked < 40
    assert sum("--fetch.host-failures" in reason for reason in reasons) == 40 - asked + 1


def test_requests_that_hang_take_no_thread_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, and six requests that wait until the last of the others was answered."""
    last = threading.Event()
    monkeypatch.setitem(
        MISBEHAVIOURS, "/wait", lambda handler: handler.whole(b"x", 200 if last.wait(50) else 500)
    )
    monkeypatch.setitem(MISBEHAVIOURS, "/last", lambda handler: (handler.whole(b"x"), last.set()))
    with serving() as server, Fetcher(quick(threads=2, retries=0), ONLY_WEB) as fetcher:
        hosts = ["localhost", "127.1"]
        slow = [server.url(f"/wait?{number}", hosts[number % 2]) for number in range(6)]
        answers = fetcher.fetch_all([*slow, server.url("/good"), server.url("/last")])
    assert {answer.error for answer in answers} == {""}


def test_a_pause_that_a_host_asks_for_holds_for_all_its_pictures() -> None:
    with serving() as server, Fetcher(quick(per_host=1, threads=4), ONLY_WEB) as fetcher:
        first = server.url("/busy-once?wait=2")
        behind = [server.url(f"/good?behind{number}") for number in range(3)]
        others = [server.url(f"/good?other{number}", "localhost") for number in range(3)]
        answers = fetcher.fetch_all([first, *behind, *others])
        assert {answer.error for answer in answers} == {""}
    # None of its pictures is among the first four requests, but the one that it pushed back.
    assert {path[:11] for path in server.order[:4]} == {"/busy-once?", "/good?other"}


# Which process asks a host.


@given(st.text(), st.integers(1, 9))
def test_each_address_has_one_owner(text: str, count: int) -> None:
    for uri in (text, f"http://{text}/a", f"http://example.org/{text}", f"s3://bucket/{text}"):
        assert 0 <= owner_of(uri, count) < count
    host = owner_of("http://example.org", count)
    assert owner_of("https://user@EXAMPLE.org:8080/a?b", count) == host


# Jobs.


def waits_for(event: threading.Event, picture: bytes) -> Callable[[Handler], object]:
    return lambda handler: handler.whole(picture, 200 if event.wait(60) else 500)


@contextlib.contextmanager
def with_slow_picture(
    picture: bytes, count: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, list[str], threading.Event]]:
    """A server, addresses of which the first answers after an event, and the event."""
    event = threading.Event()
    monkeypatch.setitem(MISBEHAVIOURS, "/slow-one", waits_for(event, picture))
    with serving({f"/{number}.png": picture for number in range(count)}) as server:
        fast = [server.url(f"/{number}.png") for number in range(count)]
        try:
            yield server, [server.url("/slow-one", "localhost"), *fast], event
        finally:
            event.set()


@pytest.mark.usefixtures("no_ray")
def test_pictures_behind_a_slow_one_are_captioned_before_it(
    tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with with_slow_picture(picture, 39, monkeypatch) as (_, urls, event):
        seen: set[str] = set()
        predict = toy_captioner.SizeCaptioner.predict

        def noting(self: Any, pictures: Any, shown: Any) -> Any:
            seen.update(row["key"] for row in shown)
            if seen >= set(urls[1:]):
                event.set()  # the slow one is answered now
            return predict(self, pictures, shown)

        monkeypatch.setattr(toy_captioner.SizeCaptioner, "predict", noting)
        assert run_job(job(urls, tmp_path, quick(), local_rows=100), {}) == 0
    assert {row["status"] for row in rows(tmp_path).values()} == {"success"}
    assert list(rows(tmp_path)) == urls  # in the order of the source


@pytest.mark.usefixtures("no_ray")
def test_a_dead_host_has_a_reason_and_a_retry_asks_it_again(
    tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = quick(threads=2, per_host=1, retries=0, host_failures=3)
    is_dead = threading.Event()
    is_dead.set()

    def answer(handler: Handler) -> None:
        if is_dead.is_set():
            handler.close_connection = True
        else:
            handler.whole(picture)

    monkeypatch.setitem(MISBEHAVIOURS, "/dead", answer)
    with serving({f"/{number}.png": picture for number in range(20)}) as server:
        dead = [server.url(f"/dead?{number}", "localhost") for number in range(20)]
        urls = [url for n in range(20) for url in (dead[n], server.url(f"/{n}.png"))]
        assert run_job(job(urls, tmp_path, fetch, local_rows=100), {}) == 1
        asked = sum(path.startswith("/dead") for path in server.order)
        found = rows(tmp_path)
        assert {found[url]["status"] for url in dead} == {"failed_to_fetch"} and asked < 20
        assert len(found) == 40
        is_dead.clear()
        again = job(urls, tmp_path, fetch, local_rows=100, retry="failed")
        assert run_job(again, {}) == 0
    assert {row["status"] for row in rows(tmp_path).values()} == {"success"}


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_with_toy")
def test_the_limit_of_a_host_holds_over_all_workers_and_redirects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers and two processes that fetch. Some addresses of a second host lead to the first
    one."""
    monkeypatch.setattr(fetch_actor, "CPUS_PER_FETCHER", 1)
    with serving() as server:
        there = [server.url(f"/slow?{number}") for number in range(60)]
        names = ("localhost", "127.1", "127.0.1")
        led = [
            server.url(f"/redirect?to={server.url('/slow')}&{number}", names[number % 3])
            for number in range(60)
        ]
        urls = [url for pair in zip(there, led, strict=True) for url in pair]
        owners = {owner_of(url, 2) for url in urls}
        fetch = quick(per_host=3)
        assert run_job(job(urls, tmp_path, fetch, local_rows=0, actors=2), {}) == 1
        assert owners == {0, 1}
        assert server.asked.total() == 180
        assert 1 < server.most_at_once <= 3
    assert {row["status"] for row in rows(tmp_path).values()} == {"failed_to_decode"}


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.parametrize("lost", ["ray::ChunkActor", "ray::FetchActor"])
def test_a_process_that_is_lost_while_a_row_waits_costs_no_row_and_doubles_none(
    tmp_path: Path,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
    ray_with_toy: None,
    lost: str,
) -> None:
    with with_slow_picture(picture, 39, monkeypatch) as (server, urls, event):
        fast = {f"/{number}.png" for number in range(39)}
        killer = threading.Thread(target=kill_when, args=(lost, server, fast, event))
        killer.start()
        assert run_job(job(urls, tmp_path, quick(), local_rows=0), {}) == 0
        killer.join()
        assert server.asked["/slow-one"] >= 2  # the loss was one
    found = rows(tmp_path)
    assert set(found) == set(urls)
    assert {row["status"] for row in found.values()} == {"success"}


def kill_when(title: str, server: Server, paths: set[str], event: threading.Event) -> None:
    """Kill a process of this run's Ray when all these paths and the slow one were asked for."""
    while not {*paths, "/slow-one"} <= set(server.asked):
        server.closing.wait(0.05)
    asked = server.asked["/slow-one"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get(MARK) == str(os.getpid())
            if is_ours and " ".join(process.cmdline()).startswith(title):
                process.send_signal(signal.SIGKILL)
    while server.asked["/slow-one"] == asked and not server.closing.wait(0.05):
        pass
    event.set()
