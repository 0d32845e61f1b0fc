"""Checkpoints: the state from which a killed run continues, with the same result."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from raycap.errors import UserError
from raycap.storage import whole_path, write_json

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


class Checkpoint(NamedTuple):
    """The content of a checkpoint; `tensors` and `numbers` as in `Learner`."""

    state: TrainState
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def save_checkpoint(
    run: Path, state: TrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Write a checkpoint atomically, then delete all but the newest ones."""
    folder = run / FOLDER / f"step-{state.step:09}"
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_path(folder) as part:
            part.mkdir()
            safetensors.torch.save_file(on_cpu, part / TENSORS)
            # "place": the name in the files of earlier versions.
            write_json(part / STATE, {"place": dataclasses.asdict(state), **numbers})
    except OSError as error:
        raise UserError(f"cannot save a checkpoint in {run}: {error}") from error
    for old in _checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run: Path, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint, if there is one."""
    found = _checkpoints(run)
    if not found:
        return None
    newest = found[-1]
    try:
        numbers = json.loads((newest / STATE).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(newest / TENSORS, device=str(device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the checkpoint {newest} is damaged ({error}): delete it to continue from an older "
            "one"
        ) from error
    return Checkpoint(TrainState(**numbers.pop("place")), tensors, numbers)


def _checkpoints(run: Path) -> list[Path]:
    """The folders of all checkpoints, the newest last."""
    return sorted((run / FOLDER).glob("step-*"))


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
