"""One precision for a run: chosen before its first row, recorded with its rows, and used by every worker.

In bf16 the captioner that ships says something else of about one photo in eight than in fp32. So `auto` is not left
to each worker: a node that will run the model is asked once, and what it answers is part of the run's identity. In
bf16 and fp16 a caption also depends on the size of the batch, which is then part of it too.
"""

import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import ray

from raycap.bulk.options import Bulk
from raycap.bulk.shape import gpu_share, provide_model_nodes
from raycap.bulk.work import FACTS, RUN, Work, check_same
from raycap.cluster import Cluster
from raycap.cluster.nodes import alive_nodes, selector, without_idle_heads
from raycap.device import PrecisionName, derive
from raycap.errors import UserError
from raycap.storage import RunFolder
from raycap.terminal import write_err

SECONDS_IN_SILENCE = 10


def with_precision(work: Work, precision: PrecisionName) -> Work:
    """The work in this precision."""
    told = {"precision": precision} | (
        {} if precision == "fp32" else {"batch": work.options.batch}
    )
    return replace(
        work,
        options=replace(work.options, precision=precision),
        identity={**work.identity, **told},
        parts=replace(work.parts, metadata={**work.parts.metadata, "precision": precision}),
    )


def settled(work: Work, folder: RunFolder) -> Work:
    """The work in the precision of its run: the one asked for, else the one that the folder's run began with, else
    the fastest that the model's nodes have."""
    if not work.runs_model:
        return work
    asked, run = work.options.precision, folder.read_json(RUN)
    recorded = _recorded(run)
    if run is None or recorded:
        if asked == "auto":
            asked = recorded or choose(work.options, work.config.cluster)
        return with_precision(work, asked)
    # Begun by raycap 0.1.0, where each worker chose for itself.
    check_same(work, folder)
    if asked == "auto":
        raise UserError(
            f"{folder} was begun by a version of raycap that did not record its precision: give it with "
            "--precision (fp32 on most processors, bf16 on newer GPUs), or --overwrite to make the rows anew"
        )
    work = with_precision(work, asked)
    folder.remove(FACTS)
    folder.write_json(RUN, {**run, "identity": work.identity})
    return work


def as_recorded(work: Work, folder: RunFolder) -> Work:
    """The work as it is compared with the folder's run, without choosing anything that is not chosen yet."""
    asked, recorded = work.options.precision, _recorded(folder.read_json(RUN))
    if not work.runs_model or not recorded:
        return work
    return with_precision(work, recorded if asked == "auto" else asked)


def choose(options: Bulk, cluster: Cluster) -> PrecisionName:
    """The precision asked for; for auto the fastest one that a node for the model has, with the GPU that the model
    will have there."""
    if options.precision != "auto":
        return options.precision
    provide_model_nodes(options, cluster, actors=1)
    label = cluster.model_on
    share, nodes = gpu_share(options, label), alive_nodes()
    here = len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname()
    if here and not share and not label and nodes[0]["Resources"].get("CPU"):
        name, reason = fastest("cpu" if options.device == "auto" else options.device)
    else:
        where = without_idle_heads(selector(label)) or {}
        ask = ray.remote(fastest).options(num_cpus=0, num_gpus=share, label_selector=where)
        answer = ask.remote(options.device)
        if not ray.wait([answer], timeout=SECONDS_IN_SILENCE)[0]:
            write_err(
                "raycap: waiting for a node that can run the model, to choose the precision of the run "
                "(--precision says it at once)\n"
            )
        name, reason = ray.get(answer)
    write_err(f"raycap: precision {name}: {reason}\n")
    return name


def fastest(device: str) -> tuple[PrecisionName, str]:
    """The fastest precision of a device of this machine, and why."""
    found = derive(device)
    return found.name, found.reason


def _recorded(run: Mapping[str, Any] | None) -> PrecisionName | None:
    found = (run or {}).get("identity", {}).get("precision")
    return found if found in get_args(PrecisionName) and found != "auto" else None
