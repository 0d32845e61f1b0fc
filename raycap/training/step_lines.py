"""The lines of the training log about steps."""

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raycap.training.checkpoint import TrainState
from raycap.training.step import COUNTED, Phase


@dataclass(frozen=True)
class LoggedAt:
    """Counts, step and time of the last step line. The next line is about the steps since then."""

    counts: Tensor
    step: int
    time: float


def step_line(
    steps: int, phase: Phase, state: TrainState, lr: float, counts: Tensor, logged: LoggedAt
) -> dict[str, Any]:
    """A log line about the steps since the last such line, of `steps` in the whole run. `counts`
    are the sums of all workers since the beginning of the epoch."""
    seconds = max(time.monotonic() - logged.time, 1e-9)
    new = (counts - logged.counts).tolist()
    captions = new[COUNTED.index("captions")]
    return {
        "kind": "step",
        "phase": phase.name,
        "epoch": state.epochs_done + 1,
        "step": state.step,
        "steps": steps,
        **phase.figures(new),
        "lr": lr,
        "captions_per_second": round(captions / seconds, 1),
        "steps_per_second": round((state.step - logged.step) / seconds, 3),
    }
