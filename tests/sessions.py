"""The Ray that the tests share."""

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
