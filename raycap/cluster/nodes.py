"""The nodes of a cluster: their resources, their labels, and which paths they can see."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as cluster_state
from ray.exceptions import RayError, RaySystemError, RpcError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.cluster.autoscaler import has_autoscaler
from raycap.errors import UserError

SECONDS_TO_ANSWER = 60
# Pauses before the head is asked again if it does not answer.
SECONDS_BETWEEN_TRIES = (0.5, 1.0, 2.0, 4.0)
# A label that Ray gives to each node.
NODE_ID = "ray.io/node-id"


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    ask: Callable[[], list[dict[str, Any]]] = ray.nodes
    for seconds in SECONDS_BETWEEN_TRIES:
        with contextlib.suppress(RpcError, RaySystemError, ConnectionError, TimeoutError):
            return [node for node in ask() if node["Alive"]]
        time.sleep(seconds)
    return [node for node in ask() if node["Alive"]]


def draining_nodes() -> set[str]:
    """The ids of nodes that will be taken away soon, such as preempted ones. Ray starts nothing
    on them any more, and what runs there goes on until then."""
    ask: Callable[[], dict[str, int]] = cluster_state.get_draining_nodes
    with contextlib.suppress(RpcError, RaySystemError, ConnectionError, TimeoutError):
        return set(ask())
    return set()


def nodes_with_label(label: str) -> list[dict[str, Any]]:
    """The nodes that have CPUs and the label `name=value`; for `name=!value`, those without the
    label; for "", all nodes with CPUs."""
    name, _, value = label.partition("=")
    found = []
    for node in alive_nodes():
        actual = str(node["Labels"].get(name, ""))
        if not label:
            fits = True
        elif value.startswith("!"):
            fits = actual != value[1:]
        else:
            fits = actual == value
        if fits and node["Resources"].get("CPU"):
            found.append(node)
    return found


def capacity(label: str = "") -> dict[str, float]:
    """The total resources of the nodes with the label. A head without CPUs is not counted."""
    total: Counter[str] = Counter()
    for node in nodes_with_label(label):
        total.update(node["Resources"])
    return dict(total)


def has_free(label: str, resource: str, amount: float) -> bool:
    """Whether one node with the label has this amount of a resource free."""
    ask: Callable[[], dict[str, dict[str, float]]] = available_resources_per_node
    free = ask()
    return any(
        free.get(node["NodeID"], {}).get(resource, 0) >= amount for node in nodes_with_label(label)
    )


def selector(label: str) -> dict[str, str] | None:
    """The label `name=value` as Ray's label selector. Raises UserError if no node has the label
    and no autoscaler can start one: otherwise Ray would wait without end."""
    if not label:
        return None
    name, _, value = label.partition("=")
    if not nodes_with_label(label) and not has_autoscaler():
        raise UserError(
            f"no node of the cluster has the label {label} (--cluster.decode-on, "
            "--cluster.model-on): start nodes with `ray start --labels "
            f"{name}={value.removeprefix('!')}`, or leave the option out"
        )
    return {name: value}


def without_idle_heads(nodes: dict[str, str] | None) -> dict[str, str] | None:
    """The selector, with nodes without CPUs excluded. Tasks that reserve no CPU would run there
    too, and a head node that only manages the cluster is often small."""
    heads = [node["NodeID"] for node in alive_nodes() if not node["Resources"].get("CPU")]
    if not heads:
        return nodes
    return {**(nodes or {}), NODE_ID: f"!in({','.join(heads)})"}


def count_machines() -> int:
    """The number of machines of the cluster. One machine may have several nodes."""
    return len({node["NodeManagerHostname"] for node in alive_nodes()})


def check_visible(paths: Mapping[str, str]) -> None:
    """Raises UserError if a machine of the cluster cannot see a local path. `paths` maps each path
    to its purpose, for the message."""
    if not paths or count_machines() < 2:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(_missing)
    hosts = {}
    for node in alive_nodes():
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = look.options(scheduling_strategy=on_node).remote(dict(paths))
        hosts[answer] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(hosts), num_returns=len(hosts), timeout=SECONDS_TO_ANSWER)
    for answer in answered:
        try:
            missing = ray.get(answer)
        except RayError:  # the node is gone
            continue
        if missing:
            raise UserError(
                f"{'; '.join(missing)}, and this cluster has several machines ({hosts[answer]} "
                "does not see it): give a folder that all of them share, or an object store such "
                "as s3://bucket/folder"
            )


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [
        f"{path} ({purpose}) is on one machine only"
        for path, purpose in paths.items()
        if not Path(path).exists()
    ]
