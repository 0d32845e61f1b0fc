"""On which nodes workers run, how many, with how many threads and which share of a GPU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from raycap.bulk.options import BulkOptions
from raycap.cluster import Cluster
from raycap.cluster.needs import Need, wait_for_nodes
from raycap.cluster.nodes import capacity, draining_nodes, nodes_with_label
from raycap.errors import UserError

# Memory of one worker without a GPU: torch, the weights and a batch.
BYTES_OF_WORKER = 2 * 2**30


class Place(NamedTuple):
    """Where one worker runs."""

    node: str
    threads: int
    gpus: float  # a share of one GPU


def worker_places(wanted: BulkOptions, cluster: Cluster, batches: int) -> list[Place]:
    """One place for each worker, on the nodes that the cluster has now.

    The number of workers is `wanted.actors`, by default as many as fit on the GPUs, or without
    GPUs one per CPU, limited by memory. It is never higher than `batches`.
    """
    draining = draining_nodes()
    nodes = [node for node in nodes_with_label(cluster.model_on) if node["NodeID"] not in draining]
    if not nodes:
        raise UserError("the cluster has no processor to offer: start Ray with at least one CPU")
    share = gpus_per_worker(wanted, cluster.model_on)
    slots = [_fitting(node["Resources"], share, wanted.threads or 1) for node in nodes]
    workers = min(wanted.actors or max(1, sum(slots)), batches)
    # Each worker goes to the node with the most free slots; if equal, to the one with the fewest
    # workers.
    taken = [0] * len(nodes)
    for _ in range(workers):
        place = max(range(len(nodes)), key=lambda node: (slots[node] - taken[node], -taken[node]))
        taken[place] += 1
    places = []
    for node, count in zip(nodes, taken, strict=True):
        # The workers of a node share its CPUs. More threads would wait for each other, above all
        # while pictures are decoded on the same CPUs.
        threads = wanted.threads or max(1, int(node["Resources"]["CPU"]) // max(1, count))
        places += [Place(node["NodeID"], threads, share)] * count
    return places


def _fitting(resources: Mapping[str, float], share: float, threads: int) -> int:
    """How many workers fit on a node."""
    if share:
        return int(resources.get("GPU", 0) / share)
    memory = int(resources.get("memory", 0) // BYTES_OF_WORKER)
    return min(memory, int(resources["CPU"]) // threads)


def decoding_need(cluster: Cluster, tasks: int) -> Need:
    """The resources for this many tasks that fetch and decode pictures."""
    return Need("to decode pictures", cluster.decode_on, {"CPU": 1.0}, tasks)


def provide_model_nodes(wanted: BulkOptions, cluster: Cluster, actors: int) -> None:
    """If there is an autoscaler, ask it for nodes that can run the model, and wait for them."""
    resources = {"GPU": wanted.gpus} if wanted.gpus else {"CPU": 1.0}
    need = Need("to run the model", cluster.model_on, resources, actors)
    wait_for_nodes([need], cluster.wait)
    if wanted.gpus is None and capacity(cluster.model_on).get("GPU"):
        wait_for_nodes([replace(need, resources={"GPU": 1.0})], cluster.wait)


def gpus_per_worker(wanted: BulkOptions, label: str) -> float:
    """GPUs for each worker: as asked for, otherwise 1 if the nodes with the label have GPUs, else
    0. Raises UserError if they have fewer than one worker needs."""
    gpus = capacity(label).get("GPU", 0.0)
    share = wanted.gpus if wanted.gpus is not None else min(1.0, gpus)
    if share > gpus:
        raise UserError(
            f"--gpus {share:g} asks for more than the cluster has, which is {gpus:g}: "
            "give --gpus 0, or add a GPU"
        )
    return share
