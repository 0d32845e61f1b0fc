"""Two ways of exchanging gradients between two processes: summed after the backward pass, as
raycap does, and during it, by DistributedDataParallel.

python benchmarks/exchange.py [--batch 32] [--steps 10]

The decoder of configs/flickr8k.yaml on made-up features, two processes with one thread each, by
gloo. Both ways take turns at every step, so that a busy machine slows down both. DDP averages, so
its loss is multiplied by the number of processes. The gradients of both are compared too.
"""

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
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
    share = dataset.batch(dataset.rows[:batch][rank::2])
    all_words = group.sum((share.words[..., 1:] != PAD).sum().float())

    def after() -> None:
        loss(share.pictures, share.words, all_words).backward()
        group.sum_gradients(weights)

    def during() -> None:
        (2 * overlapped(share.pictures, share.words, all_words)).backward()

    ways: dict[str, Callable[[], None]] = {"after": after, "during": during}
    gradients, seconds = {}, {name: list[float]() for name in ways}
    for _ in range(steps + 1):
        for name, way in ways.items():
            for weight in weights:
                weight.grad = None
            group.wait()
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
            gradients[name] = [
                weight.grad.clone() for weight in weights if weight.grad is not None
            ]
    far = max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        for one, other in zip(gradients["after"], gradients["during"], strict=True)
    )
    if rank == 0:
        medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
        answers.put((medians, far))
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    chosen = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (port, chosen.batch, chosen.steps, folder, answers)
        spawn(one_of_two, given, nprocs=2)  # type: ignore[no-untyped-call]
    medians, far = answers.get()
    for name, each in medians.items():
        print(f"{name} the backward pass: {each:.3f} s")
    print(f"ratio {medians['during'] / medians['after']:.2f}; gradients differ by {far:.1e}")


if __name__ == "__main__":
    main()
