"""How the workers of a run take it up: from its newest checkpoint, as the only ones that write."""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import torch

from raycap.storage import RunFolder
from raycap.storage.folder import STAGED
from raycap.storage.training_log import METRICS, RunLog
from raycap.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    TrainState,
    load_checkpoint,
    newest_checkpoint,
)
from raycap.training.distributed import WorkerGroup
from raycap.training.run_files import CAPTIONER, Leadership

# The driver renews its lease meanwhile. What is so old is no part of that.
SECONDS_TO_WRITE = 10.0


class Output(NamedTuple):
    """What the leader of a run writes with."""

    leadership: Leadership
    log: RunLog
    checkpoints: CheckpointWriter


def open_output(out: RunFolder, lease: str = "") -> Output:
    """`lease` is the lease under which the workers were started; "" for none."""
    leadership = Leadership(out, lease)
    check = leadership.check
    return Output(leadership, RunLog(out, check), CheckpointWriter(out, check))


def resume(
    out: RunFolder, output: Output, group: WorkerGroup, device: torch.device
) -> Checkpoint | None:
    """The newest checkpoint, for all workers the same. Nothing else writes after this, and the log
    ends where the checkpoint does."""
    name = None
    if group.leads:
        output.leadership.take()
        _clear(out)
        name = newest_checkpoint(out)
    # A worker that was cut off may complete a checkpoint while these workers look for one.
    [name] = group.gather([name] if group.leads else [])
    checkpoint = load_checkpoint(out, name, device)
    if group.leads:
        state = TrainState() if checkpoint is None else checkpoint.state
        output.log.forget_after(state.step, state.epochs_done)
    return checkpoint


def _clear(out: RunFolder) -> None:
    """Remove what killed processes have left half written (see `whole_path`). A captioner that
    they were about to replace is put back."""
    out.remove(STAGED)
    if not out.is_local:
        return
    folder = Path(out.path())
    for name in (CAPTIONER, METRICS):
        for left in sorted(folder.glob(f".{name}.*")):
            if left.suffix == ".old" and not (folder / name).exists():
                left.rename(folder / name)
            else:
                out.remove(left.name)
    name_of_part = f".{'[0-9a-f]' * 32}.part"  # see `RunFolder.write`
    for part in (*folder.glob(name_of_part), *folder.glob(f"{CAPTIONER}/{name_of_part}")):
        with contextlib.suppress(FileNotFoundError):  # the driver has renamed it
            if time.time() - part.stat().st_mtime >= SECONDS_TO_WRITE:
                part.unlink()
