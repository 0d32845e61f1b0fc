"""The pool of model workers: how many, with how many threads, on which share of a GPU."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray.data import ActorPoolStrategy, Dataset

from raycap.bulk.options import BulkOptions
from raycap.cluster import Cluster
from raycap.cluster.needs import MOST_PIECES, Need, wait_for_nodes
from raycap.cluster.nodes import capacity, selector, without_idle_heads
from raycap.errors import UserError
from raycap.terminal import write_err

# Of one worker without a GPU: torch, the weights and a batch.
BYTES_OF_WORKER = 2 * 2**30
# A worker that dies is started again so often; then the pass ends and the next one begins with new
# workers.
RESTARTS = 3


@dataclass(frozen=True)
class ModelPool:
    """The workers that hold the model."""

    workers: int
    threads: int
    gpus: float  # share of one GPU for each worker
    nodes: dict[str, str] | None = None  # a label selector; None: all nodes

    def __str__(self) -> str:
        gpu = f", {self.gpus:g} GPU each" if self.gpus else ", on the processor"
        return f"{self.workers} model actor(s) with {self.threads} thread(s){gpu}"


def model_pool(wanted: BulkOptions, cluster: Cluster, few: int | None = None) -> ModelPool:
    """The pool that the options ask for. By default as many workers as fit on the GPUs; without
    GPUs, one for each processor as far as memory goes; for `few` rows no more than they make
    batches.

    If an autoscaler has to bring the nodes, this waits for them.
    """
    batches = MOST_PIECES if few is None else -(-few // wanted.batch)
    wait_for_nodes([decoding_need(cluster, batches)], cluster.wait)
    provide_model_nodes(wanted, cluster, wanted.actors or batches)
    have = capacity(cluster.model_on)
    cpus, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
    if not cpus:
        raise UserError("the cluster has no processor to offer: start Ray with at least one CPU")

    share = gpus_per_worker(wanted, cluster.model_on)
    if share:
        fitting = int(gpus / share)
    else:
        memory = int(have.get("memory", 0) // BYTES_OF_WORKER)
        fitting = min(memory, cpus // (wanted.threads or 1))
    if few is not None:
        fitting = min(fitting, batches)
    workers = wanted.actors or max(1, fitting)
    # Threads of one worker wait for each other, all the more while pictures are decoded on the
    # same processors.
    threads = wanted.threads or max(1, cpus // workers)
    return ModelPool(workers, threads, share, without_idle_heads(selector(cluster.model_on)))


def decoding_need(cluster: Cluster, tasks: int) -> Need:
    """What so many tasks need that fetch and decode."""
    return Need("to decode pictures", cluster.decode_on, {"CPU": 1.0}, tasks)


def provide_model_nodes(wanted: BulkOptions, cluster: Cluster, actors: int) -> None:
    """Ask for nodes that can run the model, and wait for them, if an autoscaler has to bring
    them."""
    resources = {"GPU": wanted.gpus} if wanted.gpus else {"CPU": 1.0}
    need = Need("to run the model", cluster.model_on, resources, actors)
    wait_for_nodes([need], cluster.wait)
    if wanted.gpus is None and capacity(cluster.model_on).get("GPU"):
        wait_for_nodes([replace(need, resources={"GPU": 1.0})], cluster.wait)


def gpus_per_worker(wanted: BulkOptions, label: str) -> float:
    """The GPUs of each model worker: as asked for, else one if there is any. Raises UserError if
    the nodes for the model have too few."""
    gpus = capacity(label).get("GPU", 0.0)
    share = wanted.gpus if wanted.gpus is not None else min(1.0, gpus)
    if share > gpus:
        raise UserError(
            f"--gpus {share:g} asks for more than the cluster has, which is {gpus:g}: "
            "give --gpus 0, or add a GPU"
        )
    return share


def through_model(
    rows: Dataset, model: type, pool: ModelPool, batch: int, arguments: dict[str, Any]
) -> Dataset:
    """Each batch through the model. The workers hold no logical processor: so they can never wait
    for the tasks that feed them, nor these for them, on one processor or on many. The operating
    system shares the real ones."""
    write_err(f"raycap: {pool}, batches of {batch}\n")
    options: Callable[[], dict[str, Any]] = lambda: {  # noqa: E731 - Ray Data asks for a function
        "max_restarts": RESTARTS,
        "max_task_retries": RESTARTS,
        "scheduling_strategy": "SPREAD",
    }
    # Ray is to drop this argument, and offers no other way to say it yet.
    warnings.filterwarnings("ignore", message=r"[\s\S]*ray_remote_args_fn")
    # The end of any job gives some workers nothing to do.
    warnings.filterwarnings("ignore", message=r"The minimum number of concurrent actors")
    return rows.map_batches(
        model,
        batch_format="pyarrow",
        batch_size=batch,
        compute=ActorPoolStrategy(size=pool.workers),
        fn_constructor_kwargs=arguments,
        num_cpus=0,
        num_gpus=pool.gpus,
        label_selector=pool.nodes,
        ray_remote_args_fn=options,
    )
