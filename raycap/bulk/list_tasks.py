"""Runs the rounds of a lister in Ray tasks."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import ray

from raycap.bulk.listing import Part
from raycap.bulk.plan import Shard
from raycap.bulk.ray_loader import RETRIES
from raycap.bulk.worker_pool import PlanFailed, Planned


def list_in_tasks(
    rounds: Iterator[list[Part]],
    nodes: dict[str, str] | None,
    events: "queue.SimpleQueue[Any]",
) -> None:
    """Run rounds of parts in the background, each part in a task; each shard comes as an event."""
    # Tasks without processors would all run on the node of the driver.
    task: Any = ray.remote(
        num_cpus=0,
        max_retries=RETRIES,
        label_selector=nodes or {},
        scheduling_strategy="SPREAD",
        num_returns="streaming",
    )(_run_part)

    def forward(stream: Any) -> None:
        for shard in stream:
            events.put(Planned(ray.get(shard)))

    def run_rounds() -> None:
        try:
            for parts in rounds:
                if not parts:
                    continue
                streams = [task.remote(part) for part in parts]
                pool = ThreadPoolExecutor(len(streams), "plan")
                try:
                    for done in as_completed([pool.submit(forward, each) for each in streams]):
                        done.result()
                finally:  # after a fault of one part, the others may go on: it does no harm
                    pool.shutdown(wait=False)
        except Exception as error:  # noqa: BLE001 - the run decides what to do about it
            events.put(PlanFailed(error))

    threading.Thread(target=run_rounds, daemon=True, name="plan").start()


def _run_part(part: Part) -> Iterator[Shard]:
    yield from part()
