"""The Ray that the tests share."""

import sys

# Idle workers stay, so that the next test finds them with their modules loaded.
SYSTEM_CONFIG = {
    "idle_worker_killing_time_threshold_ms": 600_000,
    "num_workers_soft_limit": 6,
    "agent_register_timeout_ms": 60_000,
}


def start_ray(cpus: int) -> None:
    """Start a Ray for tests on this machine."""
    from raycap.cluster import local_ray

    local_ray.start_ray(
        num_cpus=cpus, logging_level="ERROR", log_to_driver=False, _system_config=SYSTEM_CONFIG
    )


def stop_ray() -> None:
    """Stop it, if one runs. Does not import Ray, which takes seconds."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
