"""Nodes that join while a list of addresses is captioned: processes that fetch come up on them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import toy_captioner
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError
from raylets import parents_of
from server import MISBEHAVIOURS, serving
from small_captioner import photos
from test_stragglers import job, quick, rows

from raycap.bulk import fetch_actor, ray_pool, scheduler
from raycap.bulk.fetch_actor import start_fetchers
from raycap.bulk.run import run_job
from raycap.fetch.trust import ONLY_WEB
from raycap.images import Reading, Square

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("no_ray")]

MEMORY: dict[str, Any] = {"object_store_memory": 100_000_000}
TITLE = "ray::FetchActor"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One node."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **MEMORY})
    cloudpickle.register_pickle_by_value(toy_captioner)
    try:
        ray.init(found.address, log_to_driver=False)
        yield found
    finally:
        cloudpickle.unregister_pickle_by_value(toy_captioner)
        ray.shutdown()
        found.shutdown()


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def test_processes_that_fetch_come_up_on_a_node_that_joins(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_actor, "CPUS_PER_FETCHER", 1)
    monkeypatch.setattr(ray_pool, "SECONDS_BETWEEN_STARTS", 1.0)
    monkeypatch.setattr(scheduler, "MOST_ROWS_IDLE", 0)  # chunks are left until the end
    picture = (photos(tmp_path / "photos", [0]) / "00000.png").read_bytes()
    is_over = threading.Event()

    def answer(handler: Any) -> None:
        time.sleep(0 if is_over.is_set() else 1)  # the job lasts until the node has joined
        handler.whole(picture)

    for number in range(400):
        monkeypatch.setitem(MISBEHAVIOURS, f"/{number}", answer)
    with serving() as server:
        names = ("localhost", "127.1", "127.0.1", "127.0.0.1")
        urls = [server.url(f"/{number}", names[number % 4]) for number in range(400)]
        codes: list[int] = []
        run = threading.Thread(
            target=lambda: codes.append(
                run_job(job(urls, tmp_path, quick(per_host=2), local_rows=0), {})
            )
        )
        run.start()
        try:
            while not (found := parents_of(TITLE)) and run.is_alive():
                time.sleep(0.1)
            second = cluster.add_node(num_cpus=1, **MEMORY)
            while raylet(second) not in parents_of(TITLE) and run.is_alive():
                time.sleep(0.1)
            later = parents_of(TITLE)
        finally:
            is_over.set()
            run.join()
    first = cluster.head_node
    assert codes == [0]
    assert found == {raylet(first)} and raylet(second) in later
    made = rows(tmp_path)
    assert set(made) == set(urls)
    assert {row["status"] for row in made.values()} == {"success"}


def test_processes_that_have_ended_ask_no_host(cluster: Any) -> None:
    how = {"fetch": quick(), "trust": ONLY_WEB, "reading": Reading(), "intake": Square(8)}
    fetchers = start_fetchers(how, "", None)
    for actor in fetchers.actors:
        ray.get(actor.forget.remote(""))  # it has started
    fetchers.end()
    assert not parents_of(TITLE)
    with pytest.raises(RayActorError):
        ray.get(fetchers.actors[0].forget.remote(""))
