"""Processes that train together: gradients become sums, whatever their size, layout or absence."""

import json
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.multiprocessing.spawn import spawn

from raycap.training.distributed import BUFFER, LARGE, WorkerGroup


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


def add_up(rank: int, address: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    named = weights()
    for name, weight in named.items():
        if rank == 0 or name != "of one process alone":
            weight.grad = gradient(name, weight, rank)
    WorkerGroup().sum_gradients(list(named.values()))
    agreed = WorkerGroup().any(flags(rank), torch.device("cpu"))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(agreed))
    torch.save({name: weight.grad for name, weight in named.items()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_add_gradients_and_agree_on_flags(tmp_path: Path) -> None:
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
