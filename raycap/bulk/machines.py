"""Where a table job runs: in this process while it is small, otherwise on Ray.

A small folder on one machine is captioned before Ray would have started. Who names a cluster, or
has started Ray, gets Ray.
"""

import contextlib
import functools
import os
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycap.bulk.crew import Crew, LocalCrew, list_in_thread
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Shard
from raycap.bulk.precision import fastest
from raycap.bulk.work import WorkOrder
from raycap.cluster import Cluster
from raycap.device import PrecisionName
from raycap.terminal import write_err

if TYPE_CHECKING:
    from raycap.bulk.job import TableJob


# Tasks that list parts of a source at the same time.
MOST_LISTINGS = 16


class Machines:
    """Used within `with`; a Ray that it has started or joined is left at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stack = contextlib.ExitStack()
        self._on_ray = False

    def __enter__(self) -> "Machines":
        self._stack.__enter__()
        names_one = self._cluster.address or os.environ.get("RAY_ADDRESS")
        ray = sys.modules.get("ray")
        if names_one or (ray is not None and ray.is_initialized()):
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
        lister: Callable[[Sequence[int]], Iterator[Shard]],
        units: Sequence[int],
        events: "queue.SimpleQueue[Any]",
    ) -> None:
        """List the shards of these units in the background; each shard comes as an event."""
        if not self._on_ray:
            list_in_thread(functools.partial(lister, units), events)
            return
        from raycap.bulk.pool import decoding_need
        from raycap.bulk.ray_crew import list_in_task
        from raycap.cluster.needs import wait_for_nodes
        from raycap.cluster.nodes import selector

        if self._cluster.decode_on:
            # Listing asks for no processor, so no autoscaler would start a node for it.
            wait_for_nodes([decoding_need(self._cluster, 1)], self._cluster.wait)
        nodes = selector(self._cluster.decode_on)
        tasks = min(len(units), MOST_LISTINGS)
        for first in range(tasks):
            list_in_task(functools.partial(lister, units[first::tasks]), nodes, events)

    def crew(
        self,
        job: "TableJob",
        order: WorkOrder,
        events: "queue.SimpleQueue[Any]",
        rows: int | None,
    ) -> Crew:
        """Workers for so many rows; None: for many."""
        is_small = rows is not None and rows <= self._cluster.local_rows
        # Who asks for GPUs or for nodes with a label is answered by Ray, which knows them.
        asks_for_nodes = job.options.gpus or self._cluster.decode_on or self._cluster.model_on
        if is_small and not (self._on_ray or asks_for_nodes):
            return LocalCrew(job.options, order, events)
        self._use_ray()
        from raycap.bulk.ray_crew import RayCrew

        return RayCrew(job, order, events, rows)

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[Any]:
        """The answers of a function for all these arguments, in their order."""
        if not self._on_ray or len(arguments) == 1:
            return (function(*some) for some in arguments)
        from raycap.bulk.ray_crew import run_in_tasks

        return run_in_tasks(function, arguments)

    def reason_of(self, error: BaseException) -> str:
        """What was lost, in one line; what is no loss of a worker or a node is raised."""
        if not self._on_ray:
            raise error
        from raycap.bulk.ray_crew import reason_of

        return reason_of(error)

    def choose_precision(self, options: BulkOptions) -> PrecisionName:
        """The precision asked for; for auto the fastest one where the model will run."""
        if options.precision != "auto":
            return options.precision
        if not self._on_ray and options.gpus is None:
            name, reason = fastest(options.device)
            write_err(f"raycap: precision {name}: {reason}\n")
            return name
        self._use_ray()
        from raycap.bulk.precision import choose_run_precision

        return choose_run_precision(options, self._cluster)

    def check_visible(self, paths: Mapping[str, str]) -> None:
        """Raises UserError if a machine of the cluster does not see a local path."""
        if self._on_ray:
            from raycap.cluster.nodes import check_visible

            check_visible(paths)
