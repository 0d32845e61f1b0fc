"""Hyperparameter sweeps: their options (here), the search space (`space`), the schedulers that end
trials early (`schedulers`), and the table of trials (`trials`)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raycap.errors import UserError
from raycap.tuning.schedulers import SCHEDULERS as SCHEDULERS

if TYPE_CHECKING:
    SchedulerName = str
else:
    SchedulerName = Literal[tuple(SCHEDULERS)]


@dataclass(frozen=True)
class Tune:
    """Many training runs, the trials, of which the best is kept."""

    out: str = "sweep"
    """Folder of the sweep: a run folder for each trial, their table, the best captioner and its
    config."""
    fresh: bool = False
    """Start over, deleting the sweep that is in `out`."""
    space: str = ""
    """The search space, a YAML file: for each option to try, its name in the config and its
    range."""
    trials: int = 20
    """Number of trials; a grid has as many as it has points."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """How the parameters of trials are chosen: at random, every combination of choices, or where
    Optuna expects most."""
    scheduler: SchedulerName = "asha"
    """What ends trials early: asha (only the best of each rung continue), or none."""
    grace: int = 3
    """Epochs before a trial may be ended."""
    reduction: int = 3
    """asha: one of this many trials continues from a rung, and the next rung is this many times as
    far."""
    concurrent: int | None = None
    """Trials at the same time; none: as many as there is room for."""
    cpus: float = 1.0
    """CPUs that Ray reserves for each trial, shared by its workers."""
    gpus: float | None = None
    """GPUs that Ray reserves for each trial, shared by its workers; 0.25 lets four trials share
    one. None: 1 where there are GPUs."""
    retries: int = 1
    """How often a trial that died is started again, from its last checkpoint, before it counts as
    failed."""
    seed: int = 0
    """Seed of the random choices of parameters."""

    def __post_init__(self) -> None:
        for name in ("trials", "grace"):
            if getattr(self, name) < 1:
                raise UserError(f"tune.{name} is {getattr(self, name)}: give at least 1")
        if self.reduction < 2:
            raise UserError(
                f"tune.reduction is {self.reduction}: give at least 2, or tune.scheduler none"
            )
        if self.concurrent is not None and self.concurrent < 1:
            raise UserError(
                f"tune.concurrent is {self.concurrent}: give at least 1, or leave it out"
            )
        if not self.cpus > 0 or (self.gpus is not None and not self.gpus >= 0):
            raise UserError("tune.cpus must be above 0 and tune.gpus at least 0")
        if self.retries < 0:
            raise UserError(f"tune.retries is {self.retries}: give 0 or more")
