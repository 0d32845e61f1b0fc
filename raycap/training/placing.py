"""Which processes train: how many, on what."""

from dataclasses import dataclass

from raycap.refusal import Refusal


@dataclass(frozen=True)
class Workers:
    """Which processes train."""

    count: int | None = None
    """How many; none: one for each GPU, or one where there is none. 0: in this process, without Ray Train."""
    gpu: bool | None = None
    """Train on GPUs, one for each worker; none: where the cluster has some."""
    cpus: float = 0.5
    """Processors that Ray sets aside for each worker; threads are shared out by themselves."""
    gpus: float = 1.0
    """GPUs that Ray sets aside for each worker that trains on one; a share leaves room for other runs."""
    threads: int | None = None
    """Threads of each worker; none: the machine's processors, shared among its workers."""
    failures: int = 3
    """How often a lost worker is replaced; the run goes on from the last checkpoint."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise Refusal(f"workers.count is {self.count}: give 1 or more, or 0 to train in this process")
        if not 0 < self.gpus <= 1:
            raise Refusal(f"workers.gpus is {self.gpus}: give 1, or a share of one above 0")
        if self.cpus <= 0 or self.failures < 0 or (self.threads is not None and self.threads < 1):
            raise Refusal(
                "workers.cpus must be above 0, workers.threads at least 1 and workers.failures at least 0"
            )
