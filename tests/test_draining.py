"""Nodes that are about to be taken away, such as preempted ones: they get no new work, and finish
what they have if there is time."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from small_captioner import photos
from toy_captioner import SizeCaptioner, SizeOptions

from raycap.bulk.captions import captions_job
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.cluster import Cluster as ClusterOptions
from raycap.cluster.nodes import draining_nodes
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.sources import Folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("no_ray")]

MEMORY: dict[str, Any] = {"object_store_memory": 100_000_000}
PICTURES, BATCH = 80, 2
# What a worker has at a time, and what it may get until the driver knows of the notice.
MOST_ROWS_AFTER_NOTICE = 24


@dataclass(frozen=True)
class SlowOptions(SizeOptions):
    """Notes which node works on which picture."""

    notes: str = ""

    def open(self, device: str, threads: int | None) -> SizeCaptioner:
        return SlowCaptioner(self)


class SlowCaptioner(SizeCaptioner):
    def predict(self, pictures: Any, rows: Any) -> Any:
        node = ray.get_runtime_context().get_node_id()
        with Path(self.notes).open("a") as notes:
            notes.writelines(f"{node}\n" for _ in rows)
        time.sleep(0.5)
        return super().predict(pictures, rows)

    def __init__(self, options: SlowOptions) -> None:
        super().__init__(options)
        self.notes = options.notes


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without work, and a node."""
    import sys

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **MEMORY})
    module = sys.modules[__name__]
    toys = (module, sys.modules["toy_captioner"])
    try:
        for each in toys:
            cloudpickle.register_pickle_by_value(each)
        found.add_node(num_cpus=1, **MEMORY)
        found.wait_for_nodes()
        ray.init(found.address, log_to_driver=False)
        yield found
    finally:
        for each in toys:
            cloudpickle.unregister_pickle_by_value(each)
        ray.shutdown()
        found.shutdown()


def drain(cluster: Any, node: Any, seconds: float) -> None:
    """What a cloud's notice becomes."""
    deadline = int((time.time() + seconds) * 1000)
    preempted = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=cluster.address)
    accepted, reason = client.drain_node(node.node_id, preempted, "a test", deadline)
    assert accepted, reason
    assert draining_nodes() == {node.node_id}


@pytest.mark.parametrize("is_long", [True, False], ids=["long notice", "short notice"])
def test_a_node_that_will_be_taken_away(is_long: bool, cluster: Any, tmp_path: Path) -> None:
    source, out, notes = tmp_path / "photos", tmp_path / "out", tmp_path / "notes"
    photos(source, range(PICTURES))
    going = cluster.add_node(num_cpus=1, **MEMORY)
    cluster.wait_for_nodes()
    rows_at_notice, rows_in_the_end = [], []

    def rows_of_node() -> int:
        return notes.read_text().split().count(going.node_id) if notes.exists() else 0

    def take_away() -> None:
        while rows_of_node() < 4:
            time.sleep(0.1)
        rows_at_notice.append(rows_of_node())
        drain(cluster, going, 600)
        if is_long:
            before = -1
            while rows_of_node() > before:  # until its worker has finished its chunks
                before = rows_of_node()
                time.sleep(8)
        cluster.remove_node(going, allow_graceful=False)
        rows_in_the_end.append(rows_of_node())

    cloud = threading.Thread(target=take_away)
    cloud.start()
    job = captions_job(
        SlowOptions(notes=str(notes)),
        Folder(str(source)),
        CaptionOptions(out=str(out), batch=BATCH, threads=1),
        Fetch(),
        Reading(),
        ClusterOptions(),
    )
    assert run_job(job, {}) == 0
    cloud.join()
    keys = pq.read_table(out / "captions")["key"].to_pylist()
    assert sorted(keys) == sorted(path.name for path in source.iterdir())
    facts = json.loads((out / "facts.json").read_text())
    if is_long:
        assert facts["faults"] == [], "its chunks were finished"
        assert rows_in_the_end[0] - rows_at_notice[0] <= MOST_ROWS_AFTER_NOTICE
        assert facts["nodes"].keys() >= {
            name for name in facts["nodes"] if name.endswith(going.node_id[:8])
        }
