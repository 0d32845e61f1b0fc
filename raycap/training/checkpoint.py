"""Checkpoints: the state from which a killed run continues, with the same result.

    run/checkpoints/step-000000450/state.safetensors     all tensors that training changes
    run/checkpoints/step-000000450/state.json            the rest; written last

A folder without state.json is not a checkpoint. Both files appear when they are complete, on disks
and in object stores.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from raycap.errors import UserError
from raycap.metrics import facts_of
from raycap.storage import RunFolder
from raycap.storage.folder import STAGED

FOLDER, STATE, TENSORS = "checkpoints", "state.json", "state.safetensors"
KEPT = 2


@dataclass
class TrainState:
    """How far a run has come. There is no state of random generators: each step is seeded with its
    own number."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step_of_epoch: int = 0
    step: int = 0  # of the run
    best: float | None = None  # the best score so far
    waited: int = 0  # epochs since the best one
    epochs_done: int = 0  # of the run
    seconds: float = 0.0  # of training
    counts: list[float] = field(default_factory=list)  # sums over the steps of this epoch so far

    def end_epoch(self, measure: str, figures: Mapping[str, Any]) -> bool:
        """Note that an epoch was validated. Returns whether it is the best so far."""
        facts = facts_of(measure)
        score = figures[facts.log_name or measure]
        is_best = self.best is None or facts.is_better(score, self.best)
        self.best = score if is_best else self.best
        self.waited = 0 if is_best else self.waited + 1
        self.epoch += 1
        self.epochs_done += 1
        self.step_of_epoch = 0
        return is_best


class Checkpoint(NamedTuple):
    """The content of a checkpoint; `tensors` and `numbers` as in `Learner`."""

    state: TrainState
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class CheckpointWriter:
    """Writes checkpoints in a thread, one after the other. Training goes on meanwhile.

    `check` is called before each write. It raises an error if another process writes there now.
    """

    def __init__(self, run: RunFolder, check: Callable[[], None] = lambda: None) -> None:
        self._run, self._check = run, check
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None

    def save(
        self, state: TrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """Copy the state, and begin to write it. Waits for the previous checkpoint."""
        self.wait()
        # Training changes the tensors in place while they are written.
        copies = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        # "place": the name in the files of earlier versions.
        rest = {"place": dataclasses.asdict(state), **numbers}
        # As text: the numbers may change, too.
        text = json.dumps(rest, indent=2, ensure_ascii=False)
        name = f"{FOLDER}/step-{state.step:09}"
        self._written = self._pool.submit(_write, self._run, name, copies, text, self._check)

    def wait(self) -> None:
        """Return when the last checkpoint is complete. Raises UserError if it failed."""
        if self._written is not None:
            self._written.result()
            self._written = None

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def _write(
    run: RunFolder, name: str, tensors: dict[str, Tensor], text: str, check: Callable[[], None]
) -> None:
    """Write a checkpoint, then delete all but the newest ones."""
    check()
    try:
        with tempfile.TemporaryDirectory(dir=run.scratch()) as scratch:
            file = f"{scratch}/{TENSORS}"
            safetensors.torch.save_file(tensors, file)
            run.put(f"{name}/{TENSORS}", file)
    except OSError as error:
        raise UserError(f"cannot save a checkpoint in {run}: {error}") from error
    run.remove_empty(STAGED)
    check()  # large tensors take a while
    run.write(f"{name}/{STATE}", text.encode())
    complete = [each for each in _folders(run) if run.exists(f"{each}/{STATE}")]
    for old in _folders(run):
        if old < complete[-KEPT:][0]:
            run.remove(old)


def newest_checkpoint(run: RunFolder) -> str | None:
    """The name of the newest complete checkpoint, if there is one."""
    complete = (name for name in reversed(_folders(run)) if run.exists(f"{name}/{STATE}"))
    return next(complete, None)


def load_checkpoint(run: RunFolder, name: str | None, device: torch.device) -> Checkpoint | None:
    """The checkpoint of this name. None if the name is None."""
    if name is None:
        return None
    try:
        numbers = json.loads(run.read(f"{name}/{STATE}") or "")
        with local_file(run, f"{name}/{TENSORS}") as file:
            tensors = safetensors.torch.load_file(file, device=str(device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the checkpoint {run}/{name} is damaged ({error}): delete it to continue from "
            "an older one"
        ) from error
    return Checkpoint(TrainState(**numbers.pop("place")), tensors, numbers)


@contextlib.contextmanager
def local_file(run: RunFolder, name: str) -> Iterator[Path]:
    """A local file with the content of a file of the run."""
    if run.is_local:
        yield Path(run.path(name))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"

        def download(source: Any) -> None:
            with copy.open("wb") as file:
                shutil.copyfileobj(source, file)

        run.reading(name, download)
        yield copy


def _folders(run: RunFolder) -> list[str]:
    """The folders of all checkpoints, complete or not, the newest last."""
    return [f"{FOLDER}/{name}" for name in run.folders(FOLDER) if name.startswith("step-")]


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, as named tensors."""
    named = {}
    for index, of_weight in optimiser.state_dict()["state"].items():
        for name, tensor in of_weight.items():
            named[f"optimiser.{index}.{name}"] = tensor
    return named


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the optimiser's state from the result of `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, kind = name.split(".")
            state.setdefault(int(index), {})[kind] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
