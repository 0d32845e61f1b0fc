"""Captions per second of training on features, against plain loops.

python benchmarks/train.py [--pictures 600] [--batch 32] [--steps 8] [--rounds 5] [--weights FILE
--photos DIR]

All figures are of one run in which the sides take turns, medians over rounds; the ratios are what
counts. Made-up captions as long as Flickr8k's, grids of 49 x 2048, the decoder of
configs/flickr8k.yaml.

- step: raycap's step (rows from the mapped file, padding, schedule, average) against a plain
  torch loop with the same model and optimiser, features in memory, padded captions. At least 0.95.
- workers: 2 processes with 1 thread each, by gloo, against 1 process with 2 threads. At least 0.9.
- tutorials: pictures read and encoded in every epoch, one caption per row with its own grid, in
  float32, against cached features; time per caption. At least 10 times. Needs --photos, and
  --weights of a ResNet-50 in He et al.'s layout.
- self-critical: the rewards' share of a step. At most 15%.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from json_figures import add_json, write_figures
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from raycap import config
from raycap.decoders.teacher_forcing import decoder_inputs
from raycap.device import choose_precision
from raycap.encoders import ResNet50
from raycap.images import Reading, read_picture
from raycap.metrics import DocumentFrequencies
from raycap.training import Objective, Optimiser, Schedule, SelfCritical, Train
from raycap.training.checkpoint import TrainState
from raycap.training.dataset import Batch, CaptionDataset, read_ahead
from raycap.training.distributed import WorkerGroup
from raycap.training.network import Network
from raycap.training.self_critical import CaptionReward
from raycap.training.step import Learner, Phase, train_step
from raycap.training.store import PictureStore
from raycap.vocabulary import PAD, Vocabulary, VocabularyOptions

POSITIONS, WIDTH, WORDS, REFERENCES = 49, 2048, 2500, 5
DECODER = config.load(str(Path(__file__).parents[1] / "configs" / "flickr8k.yaml")).decoder
OPTIONS = Train(objective=Objective(label_smoothing=0.0), optimiser=Optimiser(averaging=0.999))


def made_up(pictures: int, file: Path) -> PictureStore:
    """Features in a mapped file, and captions of made-up words, as often used as words are."""
    chance = np.random.default_rng(0)
    rows = np.memmap(file, np.float16, mode="w+", shape=(pictures, POSITIONS + 1, WIDTH))
    for row in rows:
        row[:] = np.maximum(chance.standard_normal(row.shape, np.float32), 0)
    words = [f"word{number}" for number in range(WORDS)]
    odds = 1 / np.arange(1, WORDS + 1)
    lengths = np.clip(chance.normal(10.8, 3.9, (pictures, REFERENCES)).round(), 3, 30).astype(int)
    said = [
        [" ".join(chance.choice(words, length, p=odds / odds.sum())) for length in own]
        for own in lengths
    ]
    keys = [str(number) for number in range(pictures)]
    return PictureStore(
        rows, pa.table({"key": keys, "split": ["train"] * pictures, "references": said})
    )


@dataclass
class Side:
    """One way to train: a network, and steps without end."""

    steps: Iterator[int]  # each trains one step and gives its captions

    def seconds_per_caption(self, steps: int) -> float:
        start, captions = time.perf_counter(), 0
        for captions_of_step in itertools.islice(self.steps, steps):
            captions += captions_of_step
        return (time.perf_counter() - start) / captions


def network(width: int = WIDTH) -> Network:
    torch.manual_seed(0)
    return Network(DECODER.build(WORDS + 4, POSITIONS, width), None).train()


def ours(
    dataset: CaptionDataset, batch: int, group: WorkerGroup, reward: CaptionReward | None = None
) -> Iterator[int]:
    """raycap's steps, as a run makes them."""
    phase = Phase("self_critical" if reward else "cross_entropy", 1000, 5e-4, Schedule())
    steps, precision = dataset.steps_per_epoch(batch), choose_precision("cpu")
    learner = Learner(network(), OPTIONS, phase, steps, reward, precision, group)
    for epoch in itertools.count():
        state = TrainState(epoch=epoch, epochs_done=epoch)
        shares = dataset.shares(epoch, 0, batch, group.rank, group.size)
        for parts in read_ahead(shares, lambda share: [dataset.batch(share)]):
            train_step(learner, parts, state, 0.0)
            state.step, state.step_of_epoch = state.step + 1, state.step_of_epoch + 1
            group.any([False, False], precision.device)
            yield sum(int((part.words[..., 1] != PAD).sum()) for part in parts) * group.size


def plain(dataset: CaptionDataset, batch: int) -> Iterator[int]:
    """The best loop that one writes by hand: everything in memory, nothing counted."""
    whole: Batch = dataset.batch(dataset.rows)
    features = whole.pictures.clone()
    net, precision = network(), choose_precision("cpu")
    optimiser = torch.optim.AdamW(net.parameters(), 5e-4, fused=True)
    while True:
        for rows in torch.split(torch.randperm(len(features)), batch):
            words = whole.words[rows]
            words = words[..., : int((words != PAD).any(0).any(0).sum())]
            true = words[..., 1:] != PAD
            with precision.autocast():
                outputs, _ = net.decoder.unroll(net.prepare(features[rows]), decoder_inputs(words))
                loss = functional.cross_entropy(
                    net.decoder.logits(outputs[true]), words[..., 1:][true]
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            yield len(rows) * REFERENCES


def tutorials(
    photos: list[Path], encoder: Any, dataset: CaptionDataset, captions: int = 32
) -> Iterator[int]:
    """Read, encode, and learn one caption of each picture, whose grid comes again for each of its
    captions; all in float32, as tutorials have it."""
    net = network()
    optimiser = torch.optim.AdamW(net.parameters(), 5e-4, fused=True)
    for turn in itertools.count():
        chosen = [photos[(turn * captions + number) % len(photos)] for number in range(captions)]
        pixels = [
            read_picture(path.read_bytes(), Reading(), encoder.preprocessing).pixels
            for path in chosen
        ]
        with torch.inference_mode():
            grid, vector = encoder(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))  # type: ignore[arg-type]
        places = np.arange(turn * captions, (turn + 1) * captions) % len(dataset)
        words = dataset.batch(places).words[:, :1]  # [B, 1, T + 1]
        true = words[..., 1:] != PAD
        outputs, _ = net.decoder.unroll(
            net.decoder.prepare(grid.clone(), vector.clone()), decoder_inputs(words)
        )
        loss = functional.cross_entropy(net.decoder.logits(outputs[true]), words[..., 1:][true])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        yield captions


def one_of_two(
    rank: int, size: int, port: int, store: PictureStore, batch: int, steps: int, answers: Any
) -> None:
    """A process of the comparison of workers: `size` together use two threads."""
    torch.set_num_threads(2 // size)
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", address, rank=rank, world_size=size)
    side = Side(ours(_dataset(store), batch, WorkerGroup()))
    side.seconds_per_caption(2)
    seconds = side.seconds_per_caption(steps)
    if rank == 0:
        answers.put(seconds)
    if size > 1:
        torch.distributed.destroy_process_group()


def in_processes(size: int, port: int, store: PictureStore, batch: int, steps: int) -> float:
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (size, port, store, batch, steps, answers)
    spawn(one_of_two, arguments, nprocs=size)  # type: ignore[no-untyped-call]
    return float(answers.get())


def _dataset(store: PictureStore) -> CaptionDataset:
    captions = [
        caption
        for references in store.captions["references"].to_pylist()
        for caption in references
    ]
    vocabulary = Vocabulary.build(captions, VocabularyOptions(min_count=1, max_size=WORDS))
    return CaptionDataset(store, store.rows_of("train"), vocabulary)


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side's figure."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seen[name].append(side())
    return {name: statistics.median(figures) for name, figures in seen.items()}


def rewards_share(dataset: CaptionDataset, batch: int, steps: int) -> tuple[float, float]:
    """The rewards' share of self-critical steps, and samples per second."""
    spent = [0.0]

    class TimedReward(CaptionReward):
        def __call__(self, captions: np.ndarray, words: np.ndarray) -> np.ndarray:
            start = time.perf_counter()
            rewards = super().__call__(captions, words)
            spent[0] += time.perf_counter() - start
            return rewards

    frequencies = DocumentFrequencies.counted(dataset.captions(row) for row in dataset.rows)
    side = ours(dataset, batch, WorkerGroup(), TimedReward(frequencies, SelfCritical(samples=5)))
    next(side)
    spent[0], start = 0.0, time.perf_counter()
    for _ in itertools.islice(side, steps):
        pass
    seconds = time.perf_counter() - start
    return spent[0] / seconds, steps * batch * 5 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "pictures": 600,
        "batch": 32,
        "steps": 8,
        "rounds": 5,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", default="")
    parser.add_argument("--photos", type=Path)
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(given.pictures, Path(folder) / "rows.bin")
        dataset = _dataset(store)
        mine, theirs = (
            Side(ours(dataset, given.batch, WorkerGroup())),
            Side(plain(dataset, given.batch)),
        )
        sides = {
            "plain loop in memory": lambda: theirs.seconds_per_caption(given.steps),
            "raycap": lambda: mine.seconds_per_caption(given.steps),
        }
        if given.photos:
            encoder = ResNet50(weights=given.weights, stride_in_1x1=True).build()
            slow = Side(tutorials(sorted(given.photos.glob("*.jpg"))[:500], encoder, dataset))
            sides["tutorials' way"] = lambda: slow.seconds_per_caption(2)
        in_turns(sides, 1)  # the first steps warm up
        seconds = in_turns(sides, given.rounds)
        for name, median in seconds.items():
            ratio = seconds["raycap"] / median
            print(f"{name:22} {1 / median:8.1f} captions/s   {ratio:6.3f} x raycap's")
        figures = {"loop_ratio": seconds["plain loop in memory"] / seconds["raycap"]}
        if given.photos:
            figures["tutorials_ratio"] = seconds["tutorials' way"] / seconds["raycap"]
        ports = itertools.count(29_500)

        def together(size: int) -> Callable[[], float]:
            return lambda: in_processes(size, next(ports), store, given.batch, given.steps)

        names = {f"{size} x {2 // size} threads": together(size) for size in (1, 2)}
        seconds = in_turns(names, max(1, given.rounds // 2))
        for name, median in seconds.items():
            print(
                f"{name:22} {1 / median:8.1f} captions/s   "
                f"{seconds['1 x 2 threads'] / median:6.3f} x one process"
            )
        figures["workers_ratio"] = seconds["1 x 2 threads"] / seconds["2 x 1 threads"]
        share, rate = rewards_share(dataset, given.batch, given.steps)
        print(f"self-critical: rewards take {share:.1%} of a step; {rate:.1f} samples/s")
    write_figures(given, figures)


if __name__ == "__main__":
    main()
