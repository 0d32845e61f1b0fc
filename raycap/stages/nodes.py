"""The machines of a cluster: what they have, what each of them must see, and which of them did what."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycap.refusal import Refusal

SECONDS_TO_ANSWER = 60
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
        told = nodes.setdefault(maker.rpartition(" ")[0], {"rows": 0, "rows_per_second": 0.0, "processes": 0})
        told["rows"] += made
        told["rows_per_second"] = round(told["rows"] / max(seconds, 1e-9), 2)
        told["processes"] += 1
    return nodes


def capacity() -> dict[str, float]:
    """Resources of the cluster, with those that its autoscaler may still add."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    may: Mapping[str, float] = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(have.get(name, 0), may.get(name, 0)) for name in {*have, *may}}


def selector(label: str) -> dict[str, str] | None:
    """What Ray calls the wish for nodes with a label `name=value`; refused where no node has it.

    Ray itself would wait for such a node for ever; an autoscaler may bring one, so there it may wait.
    """
    if not label:
        return None
    name, _, value = label.partition("=")
    values = {str(node["Labels"].get(name, "")) for node in alive()}
    found = values - {value[1:]} if value.startswith("!") else values & {value}
    if not found and not ray._private.state.state.get_max_resources_from_cluster_config():
        raise Refusal(
            f"no node of the cluster has the label {label} (cluster.decode_on, cluster.model_on): start nodes with "
            f"`ray start --labels {name}={value.removeprefix('!')}`, or leave it out"
        )
    return {name: value}


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
        asked[look.options(scheduling_strategy=there).remote(dict(paths))] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
    for answer in answered:
        try:
            missing = ray.get(answer)
        except RayError:  # the node has gone meanwhile
            continue
        if missing:
            raise Refusal(
                f"{'; '.join(missing)}, and this cluster has several machines ({asked[answer]} does not see it): "
                "give a folder that all of them share, or an object store such as s3://bucket/folder"
            )


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [f"{path} ({what}) is on one machine only" for path, what in paths.items() if not Path(path).exists()]


def alive() -> list[dict[str, Any]]:
    """The cluster's nodes that answer, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
