"""Processes that train together: gradients become sums, whatever their size, layout or absence;
synchronised batch norms see the pictures of all; a run goes on from one checkpoint."""

import json
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.multiprocessing.spawn import spawn

from raycap.encoders.batch_norm import synchronise
from raycap.storage import RunFolder
from raycap.training.checkpoint import CheckpointWriter, TrainState
from raycap.training.distributed import BUFFER, LARGE, WorkerGroup
from raycap.training.resume import open_output, resume


def weights() -> dict[str, nn.Parameter]:
    small, large, images = torch.zeros(7, 3), torch.zeros(2, LARGE), torch.zeros(64, 64, 3, 3)
    return {
        "small": nn.Parameter(small),
        "large": nn.Parameter(large),
        "laid out otherwise": nn.Parameter(images.contiguous(memory_format=torch.channels_last)),
        "of one process alone": nn.Parameter(large.clone()),
        "more than one piece": nn.Parameter(torch.zeros(BUFFER, 2).mT),
    }


def gradient(name: str, weight: nn.Parameter, rank: int) -> torch.Tensor:
    drawn = torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(len(name) + 100 * rank)
    )
    return drawn.mT.contiguous().mT if rank else drawn  # they may lie in different ways


def flags(rank: int) -> list[bool]:
    return [rank == 1, False, True]


def normed() -> nn.Sequential:
    """A small network with a batch norm before and behind a convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    )


def train_normed(rank: int | None, synchronised: bool) -> dict[str, torch.Tensor]:
    """The gradients and statistics after two steps with 5 pictures and with 1, of which process 0
    has 3 and 1, and process 1 has 2 and none. None stands for one process with all of them."""
    network = normed()
    if synchronised:
        synchronise(network)
    for step, count in enumerate((5, 1)):
        drawn = torch.Generator().manual_seed(step)
        pictures = torch.randn(count, 3, 6, 6, generator=drawn).requires_grad_()
        own = pictures[slice(None) if rank is None else slice(rank, None, 2)]
        (network(own).square() * torch.arange(4.0)[:, None, None]).sum().backward()
    if rank is not None:
        WorkerGroup().sum_gradients(list(network.parameters()))
    gradients = {
        f"gradient of {name}": weight.grad
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    return gradients | network.state_dict()


def add_up(rank: int, address: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    named = weights()
    for name, weight in named.items():
        if rank == 0 or name != "of one process alone":
            weight.grad = gradient(name, weight, rank)
    WorkerGroup().sum_gradients(list(named.values()))
    agreed = WorkerGroup().any(flags(rank), torch.device("cpu"))
    assert WorkerGroup().largest(3 - rank, torch.device("cpu")) == 3
    torch.save(train_normed(rank, synchronised=True), Path(folder) / f"norm-{rank}.pt")
    (Path(folder) / f"{rank}.json").write_text(json.dumps(agreed))
    torch.save({name: weight.grad for name, weight in named.items()}, Path(folder) / f"{rank}.pt")
    out = RunFolder(f"{folder}/run-{rank}")
    checkpoint = resume(out, open_output(out), WorkerGroup(), torch.device("cpu"))
    (Path(folder) / f"run-{rank}.json").write_text(
        json.dumps(checkpoint and checkpoint.state.step)
    )
    torch.distributed.destroy_process_group()


def write_checkpoints(out: Path, steps: int) -> None:
    writer = CheckpointWriter(RunFolder(str(out)))
    for step in range(1, steps + 1):
        writer.save(TrainState(step=step), {"weight": torch.zeros(1)}, {})
    writer.close()


def test_two_processes_add_gradients_and_agree_on_flags_and_checkpoints(tmp_path: Path) -> None:
    # Process 1 sees a newer one, as when a worker that was cut off has just completed it.
    for rank in (0, 1):
        write_checkpoints(tmp_path / f"run-{rank}", 1 + rank)
    spawn(add_up, (f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, weight in weights().items():
        expected = gradient(name, weight, 0)
        if name != "of one process alone":
            expected = expected + gradient(name, weight, 1)
        for rank in (0, 1):
            torch.testing.assert_close(
                found[rank][name], expected, msg=f"{name} in process {rank}"
            )
    for rank in (0, 1):
        agreed = json.loads((tmp_path / f"{rank}.json").read_text())
        assert agreed == [True, False, True], (
            "a flag of any worker is seen by all at the same step"
        )
        assert json.loads((tmp_path / f"run-{rank}.json").read_text()) == 1
    alone = train_normed(None, synchronised=False)
    assert len(alone) == 5 + 11  # gradients; weights and statistics
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"norm-{rank}.pt", weights_only=True)
        assert shared.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                shared[name], expected, rtol=1e-4, atol=1e-5, msg=f"{name} in process {rank}"
            )
