"""Chooses the precision and the batch size of a run: one for all workers, before the first row is
made.

The built-in captioner writes a different caption in bf16 than in fp32 for about one photo in
eight. So `auto` is not decided by each worker. It is decided once, on a node that will run the
model, and the answer is part of the run's identity. In bf16 and fp16 captions also depend on the
batch size, which is then part of the identity too. On a GPU it is the largest that fits there.
"""

import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, get_args

from raycap.bulk.identity import ONLY_PRECISION_OF_OLDER_VERSIONS, check_same
from raycap.bulk.job import TableJob
from raycap.bulk.options import USUAL_BATCH, BulkOptions
from raycap.cluster import Cluster
from raycap.device import ROUNDED_BY_BATCH, PrecisionName, choose_precision
from raycap.storage import RunFolder
from raycap.terminal import write_err

SECONDS_TO_FIRST_MESSAGE = 10


def with_precision(job: TableJob, precision: PrecisionName) -> TableJob:
    """The job with this precision in its options, its identity and its files' metadata."""
    identity = {**job.identity, "precision": precision}
    if precision in ROUNDED_BY_BATCH:
        identity["batch"] = job.options.batch_size
    metadata = {**job.layout.metadata, "precision": precision}
    return replace(
        job,
        options=replace(job.options, precision=precision),
        identity=identity,
        layout=replace(job.layout, metadata=metadata),
    )


def with_batch(job: TableJob, batch: int) -> TableJob:
    """The job with this batch size in its options."""
    return replace(job, options=replace(job.options, batch=batch))


class Chooser(Protocol):
    """Decides what depends on the device on which the model will run."""

    def choose_precision(self, options: BulkOptions) -> PrecisionName: ...

    def choose_batch(self, job: TableJob) -> int: ...


def resolve_precision(
    job: TableJob,
    record: Mapping[str, Any] | None,
    out: RunFolder,
    machines: Chooser,
    planned_batch: int | None = None,
) -> TableJob:
    """The job with its precision and its batch size decided: those asked for, else those of the
    run that is continued, else what `machines` choose.

    `record` is the run.json of that run, `planned_batch` that of its plan.
    """
    if not job.runs_model:
        return job
    asked, recorded = job.options.precision, _recorded(record)
    if record is not None and not recorded:
        # A run of another kind: report the differences before anything is chosen. If there are
        # none, it is one of an older version.
        check_same(job, record, out)
        recorded = ONLY_PRECISION_OF_OLDER_VERSIONS
    if asked == "auto":
        asked = recorded or machines.choose_precision(job.options)
    if job.options.batch is None:
        of_run = _recorded_batch(record) or planned_batch
        decided = with_precision(job, asked)
        job = with_batch(job, of_run or machines.choose_batch(decided))
    return with_precision(job, asked)


def as_recorded(job: TableJob, record: Mapping[str, Any] | None) -> TableJob:
    """The job as it is compared with `record`. With auto it takes the recorded precision; if there
    is none, nothing is chosen."""
    asked, recorded = job.options.precision, _recorded(record)
    if not job.runs_model or not recorded:
        return job
    if job.options.batch is None and (batch := _recorded_batch(record)):
        job = with_batch(job, batch)
    return with_precision(job, recorded if asked == "auto" else asked)


def choose_run_precision(options: BulkOptions, cluster: Cluster) -> PrecisionName:
    """The precision asked for. For auto, the fastest one on a node for the model, with the GPU
    that the model will have there."""
    if options.precision != "auto":
        return options.precision
    # Ray takes a second to load, and small jobs do without it.
    import ray

    from raycap.bulk.placement import gpus_per_worker, provide_model_nodes
    from raycap.cluster.nodes import alive_nodes, selector, without_idle_heads

    provide_model_nodes(options, cluster, actors=1)
    label = cluster.model_on
    gpus, nodes = gpus_per_worker(options, label), alive_nodes()
    is_here = len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname()
    if is_here and not gpus and not label and nodes[0]["Resources"].get("CPU"):
        name, reason = fastest("cpu" if options.device == "auto" else options.device)
    else:
        where = without_idle_heads(selector(label)) or {}
        ask = ray.remote(fastest).options(num_cpus=0, num_gpus=gpus, label_selector=where)
        answer = ask.remote(options.device)
        if not ray.wait([answer], timeout=SECONDS_TO_FIRST_MESSAGE)[0]:
            write_err(
                "raycap: waiting for a node that can run the model, to choose the precision of "
                "the run (--precision says it at once)\n"
            )
        name, reason = ray.get(answer)
    write_err(f"raycap: precision {name}: {reason}\n")
    return name


def fastest(device: str) -> tuple[PrecisionName, str]:
    """The fastest precision of a device of this machine, and the reason."""
    found = choose_precision(device)
    return found.name, found.reason


def is_on_processor(device: str) -> bool:
    """Whether this machine would run a model on its processors."""
    return choose_precision(device, "fp32").device.type == "cpu"


def choose_largest_batch(job: TableJob, cluster: Cluster) -> int:
    """The largest batch that fits into a worker's memory, on a node of the cluster for the
    model."""
    if job.largest_batch is None:
        return USUAL_BATCH
    import ray

    from raycap.bulk.placement import gpus_per_worker
    from raycap.cluster.nodes import selector, without_idle_heads

    gpus = gpus_per_worker(job.options, cluster.model_on)
    if not gpus:
        return USUAL_BATCH
    where = without_idle_heads(selector(cluster.model_on)) or {}
    on_share = replace(job, options=replace(job.options, gpus=gpus))
    ask = ray.remote(largest_batch_here).options(num_cpus=0, num_gpus=gpus, label_selector=where)
    return report_batch(ray.get(ask.remote(on_share)))


def largest_batch_here(job: TableJob) -> int | None:
    """The largest batch that fits into the memory of this machine's GPU; None: any does."""
    return None if job.largest_batch is None else job.largest_batch(job.options)


def report_batch(largest: int | None) -> int:
    """Say which batch was found; the usual one where any fits."""
    if largest is None:
        return USUAL_BATCH
    write_err(
        f"raycap: batches of {largest}: larger ones do not fit into the GPU's memory, or are not "
        "faster (--batch says it at once)\n"
    )
    return largest


def _recorded(record: Mapping[str, Any] | None) -> PrecisionName | None:
    found = (record or {}).get("identity", {}).get("precision")
    return found if found in get_args(PrecisionName) and found != "auto" else None


def _recorded_batch(record: Mapping[str, Any] | None) -> int | None:
    found = (record or {}).get("identity", {}).get("batch")
    return found if isinstance(found, int) and found > 0 else None
