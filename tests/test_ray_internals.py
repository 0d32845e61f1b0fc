"""What raycap uses of Ray that Ray does not promise. A version of Ray that changes one of these
fails here, by name, and not in the run of somebody."""

from typing import Any

import pytest
import ray

from raycap.cluster.nodes import draining_nodes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


def test_a_task_knows_how_often_it_was_tried() -> None:
    """`bulk.pictures` reads pictures in child processes from the second try on."""

    @ray.remote(max_retries=1, retry_exceptions=True)
    def attempts() -> int:
        worker: Any = ray._private.worker.global_worker
        assert worker.connected and worker.mode == ray.WORKER_MODE
        attempt = int(worker.core_worker.get_current_task_attempt_number())
        if attempt == 0:
            raise ValueError
        return attempt

    assert ray.get(attempts.remote()) == 1
    driver: Any = ray._private.worker.global_worker
    assert driver.mode != ray.WORKER_MODE


def test_nodes_that_will_be_taken_away() -> None:
    """`cluster.nodes.draining_nodes`: they get no new work."""
    from ray._private.state import state

    assert state.get_draining_nodes() == {} and draining_nodes() == set()


def test_what_is_free_on_each_node() -> None:
    """`cluster.nodes.has_free` tells a full cluster from a fault."""
    from ray._private.state import available_resources_per_node

    free: Any = available_resources_per_node()
    [node] = [node for node in ray.nodes() if node["Alive"]]
    assert set(free) == {node["NodeID"]} and free[node["NodeID"]]["CPU"] <= 2
    assert {"Resources", "Labels", "NodeManagerHostname"} <= set(node)


def test_the_processes_of_a_ray_that_this_process_has_started() -> None:
    """`cluster.local_ray` ends them, and `cluster.autoscaler` knows that such a Ray has none."""
    node: Any = ray._private.worker._global_node
    assert node.is_head() and "raylet" in node.all_processes
    assert all(infos[0].process.pid for infos in node.all_processes.values())


def test_the_report_of_an_autoscaler() -> None:
    """`cluster.autoscaler` asks for the nodes that are being started."""
    from ray.autoscaler._private.constants import AUTOSCALER_UPDATE_INTERVAL_S
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    assert AUTOSCALER_UPDATE_INTERVAL_S > 0
    assert is_autoscaler_v2(fetch_from_server=True) in (True, False)
    report = _internal_kv_get("__autoscaling_status")
    assert report is None or b"autoscaler_report" in report
    assert callable(get_cluster_status)


def test_the_token_can_be_read_again() -> None:
    """`cluster.local_ray` gives each local Ray a token of its own."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    assert callable(Config.initialize)
    assert callable(AuthenticationTokenLoader.instance().reset_cache)


def test_the_placement_groups_of_a_session() -> None:
    """`commands.tune.search` looks for groups that trials have left."""
    from ray._private.state import state

    table: Any = state._connect_and_get_accessor().get_placement_group_table()
    assert isinstance(list(table), list)
