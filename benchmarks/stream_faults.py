"""Kill -9 the workers of a streamed training run, over and over, without Ray, which is quicker.

python benchmarks/stream_faults.py [--kills 20] [--pictures 600] [--epochs 4]

Two workers are forked from this process, and exchange gradients by gloo. In turn one of them is
killed, so that the other loses its partner in the middle of a step, or both at once, as when a
driver or a machine dies. Then both are started again, as Ray Train does (see `train_faults.py`).

In the end, the weights and the state of the optimiser must have the same bits as without kills,
the epochs the same figures, and the log each step once.
"""

import argparse
import dataclasses
import multiprocessing
import os
import random
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed
from stream import source_of, write_table
from train_faults import differences, newest_checkpoint, steps_of

from raycap.captioners.trained import CaptionerPlan
from raycap.decoders import TopDown
from raycap.device import choose_precision
from raycap.encoders import Pixels
from raycap.search import Greedy
from raycap.storage import RunFolder
from raycap.training import Train
from raycap.training.data import open_pictures
from raycap.training.distributed import WorkerGroup
from raycap.training.loop import train_captioner
from raycap.training.options import Validation
from raycap.training.row_groups import join_captions
from raycap.training.setup import TrainingSetup, gather_setup
from raycap.training.store import PictureTables, write_listing
from raycap.vocabulary import VocabularyOptions

WORKERS, SECONDS_TO_HANG = 2, 300.0
KINDS = ("one worker", "both workers")
fork: Any = multiprocessing.get_context("fork")


def prepared(folder: Path, epochs: int) -> TrainingSetup:
    """The tables, joined with their captions, and what the workers need."""
    options = Train(
        data="stream",
        window=256,
        epochs=epochs,
        batch=16,
        lr=0.01,
        precision="fp32",
        log_steps=1,
        checkpoint_minutes=0.002,
        neighbours=0,
        validation=Validation(best_by="loss"),
    )
    listing, rows = folder / "listing.arrow", folder / "rows"
    write_listing(source_of(folder), listing)
    join_captions(str(folder / "table"), listing, RunFolder(str(rows)), options)
    tables = PictureTables((str(folder / "table"),), str(listing), rows=str(rows))
    encoder = Pixels(size=8, patch=8, frequencies=2)
    decoder = TopDown(hidden_width=24, embedding_width=16, attention_width=16, projection_width=16)
    plan = CaptionerPlan(encoder, decoder, search=Greedy(max_length=12))
    words = VocabularyOptions(min_count=5)
    return gather_setup(plan, words, options, encoder.build(), tables, None)


def work(rank: int, port: int, setup: TrainingSetup, out: Path, cache: Path) -> None:
    """A worker, from its start to the end of the run."""
    # A worker that is left alone ends without a word; what counts is what the run has written.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=WORKERS)
    pictures = open_pictures(setup.pictures, setup.options, cache)
    precision = choose_precision("cpu", "fp32")
    train_captioner(setup, pictures, RunFolder(str(out)), precision, WorkerGroup())


def start(setup: TrainingSetup, out: Path, cache: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        fork.Process(target=work, args=(rank, port, setup, out, cache)) for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    return workers


def train(setup: TrainingSetup, out: Path, cache: Path, kills: int) -> list[str]:
    """Train to the end, and kill until the end or so many times. Returns what was killed."""
    killed: list[str] = []
    workers, before, began = start(setup, out, cache), "", time.monotonic()
    while not all(worker.exitcode == 0 for worker in workers):
        if any(worker.exitcode for worker in workers):
            for worker in workers:  # the other one may wait for it
                worker.join(5)
                worker.kill()
                worker.join()
            workers, began = start(setup, out, cache), time.monotonic()
        elif len(killed) < kills and newest_checkpoint(out) > before:
            time.sleep(0.3 * random.random())
            before = newest_checkpoint(out)
            kind = KINDS[len(killed) % len(KINDS)]
            step = (steps_of(out) or [0])[-1]
            for worker in random.sample(workers, 1 if kind == "one worker" else WORKERS):
                worker.kill()
            killed.append(kind)
            print(f"{kind} killed at step {step}", flush=True)
            time.sleep(0.1)
        if time.monotonic() - began > SECONDS_TO_HANG:
            raise SystemExit("the run hangs")
        time.sleep(0.005)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="raycap-stream-faults-") as scratch:
        folder = Path(scratch)
        write_table(folder, given.pictures, 1, 12, 40)
        setup = prepared(folder, given.epochs)
        never = dataclasses.replace(setup.options, checkpoint_minutes=0.0)
        train(dataclasses.replace(setup, options=never), folder / "whole", folder / "cache", 0)
        killed = train(setup, folder / "killed", folder / "cache", given.kills)
        wrong = differences(folder / "killed", folder / "whole")
    print({kind: killed.count(kind) for kind in KINDS}, "; ".join(wrong) or "no difference")


if __name__ == "__main__":
    main()
