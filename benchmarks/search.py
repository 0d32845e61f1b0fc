"""Pictures per second of the batched beam search against the plain one of the tests, one picture
at a time.

    python benchmarks/search.py [--batch 64] [--width 3] [--rounds 5] [--threads 2]

LSTM with attention, hidden 512, 8,000 words, grids 49 x 2048, random weights, float32, captions of
7 to 20 words. Both search the same memory and must say the same captions. They take turns in one
run; figures are medians, and at least 8 times is wanted. The plain search asks the decoder about
one caption at a time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raycap.decoders import Recurrent
from raycap.decoders.decoder import Decoder, Tensors
from raycap.search import Beam, Hypothesis
from raycap.vocabulary import END

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from slow_search import slow_beam  # type: ignore[import-not-found]

Captions = list[list[Hypothesis]]


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("batch", 64),
        ("width", 3),
        ("rounds", 5),
        ("threads", torch.get_num_threads()),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    decoder, memory = model(given.batch)
    beam = Beam(width=given.width, min_length=7)
    sides: dict[str, Callable[[], Captions]] = {
        "plain": lambda: one_by_one(beam, decoder, memory, given.batch),
        "batched": lambda: beam.search(decoder, memory).hypotheses(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, Captions] = {}
    for _ in range(given.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            said[name] = side()
            seconds[name].append(time.perf_counter() - start)

    same = sum(
        fast[0].words == plain[0].words
        for fast, plain in zip(said["batched"], said["plain"], strict=True)
    )
    words = statistics.mean(len(hypotheses[0].words) for hypotheses in said["batched"])
    print(f"batch {given.batch}, width {given.width}, {given.threads} threads")
    print(f"the same captions: {same} of {given.batch}, {words:.1f} words each on average")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(
            f"{name:8} {given.batch / median:8.1f} pictures/s   {medians['plain'] / median:6.2f} "
            "x plain"
        )


if __name__ == "__main__":
    main()
