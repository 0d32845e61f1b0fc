"""Runs training in this process or on the workers of Ray Train."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from raycap.cluster import Cluster
from raycap.cluster.needs import Need, wait_for_nodes
from raycap.cluster.nodes import capacity, check_visible, selector
from raycap.cluster.session import find_user_error
from raycap.device import choose_precision
from raycap.errors import UserError
from raycap.storage import RunFolder, cache_folder
from raycap.training import Train
from raycap.training.data import open_pictures
from raycap.training.distributed import WorkerGroup
from raycap.training.fine_tuning.loop import fine_tune
from raycap.training.fine_tuning.pictures import open_fitted
from raycap.training.fine_tuning.setup import FineTuningSetup
from raycap.training.loop import train_captioner
from raycap.training.run_files import EpochLimit
from raycap.training.setup import TrainingSetup
from raycap.uris import is_local

# Ray Train's folder in the run folder; removed when the run ends.
RAYS_OWN = "_ray"
# An elastic run looks for new nodes this often. Each change costs the steps since the last
# checkpoint.
SECONDS_BETWEEN_RESIZES = 60.0
# After a node was lost, Ray Train counts on it for up to 20 seconds more. An elastic run waits so
# many seconds for workers that cannot start, before it starts fewer.
SECONDS_TO_START = 20


AnySetup = TrainingSetup | FineTuningSetup


def open_data(setup: AnySetup, cache: Path) -> Any:
    """The pictures of a run. What has to be unpacked is unpacked into `cache`."""
    if isinstance(setup, FineTuningSetup):
        return open_fitted(setup.pictures, cache)
    return open_pictures(setup.pictures, setup.options, cache)


def train_worker(setup: AnySetup, data: Any, *others: Any) -> bool:
    """Train, as one of the workers of a run: from parts, or by fine-tuning a model."""
    if isinstance(setup, FineTuningSetup):
        return fine_tune(setup, data, *others)
    return train_captioner(setup, data, *others)


def train_here(setup: AnySetup, out: RunFolder, name: str, epoch_token: str = "") -> None:
    """Train in this process, under the lease `name`. With an `epoch_token`, each epoch waits for
    the EpochLimit with that token."""
    workers = setup.options.workers
    torch.set_num_threads(workers.threads or _processors())
    device = {True: "cuda", False: "cpu", None: "auto"}[workers.gpu]
    data = open_data(setup, cache_folder(setup.options.cache))
    precision = choose_precision(device, setup.options.precision)
    limit = EpochLimit(Path(out.path()), epoch_token) if epoch_token else None
    train_worker(setup, data, out, precision, WorkerGroup(), None, limit, name)


def train_on_workers(
    setup: AnySetup,
    out: RunFolder,
    name: str,
    epoch_token: str = "",
    cluster: Cluster | None = None,
) -> None:
    """Train on the workers of Ray Train, under the lease `name`. A lost worker is replaced, and
    all continue from the last checkpoint."""
    cluster = cluster or Cluster()
    options = setup.options
    count, gpu = _workers(options, cluster)
    workers = options.workers
    elastic = (workers.min, workers.max) if workers.min and workers.max else None
    nodes = selector(cluster.model_on)
    # Again, because new nodes may have joined.
    if isinstance(setup, FineTuningSetup) and setup.captioner.digest:
        check_visible({setup.captioner.model: "train.model"})
    visible = {table: "the feature table" for table in setup.pictures.tables if is_local(table)}
    if out.is_local:
        visible[out.path()] = "train.out"
    check_visible(visible)
    # Ray's controller writes there, on this machine; workers do not.
    rays_own = out.path(RAYS_OWN) if out.is_local else tempfile.mkdtemp(prefix="raycap-ray-")
    resources = {"CPU": options.workers.cpus} | ({"GPU": options.workers.gpus} if gpu else {})
    # Workers keep the driver's working directory, so that relative paths in the config hold.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(SECONDS_TO_START))
    failures = options.workers.failures
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "setup": ray.put(setup),
            "out": out,
            "epoch_token": epoch_token,
            "lease": name,
        },
        scaling_config=ScalingConfig(
            num_workers=elastic or count,
            use_gpu=gpu,
            resources_per_worker=resources,
            label_selector=nodes,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
        ),
        # TorchTrainer is typed for the old RunConfig, and wants the new one.
        run_config=RunConfig(  # type: ignore[arg-type]
            # A new name for each start: under the name of a finished run Ray would train nothing.
            name=name,
            storage_path=rays_own,
            failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in (error, *getattr(error, "worker_failures", {}).values()):
            if user_error := find_user_error(failure):
                raise user_error from error
        raise
    finally:
        shutil.rmtree(rays_own, ignore_errors=True)


def _work(given: dict[str, Any]) -> None:
    """The function that each worker runs."""
    setup: AnySetup = ray.get(given["setup"])
    context, options = ray.train.get_context(), setup.options
    torch.set_num_threads(
        options.workers.threads or max(1, _processors() // context.get_local_world_size())
    )
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group, cache = WorkerGroup(), cache_folder(options.cache)
    if context.get_local_rank() == 0:  # once on each machine
        open_data(setup, cache)
    group.wait()
    data = open_data(setup, cache)
    precision = choose_precision(str(device), options.precision)
    out: RunFolder = given["out"]
    token = given["epoch_token"]
    limit = EpochLimit(Path(out.path()), token) if token else None
    train_worker(setup, data, out, precision, group, ray.train.report, limit, given["lease"])


def _workers(options: Train, cluster: Cluster) -> tuple[int, bool]:
    """How many workers, and whether on GPUs. Waits for nodes where an autoscaler has to start
    them. Raises UserError if the cluster is too small, because Ray would wait for ever."""
    workers, label = options.workers, cluster.model_on
    least = workers.count or workers.min or 1
    each: dict[str, float] = {"CPU": workers.cpus}
    each_with_gpu = {**each, "GPU": workers.gpus}
    need = Need("to train", label, each_with_gpu if workers.gpu else each, least, least)
    wait_for_nodes([need], cluster.wait)
    if workers.gpu is None and capacity(label).get("GPU"):
        wait_for_nodes([replace(need, resources=each_with_gpu)], cluster.wait)
    selector(label)  # raises UserError if no node has the label
    total = capacity(label)
    gpus, processors = int(total.get("GPU", 0)), total.get("CPU", 0)
    gpu = gpus > 0 if workers.gpu is None else workers.gpu
    if gpu and not gpus:
        raise UserError(
            "--train.workers.gpu asks for GPUs, but Ray sees none here: leave it out, or join a "
            "cluster"
        )
    count = workers.count or workers.min or (min(gpus, options.batch) if gpu else 1)
    if gpu and count > gpus:
        raise UserError(
            f"--train.workers.count is {count}, but there are {gpus} GPUs: take as many workers, "
            "or --train.workers.gpu false"
        )
    if count * workers.cpus > processors:
        raise UserError(
            f"{count} workers with {workers.cpus} processors each (--train.workers) are more than "
            f"the {processors:g} that Ray has: take fewer, or give each less"
        )
    return count, gpu


def _processors() -> int:
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
