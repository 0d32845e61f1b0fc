"""Pictures per second of the batched beam search, on processors and as devices search, against the
plain one of the tests, one picture at a time; how many operators each launches, and how often the
host waits for a result. With photos: how long the built-in captioner takes for one.

    python benchmarks/search.py [--batch 64] [--width 3] [--rounds 5] [--threads 2]
    python benchmarks/search.py --photos FOLDER [--batch 16] [--rounds 5] [--threads 1]

LSTM with attention, hidden 512, 8,000 words, grids 49 x 2048, random weights, float32, captions of
7 to 20 words. All search the same memory and must say the same captions. They take turns in one
run; figures are medians, and at least 8 times is wanted of the batched one. The plain search asks
the decoder about one caption at a time. The search for devices is made for GPUs: on a processor it
shows that it does the same, and its counts are those of a GPU without a graph.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from json_figures import add_json, write_figures
from PIL import Image

from raycap.captioners.trained.captioner import TrainedCaptioner
from raycap.captioners.trained.consensus import find_candidates
from raycap.decoders import Recurrent
from raycap.decoders.decoder import Decoder, Tensors
from raycap.search import Beam, Hypothesis
from raycap.search.beam import beam_search
from raycap.search.device import device_search
from raycap.vocabulary import END

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from slow_search import slow_beam  # type: ignore[import-not-found]

Captions = list[list[Hypothesis]]
# What the host waits for on a device. On a processor they cost nothing.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")


def model(batch: int) -> tuple[Decoder, Tensors]:
    """A decoder whose captions depend on the picture and end at different times, and pictures for
    it."""
    torch.manual_seed(0)
    decoder = Recurrent().build(8_000, 49, 2_048).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        decoder.vocabulary_bias[END] += 1.5
        grid = torch.randn(batch, 49, 2_048)
        return decoder, decoder.prepare(grid, grid.mean(1))


def one_by_one(beam: Beam, decoder: Decoder, memory: Tensors, batch: int) -> Captions:
    return [
        slow_beam(beam, decoder, {name: part[b : b + 1] for name, part in memory.items()})
        for b in range(batch)
    ]


def launches(search: Callable[[], object]) -> tuple[int, int]:
    """How many operators a search calls that no other one calls for it, and how often a device
    would make the host wait."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        search()
    events = [event for event in profile.events() or () if event.name.startswith("aten::")]
    outer = sum(event.cpu_parent is None for event in events)
    return outer, sum(event.name in WAITS for event in events)


def compare(batch: int, width: int, rounds: int, threads: int) -> dict[str, float]:
    """How many times as fast as the plain search the batched one is."""
    decoder, memory = model(batch)
    beam = Beam(width=width, min_length=7)
    sides: dict[str, Callable[[], Captions]] = {
        "plain": lambda: one_by_one(beam, decoder, memory, batch),
        "batched": lambda: beam_search(beam, decoder, memory, attention=False).hypotheses(),
        "device": lambda: device_search(beam, decoder, memory, attention=False).hypotheses(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, Captions] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            said[name] = side()
            seconds[name].append(time.perf_counter() - start)

    words = statistics.mean(len(hypotheses[0].words) for hypotheses in said["batched"])
    print(f"batch {batch}, width {width}, {threads} threads, {words:.1f} words on average")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        same = sum(
            one[0].words == plain[0].words
            for one, plain in zip(said[name], said["plain"], strict=True)
        )
        print(
            f"{name:8} {batch / median:8.1f} pictures/s   {medians['plain'] / median:6.2f} x plain"
            f"   the same captions: {same} of {batch}"
        )
    for name in ("batched", "device"):
        calls, waits = launches(sides[name])
        print(f"{name:8} {calls:6} operators in a batch, {waits} of them make the host wait")
    return {"ratio": medians["plain"] / medians["batched"]}


def built_in(photos: Path, batch: int, rounds: int, threads: int) -> None:
    """Processor time of the built-in captioner for each picture: of its encoder, of its search."""
    captioner = TrainedCaptioner.read(device="cpu", precision="fp32", batch=batch)
    search, neighbours = captioner.plan.search, captioner.neighbours
    assert isinstance(search, Beam) and neighbours is not None
    files = sorted(photos.glob("*.jpg"))[: 4 * batch]
    files = files[: len(files) // batch * batch]
    size = captioner.encoder.preprocessing.size
    squares = [Image.open(file).convert("RGB").resize((size, size)) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    names = ("encode", "read the grid", "similar photos", "search")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        spent = dict.fromkeys(names, 0.0)
        for some in pixels.permute(0, 3, 1, 2).split(batch):  # type: ignore[no-untyped-call]
            clock = [time.process_time()]
            with torch.inference_mode():
                features = captioner._features(some, mirror=False)
                clock.append(time.process_time())
                memory = captioner._decode.prepare(*features)
                clock.append(time.process_time())
                rows, likeness = neighbours.nearest(features.vector.numpy())
                bonus = neighbours.word_bonus(rows, likeness, len(captioner.vocabulary))
                clock.append(time.process_time())
                find_candidates(search, captioner._decode, memory, [0] * batch, word_bonus=bonus)
                clock.append(time.process_time())
            for name, start, end in zip(names, clock, clock[1:], strict=False):
                spent[name] += end - start
        for name, value in spent.items():
            times[name].append(1000 * value / len(files))
    print(f"built-in captioner, {len(files)} photos, batches of {batch}, {threads} threads")
    for name, values in times.items():
        print(f"{name:16} {statistics.median(values[1:]):6.2f} ms of a processor for a picture")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("batch", 0),
        ("width", 3),
        ("rounds", 5),
        ("threads", torch.get_num_threads()),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--photos", type=Path)
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.photos:
        built_in(given.photos, given.batch or 16, given.rounds, given.threads)
    else:
        figures = compare(given.batch or 64, given.width, given.rounds, given.threads)
        write_figures(given, figures)


if __name__ == "__main__":
    main()
