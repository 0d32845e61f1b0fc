"""The Ray that the tests share, and models that run in its tasks."""

import sys
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from raycap.cluster import local_ray

# Idle workers stay, so that the next test finds them with their modules loaded.
SYSTEM_CONFIG = {
    "idle_worker_killing_time_threshold_ms": 600_000,
    "num_workers_soft_limit": 6,
    "agent_register_timeout_ms": 60_000,
}


def start_ray(cpus: int) -> None:
    """Start a Ray for tests on this machine."""
    local_ray.start_ray(
        num_cpus=cpus, logging_level="ERROR", log_to_driver=False, _system_config=SYSTEM_CONFIG
    )


def on_tasks(
    rows: Dataset, model: type, pool: object, batch: int, arguments: dict[str, Any]
) -> Dataset:
    """Stands for `on_actors`: the same model on the same batches, in workers that Ray has already
    started. An actor is a new process, which takes seconds to load torch."""
    # Workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = {"model": model, "arguments": arguments}
    return rows.map_batches(
        _apply, batch_format="pyarrow", batch_size=batch, fn_kwargs=options, num_cpus=0.5
    )


def _apply(table: pa.Table, model: type, arguments: dict[str, Any]) -> pa.Table:
    return model(**arguments)(table)
