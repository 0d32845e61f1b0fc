"""How many model actors, with how many threads, on which share of a GPU: derived from the cluster unless told."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray.data import ActorPoolStrategy, DataContext, Dataset

from raycap.bulk.options import Bulk
from raycap.bulk.pictures import manifest, opened
from raycap.bulk.todo import Todo
from raycap.cluster import Cluster
from raycap.cluster.needs import MOST_PIECES, Need, wait_for_nodes
from raycap.cluster.nodes import capacity, selector, without_idle_heads
from raycap.config import Config
from raycap.errors import UserError
from raycap.images import Reading, Square
from raycap.terminal import write_err

# Of one actor without a GPU: torch, the weights and a batch.
BYTES_OF_ACTOR = 2 * 2**30
# An actor that dies is made again so often; then the pass ends and the next one begins with new actors.
RESTARTS = 3
# Rows that one task fetches from the web.
WEB_ROWS = 256


@dataclass(frozen=True)
class Shape:
    """The pool that an act runs its model on."""

    actors: int
    threads: int
    gpus: float  # share of one GPU for each actor
    nodes: dict[str, str] | None = None  # only those with this label

    def __str__(self) -> str:
        gpu = f", {self.gpus:g} GPU each" if self.gpus else ", on the processor"
        return f"{self.actors} model actor(s) with {self.threads} thread(s){gpu}"


def shape(wanted: Bulk, cluster: Cluster, few: int | None = None) -> Shape:
    """As told, else: on GPUs as many actors as fit; without, one for each processor as far as memory goes; of `few`
    rows no more than they make batches. Where an autoscaler has to bring the nodes, this waits for them.

    Threads of one actor wait for each other, all the more while pictures are decoded on the same processors.
    """
    batches = MOST_PIECES if few is None else -(-few // wanted.batch)
    wait_for_nodes([decoders(cluster, batches)], cluster.wait)
    provide_model_nodes(wanted, cluster, wanted.actors or batches)
    nodes = selector(cluster.model_on)
    have = capacity(cluster.model_on)
    cpus, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
    if not cpus:
        raise UserError("the cluster has no processor to offer: start Ray with at least one CPU")
    share = gpu_share(wanted, cluster.model_on)
    room = int(have.get("memory", 0) // BYTES_OF_ACTOR)
    fit = int(gpus / share) if share else min(room, cpus // (wanted.threads or 1))
    actors = wanted.actors or max(1, min(fit, batches) if few is not None else fit)
    return Shape(
        actors, wanted.threads or max(1, cpus // actors), share, without_idle_heads(nodes)
    )


def decoders(cluster: Cluster, tasks: int) -> Need:
    """What so many tasks need that fetch and decode."""
    return Need("to decode pictures", cluster.decode_on, {"CPU": 1.0}, tasks)


def provide_model_nodes(wanted: Bulk, cluster: Cluster, actors: int) -> None:
    """Ask for nodes that can run the model, and wait for them, where an autoscaler has to bring them."""
    need = Need(
        "to run the model",
        cluster.model_on,
        {"GPU": wanted.gpus} if wanted.gpus else {"CPU": 1.0},
        actors,
    )
    wait_for_nodes([need], cluster.wait)
    if wanted.gpus is None and capacity(cluster.model_on).get("GPU"):
        wait_for_nodes([replace(need, resources={"GPU": 1.0})], cluster.wait)


def gpu_share(wanted: Bulk, label: str) -> float:
    """The GPUs of each model actor: as asked for, else one where there is any. Refused if the nodes for the model
    have too few."""
    gpus = capacity(label).get("GPU", 0.0)
    share = wanted.gpus if wanted.gpus is not None else min(1.0, gpus)
    if share > gpus:
        raise UserError(
            f"an actor shall have {share:g} GPU, and the cluster has {gpus:g}: give --gpus 0, or a GPU"
        )
    return share


def on_actors(
    rows: Dataset, model: type, pool: Shape, batch: int, arguments: dict[str, Any]
) -> Dataset:
    """Each batch through the model. Actors hold no logical processor, so that they can never wait for the tasks
    that feed them, nor these for them, on one processor or on many; the system shares the real ones."""
    write_err(f"raycap: {pool}, batches of {batch}\n")
    options: Callable[[], dict[str, Any]] = lambda: {  # noqa: E731 - Ray Data asks for a function
        "max_restarts": RESTARTS,
        "max_task_retries": RESTARTS,
        "scheduling_strategy": "SPREAD",
    }
    # Ray is to drop this argument, and offers no other way to say it yet.
    warnings.filterwarnings("ignore", message=r"[\s\S]*ray_remote_args_fn")
    # The end of any pile gives some actors nothing to do.
    warnings.filterwarnings("ignore", message=r"The minimum number of concurrent actors")
    return rows.map_batches(
        model,
        batch_format="pyarrow",
        batch_size=batch,
        compute=ActorPoolStrategy(size=pool.actors),
        fn_constructor_kwargs=arguments,
        num_cpus=0,
        num_gpus=pool.gpus,
        label_selector=pool.nodes,
        ray_remote_args_fn=options,
    )


def pictures(todo: Todo, config: Config, batch: int, reading: Reading, square: Square) -> Dataset:
    """Every row to do as an opened picture, in blocks that are whole batches of the model."""
    # Addresses on the web are fetched more at a time, so that a slow one holds back fewer tasks.
    rows_per_task = batch * max(1, WEB_ROWS // batch) if todo.source.names_urls else batch
    context = DataContext.get_current()
    context.target_max_block_size = (
        2 * rows_per_task * 3 * square.size**2
    )  # twice what it takes: never cut in two
    context.execution_options.preserve_order = False
    tasks = MOST_PIECES if todo.few is None else -(-todo.few // batch)
    wait_for_nodes([decoders(config.cluster, tasks)], config.cluster.wait)
    rows = manifest(todo, rows_per_task)
    where = selector(config.cluster.decode_on)
    return opened(rows, todo.source, config.fetch, reading, square, True, rows_per_task, where)
