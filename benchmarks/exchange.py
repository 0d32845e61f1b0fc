"""Two ways of exchanging gradients between two processes: summed after the backward pass, as
raycap does, and during it, by DistributedDataParallel. Both beside one process.

python benchmarks/exchange.py [--batch 32] [--steps 10]

Forward and backward pass of the decoder of configs/flickr8k.yaml on made-up features. Two
processes have one thread each, by gloo; the one process has two. The three take turns at every
step, so that a busy machine slows down all. Processor time, of both processes together, says what
the exchange costs where other work is in the way. DDP averages, so its loss is multiplied by the
number of processes. The gradients of all are compared too.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As the command line sets it. On a busy machine, threads that wait would take the processors.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
import torch.distributed
from json_figures import add_json, write_figures
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from train import _dataset, made_up, network

from raycap.training import Objective
from raycap.training.distributed import WorkerGroup
from raycap.training.loss import caption_loss
from raycap.training.network import Network
from raycap.vocabulary import PAD


class LossOfShare(nn.Module):
    """This process's share of the loss: the mean over all words of the step."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor, words: Tensor, all_words: Tensor) -> Tensor:
        memory = self.net.prepare(pictures)
        objective = Objective(label_smoothing=0.0)
        return caption_loss(self.net.decoder, memory, words, objective).objective / all_words


def one_of_two(rank: int, port: int, batch: int, steps: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    group, net = WorkerGroup(), network()
    net.eval()  # without dropout, whose random numbers would differ
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    loss = LossOfShare(net)
    overlapped = DistributedDataParallel(loss, gradient_as_bucket_view=True)
    dataset = _dataset(made_up(batch * 2, Path(folder) / f"{rank}.bin"))
    step = dataset.rows[:batch]
    whole, share = dataset.batch(step), dataset.batch(step[rank::2])
    all_words = group.sum((share.words[..., 1:] != PAD).sum().float())

    def alone() -> None:
        """The other process waits meanwhile, and takes no processor."""
        if rank == 0:
            torch.set_num_threads(2)
            loss(whole.pictures, whole.words, all_words).backward()
            torch.set_num_threads(1)

    def after() -> None:
        loss(share.pictures, share.words, all_words).backward()
        group.sum_gradients(weights)

    def during() -> None:
        (2 * overlapped(share.pictures, share.words, all_words)).backward()

    ways: dict[str, Callable[[], None]] = {"alone": alone, "after": after, "during": during}
    gradients = {}
    seconds, used = ({name: list[float]() for name in ways} for _ in range(2))
    for _ in range(steps + 1):
        for name, way in ways.items():
            for weight in weights:
                weight.grad = None
            group.wait()
            started, began = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - started)
            used[name].append(sum(group.gather([time.process_time() - began])))
            gradients[name] = [
                weight.grad.clone() for weight in weights if weight.grad is not None
            ]
    if rank == 0:
        far = {name: _farthest(gradients[name], gradients["alone"]) for name in ways}
        figures = {name: (seconds[name][1:], used[name][1:]) for name in ways}
        answers.put((figures, far))
    torch.distributed.destroy_process_group()


def _farthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, as a share of the largest gradient of the same weight."""
    return max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        for one, other in zip(ours, theirs, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    add_json(parser)
    chosen = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (port, chosen.batch, chosen.steps, folder, answers)
        spawn(one_of_two, given, nprocs=2)  # type: ignore[no-untyped-call]
    figures, far = answers.get()
    names = {
        "alone": "one process of 2 threads",
        "after": "two processes, summed after the backward pass",
        "during": "two processes, summed during the backward pass (DDP)",
    }
    found: dict[str, float] = {}
    for name, measured in figures.items():
        # Of each step, so that what slows down a step slows down both sides.
        faster, cheaper = (
            statistics.median(one / other for one, other in zip(alone, own, strict=True))
            for alone, own in zip(figures["alone"], measured, strict=True)
        )
        seconds, used = (statistics.median(each) for each in measured)
        print(
            f"{names[name]}: {seconds:.2f} s a step, {used:.2f} s of processors; {faster:.2f} of "
            f"the speed of one process, {cheaper:.2f} by processor time; gradients differ by "
            f"{far[name]:.1e}"
        )
        found |= {f"{name}_by_clock": faster, f"{name}_by_processor": cheaper}
    write_figures(chosen, found)


if __name__ == "__main__":
    main()
