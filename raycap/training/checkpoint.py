"""A run's state on disk: everything that a killed run needs to go on as if nothing had happened."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from raycap.refusal import Refusal
from raycap.runs import write_json

FOLDER, STATE, TENSORS = "checkpoints", "state.json", "state.safetensors"
KEPT = 2


@dataclass
class Place:
    """Where in a run one is. Randomness needs no state: each step's draws start from the seed and the step."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step_of_epoch: int = 0
    step: int = 0  # of the run
    best: float | None = None
    waited: int = 0  # epochs since the best one
    epochs_done: int = 0  # of the run
    seconds: float = 0.0
    counts: list[float] = field(default_factory=list)  # what the epoch has added up so far


def save(run: Path, place: Place, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, then drop older ones."""
    folder = run / FOLDER / f"step-{place.step:09}"
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(whole, beside / TENSORS)
        write_json(beside / STATE, {"place": dataclasses.asdict(place), **numbers})
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        raise Refusal(f"cannot save a checkpoint in {run}: {error}") from error
    for old in _all(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(run: Path, device: torch.device) -> tuple[Place, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint, if there is one."""
    found = newest(run)
    if found is None:
        return None
    try:
        numbers = json.loads((found / STATE).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(found / TENSORS, device=str(device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise Refusal(f"the checkpoint {found} is damaged ({error}): delete it to go on from an older") from error
    return Place(**numbers.pop("place")), tensors, numbers


def newest(run: Path) -> Path | None:
    """The folder of the newest checkpoint."""
    return next(iter(_all(run)[-1:]), None)


def drop_unfinished(run: Path) -> None:
    """What killed runs began to write. Only for who knows that no other process writes here now."""
    for part in (run / FOLDER).glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def _all(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob("step-*"))


def of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory by names."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{place}.{name}": tensor for place, own in state.items() for name, tensor in own.items()}


def into_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """What `of_optimiser` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, place, kind = name.split(".")
            state.setdefault(int(place), {})[kind] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
