"""How a sweep searches: its options. What it searches is in `space`, what is known of its trials in `trials`."""

from dataclasses import dataclass
from typing import Literal

from raycap.refusal import Refusal


@dataclass(frozen=True)
class Tune:
    """Many training runs, the trials, of which the best is kept."""

    out: str = "sweep"
    """Folder of the sweep: a run folder for each trial, their table, the best captioner and its config."""
    fresh: bool = False
    """Start over, deleting the sweep that is in `out`."""
    space: str = ""
    """The search space, a YAML file: for each option to try, its name in the config and its range."""
    trials: int = 20
    """How many; a grid has as many as it has points."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """Where trials are placed: drawn by chance, every combination of choices, or where Optuna expects most."""
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    """What ends a trial early: asha (only the best of each rung go on), median (worse than half of the others), pbt
    (none ends; the worst go on from the best's weights, at other rates), or nothing."""
    grace: int = 3
    """Epochs before a trial may be ended; with pbt, epochs between two changes."""
    reduction: int = 3
    """asha: one of so many trials goes on from a rung, and the next rung is so many times as far."""
    concurrent: int | None = None
    """Trials at once; none: as many as there is room for."""
    cpus: float = 1.0
    """Processors that each trial sets aside, shared by its workers."""
    gpus: float | None = None
    """GPUs that each trial sets aside, shared by its workers; 0.25 lets four trials share one. None: 1 where there
    are GPUs."""
    retries: int = 1
    """How often a trial that died is begun again, from its last checkpoint, before it is put down as failed."""
    seed: int = 0
    """Of what is drawn by chance."""

    def __post_init__(self) -> None:
        for name in ("trials", "grace"):
            if getattr(self, name) < 1:
                raise Refusal(f"tune.{name} is {getattr(self, name)}: give at least 1")
        if self.reduction < 2:
            raise Refusal(f"tune.reduction is {self.reduction}: give at least 2, or tune.scheduler none")
        if self.concurrent is not None and self.concurrent < 1:
            raise Refusal(f"tune.concurrent is {self.concurrent}: give at least 1, or leave it out")
        if not self.cpus > 0 or (self.gpus is not None and not self.gpus >= 0):
            raise Refusal("tune.cpus must be above 0 and tune.gpus at least 0")
        if self.retries < 0:
            raise Refusal(f"tune.retries is {self.retries}: give 0 or more")
        if self.scheduler == "pbt" and self.searcher == "optuna":
            raise Refusal("pbt moves the trials itself, and optuna places them by how they end: take one of them")
