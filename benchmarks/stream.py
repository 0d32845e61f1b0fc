"""Streamed training data beside unpacked data.

python benchmarks/stream.py [--rows 6000 60000 600000]      memory and reading, grids of 12 numbers
python benchmarks/stream.py --speed [--pictures 2000]       training steps, grids of 49 x 1280

- memory: the most that a process holds for itself (RssAnon) in each of its steps, above what it
  held after its imports. Each part is a process of its own:
  driver: lists the source, joins captions with rows, counts words, unpacks the validation pictures
  leader: counts the n-grams of all captions, which only self-critical training needs
  worker: reads an epoch
  local: the same run on unpacked data, driver and worker in one process
- speed: captions per second of training steps. Both sides take turns in one process, medians over
  rounds; only the ratio counts. At least 0.9.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycap.captioners.trained import CaptionerPlan
from raycap.decoders import Recurrent
from raycap.device import choose_precision
from raycap.encoders import Pixels
from raycap.schema import features_schema, fit, tensor_column
from raycap.search import Greedy
from raycap.sources import Table
from raycap.storage import RunFolder
from raycap.training import Schedule, Train
from raycap.training.checkpoint import TrainState
from raycap.training.data import TrainingData, datasets_of, open_pictures
from raycap.training.dataset import read_ahead
from raycap.training.distributed import WorkerGroup
from raycap.training.network import Network
from raycap.training.row_groups import join_captions
from raycap.training.self_critical import document_frequencies
from raycap.training.setup import TrainingSetup, gather_setup
from raycap.training.step import Learner, Phase, train_step
from raycap.training.store import PictureTables, write_listing
from raycap.vocabulary import PAD, Vocabulary, VocabularyOptions

WORDS, REFERENCES, ROWS_OF_FILE = 2500, 5, 10_000


def write_table(folder: Path, pictures: int, positions: int, width: int, group: int) -> None:
    """A feature table and the list of its pictures with made-up captions, one picture of a hundred
    in the split dev."""
    chance = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(WORDS)])
    odds = 1 / np.arange(1, WORDS + 1)
    schema = features_schema(positions, width)
    (folder / "table").mkdir(parents=True)
    with (folder / "source.jsonl").open("w") as source:
        for start in range(0, pictures, ROWS_OF_FILE):
            count = min(ROWS_OF_FILE, pictures - start)
            keys = [f"{start + number:09}.jpg" for number in range(count)]
            grids = chance.standard_normal((count, positions, width), np.float32)
            grids = np.maximum(grids, 0).astype(np.float16)
            columns = {
                "key": keys,
                "grid": tensor_column(grids),
                "vector": tensor_column(grids.mean(1)),
                "status": ["success"] * count,
                "error_message": [""] * count,
            }
            file = folder / "table" / f"part-0001-{start // ROWS_OF_FILE:06}.parquet"
            rows = fit(pa.table(columns), schema)
            pq.write_table(rows, file, compression="zstd", row_group_size=group)
            lengths = chance.integers(6, 16, (count, REFERENCES))
            drawn = chance.choice(words, int(lengths.sum()), p=odds / odds.sum())
            said = iter(np.split(drawn, np.cumsum(lengths.ravel())[:-1]))
            for number, key in enumerate(keys):
                row = {
                    "path": key,
                    "split": "dev" if number % 100 == 0 else "train",
                    "references": [" ".join(next(said)) for _ in range(REFERENCES)],
                }
                source.write(json.dumps(row) + "\n")


def source_of(folder: Path) -> Table:
    path = str(folder / "source.jsonl")
    return Table(path, key_column="path", split_column="split", references=("references",))


@dataclass
class Watch:
    """The most memory in each step of a process, above its start, in KiB."""

    step: str = "start"
    most: dict[str, int] = field(default_factory=dict)

    def follow(self, ended: threading.Event) -> None:
        start = held()
        while not ended.wait(0.02):
            self.most[self.step] = max(self.most.get(self.step, 0), held() - start)


def options() -> Train:
    return Train(data="stream", window=2048)


def tables_of(folder: Path) -> PictureTables:
    listing, rows = folder / "listing.arrow", str(folder / "rows")
    return PictureTables((str(folder / "table"),), str(listing), rows=rows)


def streamed(folder: Path, vocabulary: Vocabulary) -> TrainingData:
    pictures = open_pictures(tables_of(folder), options(), folder / "cache")
    return datasets_of(pictures, options(), vocabulary)[0]


def known_words() -> Vocabulary:
    words = [f"word{number}" for number in range(WORDS)]
    return Vocabulary.build(words, VocabularyOptions(min_count=1))


def drive(folder: Path, watch: Watch) -> None:
    """What the driver of a streamed run does before it starts workers."""
    tables = tables_of(folder)
    watch.step = "list"
    write_listing(source_of(folder), Path(tables.listing))
    watch.step = "join"
    join_captions(tables.tables[0], Path(tables.listing), RunFolder(tables.rows), options())
    watch.step = "words"
    setup = gathered(tables)
    watch.step = "unpack"
    streamed(folder, setup.vocabulary)


def gathered(tables: PictureTables) -> TrainingSetup:
    encoder = Pixels(size=8, patch=8, frequencies=2)
    plan = CaptionerPlan(encoder, Recurrent(hidden_width=8, embedding_width=8), search=Greedy())
    plan_words = VocabularyOptions(min_count=1)
    return gather_setup(plan, plan_words, options(), encoder.build(), tables, None)


def lead(folder: Path, watch: Watch) -> None:
    """What the leader of the workers does before self-critical training."""
    training = streamed(folder, known_words())
    watch.step = "n-grams"
    document_frequencies(RunFolder(str(folder / "run")), training)


def work(folder: Path, watch: Watch) -> None:
    """What a worker does in an epoch, without the network."""
    read_epoch(streamed(folder, known_words()), watch)


def train_locally(folder: Path, watch: Watch) -> None:
    """What a run on unpacked data does, without the network; the pictures are listed already."""
    tables = dataclasses.replace(tables_of(folder), rows="")
    watch.step = "words"
    setup = gathered(tables)
    watch.step = "unpack"
    pictures = open_pictures(tables, Train(), folder / "cache")
    training, _ = datasets_of(pictures, Train(), setup.vocabulary)
    read_epoch(training, watch)


def read_epoch(training: TrainingData, watch: Watch) -> None:
    watch.step = "epoch"
    seen = 0
    for batch in read_ahead(training.shares(0, 0, 32, 0, 1), training.batch):
        seen += len(batch.rows)
    assert seen == len(training)
    training.close()


def held() -> int:
    """RssAnon of this process in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "RssAnon" in line))


def measured(part: str, folder: Path) -> None:
    """Do a part, and print the most memory of each step in MiB, seconds, and processor seconds."""
    watch, ended = Watch(), threading.Event()
    watcher = threading.Thread(target=watch.follow, args=(ended,), daemon=True)
    watcher.start()
    began, used = time.monotonic(), time.process_time()
    PARTS[part](folder, watch)
    seconds, processor = time.monotonic() - began, time.process_time() - used
    ended.set()
    watcher.join()
    most = {step: round(kib / 1024) for step, kib in watch.most.items() if step != "start"}
    print(json.dumps({"MiB": most, "seconds": round(seconds), "processor": round(processor)}))


PARTS = {"driver": drive, "leader": lead, "worker": work, "local": train_locally}


def memory(rows: list[int]) -> None:
    for count in rows:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_table(folder, count, 1, 12, 80)
            for part in PARTS:
                command = [sys.executable, __file__, "--part", part, "--folder", scratch]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{count:>8,} pictures, {part}: {done.stdout.strip()}", flush=True)


def steps_of(data: TrainingData, positions: int, width: int) -> Iterator[int]:
    """Training steps without end; each gives its captions."""
    torch.manual_seed(0)
    decoder = Recurrent(hidden_width=256, embedding_width=256, attention_width=128)
    network = Network(decoder.build(len(data.vocabulary), positions, width), None).train()
    phase = Phase("cross_entropy", 1000, 5e-4, Schedule())
    steps = data.steps_per_epoch(32)
    precision = choose_precision("cpu", "fp32")
    learner = Learner(network, Train(), phase, steps, None, precision, WorkerGroup())
    for epoch in itertools.count():
        state = TrainState(epoch=epoch, epochs_done=epoch)
        shares = data.shares(epoch, 0, 32, 0, 1)
        for parts in read_ahead(shares, lambda share: [data.batch(share)]):
            train_step(learner, parts, state, 0.0)
            state.step, state.step_of_epoch = state.step + 1, state.step_of_epoch + 1
            yield sum(int((part.words[..., 1] != PAD).sum()) for part in parts)


def speed(pictures: int, rounds: int, steps: int) -> None:
    positions, width = 49, 1280
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_table(folder, pictures, positions, width, 128)
        listing, rows = folder / "listing.arrow", RunFolder(str(folder / "rows"))
        write_listing(source_of(folder), listing)
        join_captions(str(folder / "table"), listing, rows, Train())
        vocabulary = known_words()
        sides = {}
        for name, own in (("local", ""), ("streamed", str(rows))):
            tables = PictureTables((str(folder / "table"),), str(listing), rows=own)
            store = open_pictures(tables, Train(), folder / "cache")
            data, _ = datasets_of(store, Train(), vocabulary)
            sides[name] = steps_of(data, positions, width)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():  # the first steps of each epoch wait for the first blocks
            for _ in itertools.islice(side, 3):
                pass
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.process_time()
                captions = sum(itertools.islice(side, steps))
                rates[name].append(captions / (time.process_time() - start))
        medians = {name: statistics.median(own) for name, own in rates.items()}
        for name, rate in medians.items():
            print(f"{name}: {rate:,.0f} captions per second of the processor")
        print(f"streamed / local: {medians['streamed'] / medians['local']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[6_000, 60_000, 600_000])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--part", default="")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part:
        measured(given.part, given.folder)
    elif given.speed:
        speed(given.pictures, given.rounds, given.steps)
    else:
        memory(given.rows)


if __name__ == "__main__":
    main()
