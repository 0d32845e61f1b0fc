"""The cluster's autoscaler: whether there is one, and how many nodes it is starting.

Ray has two autoscalers. The old one writes a JSON report under a key of the head's store. The new
one is asked for the cluster's status. Both also run, without adding nodes, in a cluster that was
started by hand. The nodes of such a cluster have no type, or one that is made from the node's id.
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
MADE_UP_TYPE = re.compile(r"node_[0-9a-f]*")
# The old autoscaler's first report comes some seconds after the head has started.
SECONDS_TO_REPORT = 3 * AUTOSCALER_UPDATE_INTERVAL_S


def has_autoscaler() -> bool:
    """Whether an autoscaler may add nodes."""
    node: Any = ray._private.worker._global_node
    if node is not None and node.is_head():  # a Ray that this process has started
        return False
    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = (*status.active_nodes, *status.idle_nodes)
        return _are_configured(node.ray_node_type_name for node in nodes)
    end = time.monotonic() + SECONDS_TO_REPORT
    while (report := _old_report()) is None and time.monotonic() < end:
        time.sleep(0.2)
    return _are_configured((report or {}).get("node_type_mapping", {}).values())


def count_starting_nodes() -> int:
    """How many nodes the autoscaler is starting now."""
    try:
        if is_autoscaler_v2(fetch_from_server=True):
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            launched = sum(launch.count for launch in status.pending_launches)
            return launched + len(status.pending_nodes)
    except RpcError:
        return 0
    report = _old_report() or {}
    launches: Mapping[str, int] = report.get("pending_launches", {})
    return sum(launches.values()) + len(report.get("pending_nodes", ()))


def _are_configured(types: Iterable[str]) -> bool:
    return any(name and not MADE_UP_TYPE.fullmatch(name) for name in types)


def _old_report() -> dict[str, Any] | None:
    report = _internal_kv_get(OLD_REPORT)
    return json.loads(report)["autoscaler_report"] if report else None
