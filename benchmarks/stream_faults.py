"""Kill -9 the workers of a streamed training run, over and over, without Ray, which is quicker.

python benchmarks/stream_faults.py [--kills 20] [--pictures 600] [--epochs 4]

Two workers are forked from this process, and exchange gradients by gloo. In turn one of them is
killed, so that the other loses its partner in the middle of a step, or both at once, as when a
driver or a machine dies. Then both are started again, as Ray Train does (see `train_faults.py`).
Every other kill comes soon after a checkpoint; the others at any time after a start, also before
the first step of it.

In the end, all must be as without kills: see `differences` in `train_faults.py`.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
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

WORKERS = 2
SECONDS_TO_HANG = 300.0  # without a start or a checkpoint
SECONDS_AFTER_CHECKPOINT, SECONDS_AFTER_START = 0.3, 1.5
# What is killed, and whether soon after a start.
PLAN = tuple(itertools.product(("one worker", "both workers"), (False, True)))
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
    # A worker that is left alone complains: read only if it ends without a kill.
    os.dup2(os.open(_errors(out), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=WORKERS)
    pictures = open_pictures(setup.pictures, setup.options, cache)
    precision = choose_precision("cpu", "fp32")
    train_captioner(setup, pictures, RunFolder(str(out)), precision, WorkerGroup())


def _errors(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def start(setup: TrainingSetup, out: Path, cache: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        fork.Process(target=work, args=(rank, port, setup, out, cache), daemon=True)
        for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    return workers


def end(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def train(
    setup: TrainingSetup, out: Path, cache: Path, kills: int, plan: Iterator[tuple[str, bool]]
) -> list[str]:
    """Train to the end, and kill until the end or so many times. Returns what was killed."""
    killed: list[str] = []
    workers, began, is_killed = start(setup, out, cache), time.monotonic(), False
    before = seen = ""  # the newest checkpoint at the last kill, and at the last look
    kind, is_soon = next(plan)
    while not all(worker.exitcode == 0 for worker in workers):
        if any(worker.exitcode for worker in workers):
            if not is_killed:
                end(workers)
                raise SystemExit(f"a worker ended: {_errors(out).read_text()[-4000:]}")
            for worker in workers:  # the other one may wait for it
                worker.join(5)
            end(workers)
            workers, began, is_killed = start(setup, out, cache), time.monotonic(), False
        newest = newest_checkpoint(out)
        if newest > seen:
            seen, began = newest, time.monotonic()
        if len(killed) < kills and not is_killed and (is_soon or newest > before):
            most = SECONDS_AFTER_START if is_soon else SECONDS_AFTER_CHECKPOINT
            time.sleep(most * random.random())
            alive = [worker for worker in workers if worker.exitcode is None]
            wanted = 1 if kind == "one worker" else WORKERS
            chosen = random.sample(alive, wanted) if len(alive) == WORKERS else []
            steps = len(steps_of(out))
            for worker in chosen:
                worker.kill()
            if chosen:
                before, is_killed = newest_checkpoint(out), True
                again = steps - int(before.rpartition("-")[2] or 0)
                when = "after a start" if is_soon else "after a checkpoint"
                killed.append(kind)
                print(f"{kind} killed at step {steps} ({when}), {again} made again", flush=True)
                kind, is_soon = next(plan)
                time.sleep(0.1)
        if time.monotonic() - began > SECONDS_TO_HANG:
            end(workers)
            raise SystemExit(f"the run hangs: {_errors(out).read_text()[-4000:]}")
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
        whole = dataclasses.replace(setup, options=never)
        cache, plan = folder / "cache", itertools.cycle(PLAN)
        train(whole, folder / "whole", cache, 0, plan)
        killed: list[str] = []
        is_right = True
        for number in itertools.count():
            out = folder / f"run{number}"
            more = train(setup, out, cache, given.kills - len(killed), plan)
            if not more:
                raise SystemExit("a run ended before it was killed: give more --pictures")
            killed += more
            wrong = differences(out, folder / "whole")
            is_right = is_right and not wrong
            print(f"run {number}: {'; '.join(wrong) or 'no difference'}", flush=True)
            if len(killed) >= given.kills:
                break
    print({kind: killed.count(kind) for kind in dict(PLAN)})
    if not is_right:
        raise SystemExit("a run that was killed differs from the undisturbed one")


if __name__ == "__main__":
    main()
