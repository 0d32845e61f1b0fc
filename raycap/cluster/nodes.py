"""The machines of a cluster: what they have, what each of them must see, and which of them did what."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError, RaySystemError, RpcError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.cluster.autoscaler import autoscales
from raycap.errors import UserError

Answer = TypeVar("Answer")

SECONDS_TO_ANSWER = 60
# A label that Ray gives every node.
NODE_ID = "ray.io/node-id"
# Column of rows on their way to the table: which process of which node ran the model on them.
MAKER = "maker"


def signed(rows: pa.Table) -> pa.Table:
    """The rows with this process as their maker."""
    maker = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]} {os.getpid()}"
    return rows.append_column(MAKER, pa.array([maker] * len(rows), pa.string()))


def makers(rows: Mapping[str, int], seconds: float) -> dict[str, dict[str, float]]:
    """Rows of each maker, added up by node: its rows, its rows per second, and how many processes made them (one
    that was lost and made again counts twice)."""
    nodes: dict[str, dict[str, float]] = {}
    for maker, made in sorted(rows.items()):
        told = nodes.setdefault(
            maker.rpartition(" ")[0], {"rows": 0, "rows_per_second": 0.0, "processes": 0}
        )
        told["rows"] += made
        told["rows_per_second"] = round(told["rows"] / max(seconds, 1e-9), 2)
        told["processes"] += 1
    return nodes


def capacity(label: str = "") -> dict[str, float]:
    """Resources of the nodes with that label, added up. Nodes without processors, such as a head that only manages,
    do not count."""
    total: Counter[str] = Counter()
    for node in labelled(label):
        total.update(node["Resources"])
    return dict(total)


def labelled(label: str) -> list[dict[str, Any]]:
    """The nodes that compute, of those with the label `name=value` (or `name=!value`: those without); "" is all."""
    name, _, value = label.partition("=")
    found = []
    for node in alive():
        has = str(node["Labels"].get(name, ""))
        fits = not label or (has != value[1:] if value.startswith("!") else has == value)
        if fits and node["Resources"].get("CPU"):
            found.append(node)
    return found


def selector(label: str) -> dict[str, str] | None:
    """What Ray calls the wish for nodes with a label `name=value`. It is refused where no node has the label and no
    autoscaler can bring one, for Ray itself would wait for ever."""
    if not label:
        return None
    name, _, value = label.partition("=")
    if not labelled(label) and not autoscales():
        raise UserError(
            f"no node of the cluster has the label {label} (cluster.decode_on, cluster.model_on): start nodes with "
            f"`ray start --labels {name}={value.removeprefix('!')}`, or leave it out"
        )
    return {name: value}


def computing(nodes: dict[str, str] | None) -> dict[str, str] | None:
    """The selector, without nodes that have no processors. What asks for no processor would run there too, and a
    head that only manages is small."""
    idle = [node["NodeID"] for node in alive() if not node["Resources"].get("CPU")]
    if not idle:
        return nodes
    return {**(nodes or {}), NODE_ID: f"!in({','.join(idle)})"}


def machines() -> int:
    """How many machines the cluster has; one may hold several of its nodes."""
    return len({node["NodeManagerHostname"] for node in alive()})


def check_seen(paths: Mapping[str, str]) -> None:
    """Refuse local paths that not every machine of the cluster sees; `paths` is what each of them is for."""
    if not paths or machines() < 2:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(_missing)
    asked = {}
    for node in alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[look.options(scheduling_strategy=there).remote(dict(paths))] = node[
            "NodeManagerHostname"
        ]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
    for answer in answered:
        try:
            missing = ray.get(answer)
        except RayError:  # the node has gone meanwhile
            continue
        if missing:
            raise UserError(
                f"{'; '.join(missing)}, and this cluster has several machines ({asked[answer]} does not see it): "
                "give a folder that all of them share, or an object store such as s3://bucket/folder"
            )


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [
        f"{path} ({what}) is on one machine only"
        for path, what in paths.items()
        if not Path(path).exists()
    ]


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    return [node for node in steadily(ray.nodes) if node["Alive"]]


def steadily(call: Callable[[], Answer]) -> Answer:
    """Ask the head. One that does not answer at once is asked again, for some seconds."""
    for seconds in (0.5, 1.0, 2.0, 4.0):
        try:
            return call()
        except (RpcError, RaySystemError, ConnectionError, TimeoutError):
            time.sleep(seconds)
    return call()
