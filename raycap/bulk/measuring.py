"""Loads and captions some rows as one worker of a job would do it, and takes the time. Nothing is
written."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.bulk.job import TableJob
from raycap.bulk.pictures import load_table
from raycap.bulk.work import AsyncRowMaker
from raycap.captioners.protocol import CHUNK
from raycap.errors import UserError
from raycap.fetch.hosts import FETCHED
from raycap.storage import RunFolder
from raycap.uris import is_web

# Pictures that are loaded together while their time is taken.
LOADED_TOGETHER = 8
# Of the requests that may be in flight: fewer say that the server is not what limits the rate.
SATURATED = 0.7


@dataclass(frozen=True)
class Deployment:
    """The workers that the job will have."""

    workers: int
    threads: int  # of each worker
    processors: int  # which load pictures, on all machines
    gpus: float  # of each worker
    machines: int
    how: str  # for people


@dataclass(frozen=True)
class Measured:
    """What the sample took one worker."""

    made: pa.Table  # its rows, without the pictures
    load_seconds: Sequence[float]  # of a processor, for one picture of each group
    fetch_seconds: Sequence[float]  # of requests to the web, for one picture
    model_seconds: Sequence[float]  # of the worker, for one picture
    open_seconds: float


def measure(job: TableJob, rows: pa.Table, threads: int) -> Measured:
    """Load and caption these rows as one worker with so many threads."""
    nowhere = RunFolder(os.devnull)  # nothing is written
    order = job.order(nowhere, nowhere)
    loaded, load_seconds = [], []
    together = len(rows) if job.source.names_urls else LOADED_TOGETHER
    for start in range(0, len(rows), together):
        some = rows.slice(start, together)
        began = time.monotonic()
        loaded.append(load_table(some, **order.loading()))
        load_seconds.append((time.monotonic() - began) / len(some))
    table = pa.concat_tables(loaded, promote_options="permissive")
    transfers = zip(table["uri"].to_pylist(), table[FETCHED.name].to_pylist(), strict=True)
    fetch_seconds = [each["seconds"] for uri, each in transfers if each and is_web(uri)]
    table = table.append_column(CHUNK, pa.array([""] * len(table), pa.string()))

    began = time.monotonic()
    make_rows = job.open_model(job.options, threads)
    open_seconds = time.monotonic() - began
    try:
        if isinstance(make_rows, AsyncRowMaker):
            made, model_seconds = time_requests(make_rows, table)
        else:
            made, model_seconds = time_batches(make_rows, table, job.options.batch_size)
    finally:
        if (close := getattr(make_rows, "close", None)) is not None:
            close()
    if fetch_seconds:  # what it takes to load a picture from the web is mostly waiting
        load_seconds = []
    return Measured(made, load_seconds, fetch_seconds, model_seconds, open_seconds)


def time_batches(make_rows: Any, table: pa.Table, batch: int) -> tuple[pa.Table, list[float]]:
    """The rows, and the seconds of one picture in each batch."""
    table = table.combine_chunks()
    make_rows(table.slice(0, 1))  # whatever happens only once
    made, seconds = [], []
    for start in range(0, len(table), batch):
        some = table.slice(start, batch)
        began = time.monotonic()
        made.append(make_rows(some))
        seconds.append((time.monotonic() - began) / len(some))
    if len(seconds) > 2 and len(table) % batch:
        seconds.pop()  # a batch that is not full takes longer for each picture
    return pa.concat_tables(made, promote_options="permissive"), seconds


def time_requests(make_rows: Any, table: pa.Table) -> tuple[pa.Table, list[float]]:
    """The rows, and the seconds of one picture if as many are in flight as in a long job."""
    began = time.monotonic()
    made = make_rows.submit(table.combine_chunks())()
    wall = time.monotonic() - began
    answered = (
        [] if "seconds" not in made.column_names else made["seconds"].drop_null().to_pylist()
    )
    flight = min(make_rows.in_flight, len(table))
    # With 64 in flight, 200 pictures come in four waves, of which the last is not full.
    waves = math.ceil(len(table) / flight)
    is_saturated = sum(answered) / wall > SATURATED * len(table) / waves
    if not answered or not is_saturated:
        return made, [wall / len(table)]
    return made, [seconds / flight for seconds in answered]


def deployment_here(job: TableJob, rows: int) -> Deployment:
    """The workers of a job on this machine alone."""
    options, processors = job.options, os.cpu_count() or 1
    if rows <= job.cluster.local_rows:
        threads = options.threads or processors
        return Deployment(1, threads, processors, 0, 1, "in this process, as small jobs are")
    gpus = _gpus_here() if job.runs_model and options.device != "cpu" else 0
    if gpus and options.gpus != 0:
        workers = options.actors or gpus
        threads = options.threads or max(1, processors // workers)
        return Deployment(workers, threads, processors, gpus / workers, 1, "on this machine")
    workers = options.actors or max(1, processors // (options.threads or 1))
    threads = options.threads or max(1, processors // workers)
    no_gpu = ", which has no GPU" if job.runs_model and not gpus else ""
    return Deployment(workers, threads, processors, 0, 1, f"on this machine{no_gpu}")


def on_cluster(job: TableJob, rows: pa.Table, total: int) -> tuple[Deployment, Measured]:
    """The workers that the job will have on the cluster as it is now, and what the rows took one
    of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raycap.bulk.placement import provide_model_nodes, worker_places
    from raycap.bulk.ray_pool import reason_of
    from raycap.cluster.nodes import capacity

    options, cluster = job.options, job.cluster
    provide_model_nodes(options, cluster, actors=1)
    places = worker_places(options, cluster, max(1, math.ceil(total / options.batch_size)))
    first = places[0]
    deployment = Deployment(
        workers=len(places),
        threads=first.threads,
        processors=max(1, int(capacity(cluster.decode_on).get("CPU", 0))),
        gpus=first.gpus,
        machines=len({place.node for place in places}),
        how="on the cluster as it is",
    )
    task = ray.remote(measure).options(
        num_cpus=0 if first.gpus else 1,
        num_gpus=first.gpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(first.node, soft=False),
        max_retries=1,  # then each picture is read in a child process: see `pictures`
    )
    try:
        return deployment, ray.get(task.remote(job, rows, first.threads))
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the sample could not be captioned on the cluster: {reason_of(error)}"
        ) from error


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
