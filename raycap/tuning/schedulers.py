"""The schedulers of a sweep, which end bad trials early. To add one, write a class here and add
its line to SCHEDULERS.

Trials report once per epoch, as Ray Tune's `training_iteration`. Ray is imported only when one is
built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from raycap.tuning import Tune

EPOCH = "training_iteration"


class Scheduler(Protocol):
    """Builds one of Ray Tune's schedulers."""

    def build(self, options: Tune, epochs: int) -> TrialScheduler:
        """`epochs` is the number of epochs of the longest trial."""


class Asha:
    """Only the best trials of each rung continue to the next."""

    def build(self, options: Tune, epochs: int) -> TrialScheduler:
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            EPOCH,
            max_t=epochs,
            grace_period=min(options.grace, epochs),
            reduction_factor=options.reduction,
        )


class RunAll:
    """Every trial runs to its end."""

    def build(self, options: Tune, epochs: int) -> TrialScheduler:
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()  # type: ignore[no-untyped-call]


SCHEDULERS: dict[str, Scheduler] = {
    "asha": Asha(),
    "none": RunAll(),
}
