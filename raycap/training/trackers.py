"""Where a run's figures go besides metrics.jsonl: TensorBoard, MLflow, Weights & Biases. All run on the driver."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from raycap.refusal import Refusal
from raycap.training import Tracker

Made = TypeVar("Made")


class Tracking(Protocol):
    """One of them, open."""

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Figures of a step, by name."""

    def close(self) -> None:
        """Send what waits."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, out: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"))

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `raycap`, at MLFLOW_TRACKING_URI."""

    def __init__(self, out: Path) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("raycap")
        mlflow.start_run(run_name=out.name)

    def add(self, step: int, figures: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("/", "."): value for name, value in figures.items()}, step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project `raycap`."""

    def __init__(self, out: Path) -> None:
        import wandb

        # The same folder again goes on with the same run; another of that name is another run.
        own = f"{out.name}-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"
        self._run = wandb.init(project="raycap", name=out.name, dir=str(out), id=own, resume="allow")

    def add(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[Tracker, type[Tracking]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


def open_tracker(name: Tracker, out: Path) -> Tracking:
    """One tracker; where its package is missing, the refusal names the extra."""
    opened = attempt(partial(TRACKERS[name], out))  # type: ignore[call-arg]
    if isinstance(opened, ImportError):
        raise Refusal(f"the tracker {name} needs a package: pip install 'raycap[{name}]' ({opened})") from opened
    if isinstance(opened, Exception):
        raise Refusal(f"the tracker {name} cannot be opened (train.trackers): {opened}") from opened
    return opened


def attempt(call: Callable[[], Made]) -> Made | Exception:
    """What a tracker's package answers, or the error it ends with: any, of servers, keys or versions."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - must neither end hours of training nor be a traceback before it
        return error
