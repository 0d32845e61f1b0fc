"""Where a table job runs: in this process if it is small, otherwise on Ray.

A small folder is captioned in less time than Ray takes to start. A larger job may begin in this
process too, and goes on on Ray. If the user names a cluster, or
if this process has already started Ray, every job runs on Ray.
"""

import contextlib
import os
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycap.bulk.early_pool import EarlyPool
from raycap.bulk.listing import Lister, Part
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Shard
from raycap.bulk.precision import fastest, is_on_processor, largest_batch_here, report_batch
from raycap.bulk.work import WorkOrder
from raycap.bulk.worker_pool import LocalPool, LostHereError, WorkerPool, list_in_thread
from raycap.cluster import Cluster
from raycap.device import PrecisionName
from raycap.terminal import write_err
from raycap.uris import is_local

if TYPE_CHECKING:
    import pyarrow as pa

    from raycap.bulk.job import TableJob
    from raycap.bulk.measuring import Deployment, Measured


# The most tasks that list units of a source at the same time.
MOST_LISTINGS = 16


class Machines:
    """Runs the work of a table job in this process or on Ray.

    Use it within `with`: if it starts or joins Ray, it disconnects at the end.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stack = contextlib.ExitStack()
        self._on_ray = False

    def __enter__(self) -> "Machines":
        self._stack.__enter__()
        address = self._cluster.address or os.environ.get("RAY_ADDRESS")
        ray = sys.modules.get("ray")
        if address or (ray is not None and ray.is_initialized()):
            self._use_ray()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stack.__exit__(*error)

    def _use_ray(self) -> None:
        if not self._on_ray:
            from raycap.cluster.session import session  # Ray takes a second to load

            self._stack.enter_context(session(self._cluster))
            self._on_ray = True

    def list_shards(
        self,
        lister: Lister,
        units: Sequence[int],
        events: "queue.SimpleQueue[Any]",
    ) -> None:
        """Run `lister` for these units in the background. Each shard is put into `events`."""
        if not self._on_ray:
            list_in_thread(lambda: _one_by_one(lister.rounds(units, 1)), events)
            return
        from raycap.bulk.list_tasks import list_in_tasks
        from raycap.bulk.placement import decoding_need
        from raycap.cluster.needs import wait_for_nodes
        from raycap.cluster.nodes import selector

        if self._cluster.decode_on:
            # Listing tasks reserve no CPU, so an autoscaler would not start a node for them.
            wait_for_nodes([decoding_need(self._cluster, 1)], self._cluster.wait)
        rounds = lister.rounds(units, MOST_LISTINGS)
        list_in_tasks(rounds, selector(self._cluster.decode_on), events)

    def worker_pool(
        self,
        job: "TableJob",
        order: WorkOrder,
        events: "queue.SimpleQueue[Any]",
        rows: int | None,
    ) -> WorkerPool:
        """The workers for so many rows; None if the number is not known yet, or large."""
        is_small = rows is not None and rows <= self._cluster.local_rows
        # GPUs and nodes with a label are known to Ray only.
        asks_for_nodes = job.options.gpus or self._cluster.decode_on or self._cluster.model_on
        if is_small and not (self._on_ray or asks_for_nodes):
            return LocalPool(job.options, order, events, job.runs_model)

        def on_ray() -> WorkerPool:
            self._use_ray()
            from raycap.bulk.ray_pool import RayPool

            return RayPool(job, order, events, rows)

        if asks_for_nodes or not self._begins_here(job):
            return on_ray()
        until = " until Ray has started"
        return EarlyPool(LocalPool(job.options, order, events, job.runs_model, until), on_ray)

    def _begins_here(self, job: "TableJob") -> bool:
        """Whether this process works until Ray has started: it holds the model, takes no GPU that
        the workers will need, and asks no host that a fetching actor will ask too."""
        may_work = self._cluster.local_rows > 0 and not self._on_ray
        is_fetched = job.source.names_urls or not is_local(job.source.path)
        may_work = may_work and job.holds_model and not is_fetched
        return may_work and is_on_processor(job.options.device)

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[Any]:
        """Call a function with each of these tuples of arguments; the results in their order."""
        if not self._on_ray or len(arguments) == 1:
            return (function(*each) for each in arguments)
        from raycap.bulk.ray_pool import run_in_tasks

        return run_in_tasks(function, arguments)

    def on_worker(
        self, job: "TableJob", rows: "pa.Table", total: int
    ) -> "tuple[Deployment, Measured]":
        """Measure what some rows take one worker of a job of `total` rows, where such a worker
        will be."""
        from raycap.bulk.measuring import deployment_here, measure, on_cluster

        options = job.options
        if options.gpus or self._cluster.decode_on or self._cluster.model_on:
            self._use_ray()
        if self._on_ray:
            return on_cluster(job, rows, total)
        deployment = deployment_here(job, total)
        return deployment, measure(job, rows, deployment.threads)

    def reason_of(self, error: BaseException) -> str:
        """One line that says which worker or node was lost. Any other error is raised."""
        if isinstance(error, LostHereError):
            return str(error)
        if not self._on_ray:
            raise error
        from raycap.bulk.ray_pool import reason_of

        return reason_of(error)

    def choose_precision(self, options: BulkOptions) -> PrecisionName:
        """The precision that was asked for. For auto, the fastest one on the device of the
        model."""
        if options.precision != "auto":
            return options.precision
        if not self._on_ray and options.gpus is None:
            name, reason = fastest(options.device)
            write_err(f"raycap: precision {name}: {reason}\n")
            return name
        self._use_ray()
        from raycap.bulk.precision import choose_run_precision

        return choose_run_precision(options, self._cluster)

    def choose_batch(self, job: "TableJob") -> int:
        """The largest batch that fits into the memory of a GPU that runs the model; without GPUs
        the usual one."""
        if not self._on_ray and not job.options.gpus:
            return report_batch(None if job.options.gpus == 0 else largest_batch_here(job))
        self._use_ray()
        from raycap.bulk.precision import choose_largest_batch

        return choose_largest_batch(job, self._cluster)

    def check_visible(self, paths: Mapping[str, str]) -> None:
        """Raises UserError if a machine of the cluster does not see a local path."""
        if self._on_ray:
            from raycap.cluster.nodes import check_visible

            check_visible(paths)


def _one_by_one(rounds: Iterator[list[Part]]) -> Iterator[Shard]:
    for parts in rounds:
        for part in parts:
            yield from part()
