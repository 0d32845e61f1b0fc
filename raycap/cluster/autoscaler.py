"""What is known of the cluster's autoscaler: whether there is one, and whether it is starting nodes.

Ray has two, and both report to the head: the old one as JSON under a key, the new one as the cluster's status. They
run, and only look, in a cluster that people started by hand too: the types of nodes that they report are then made
up from the nodes' ids.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.autoscaler._private.constants import AUTOSCALER_UPDATE_INTERVAL_S
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import RpcError
from ray.experimental.internal_kv import _internal_kv_get

OLD_REPORT = "__autoscaling_status"
MADE_UP = re.compile(r"node_[0-9a-f]*")
# The old autoscaler's first report comes some seconds after the head has started.
SECONDS_TO_REPORT = 3 * AUTOSCALER_UPDATE_INTERVAL_S


def autoscales() -> bool:
    """Whether an autoscaler may bring nodes."""
    node: Any = ray._private.worker._global_node
    if node is not None and node.is_head():  # a Ray that this process has started
        return False
    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return _named(
            node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)
        )
    end = time.monotonic() + SECONDS_TO_REPORT
    while (report := _old_report()) is None and time.monotonic() < end:
        time.sleep(0.2)
    return _named((report or {}).get("node_type_mapping", {}).values())


def starting() -> int:
    """How many nodes the autoscaler is starting now."""
    try:
        if is_autoscaler_v2(fetch_from_server=True):
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            return sum(launch.count for launch in status.pending_launches) + len(
                status.pending_nodes
            )
    except RpcError:
        return 0
    report = _old_report() or {}
    launches: Mapping[str, int] = report.get("pending_launches", {})
    return sum(launches.values()) + len(report.get("pending_nodes", ()))


def _named(types: Iterable[str]) -> bool:
    return any(name and not MADE_UP.fullmatch(name) for name in types)


def _old_report() -> dict[str, Any] | None:
    told = _internal_kv_get(OLD_REPORT)
    return json.loads(told)["autoscaler_report"] if told else None
