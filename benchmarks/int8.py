"""Processor time of a captioner's encoder, and of captioning photo files, in fp32, bf16 and int8.

    python benchmarks/int8.py --photos FOLDER [--captioner FOLDER] [--number 256] [--rounds 3]
        [--threads 1]

The precisions take turns, round by round, in one process; the figures are medians. How much
the captions differ in quality, `raycap evaluate` says: `--caption.precision int8`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from raycap.captioners.trained.captioner import TrainedCaptioner
from raycap.device import PrecisionName
from raycap.shipped import NAME

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "bf16", "int8")
BATCH = 16
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--captioner", default=NAME)
    parser.add_argument("--encoder-weights", default="")
    for name, default in (("number", 256), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    captioners = {
        name: TrainedCaptioner.read(given.captioner, "cpu", name, given.encoder_weights, BATCH)
        for name in PRECISIONS
    }
    files = sorted(given.photos.glob("*.jpg"))[: given.number]
    loaded = captioners["fp32"].load_pictures(files)
    squares = [one.pixels for one in loaded if one.pixels is not None]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    encode: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    caption: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    said, seen = {}, {}
    for turn in range(given.rounds + 1):  # the first one warms up
        for name, captioner in captioners.items():
            spent, seen[name] = _timed(partial(_encoded, captioner, pixels))
            encode[name] += [spent / len(squares)] * (turn > 0)
            spent, said[name] = _timed(partial(captioner.caption, files))
            caption[name] += [spent / len(files)] * (turn > 0)

    print(f"{len(files)} photos, batches of {BATCH}, {given.threads} threads")
    for name in PRECISIONS:
        likeness = cosine_similarity(seen[name].flatten(1), seen["fp32"].flatten(1))
        same = sum(
            one.caption == other.caption
            for one, other in zip(said[name], said["fp32"], strict=True)
        )
        print(
            f"{name}: {_figures(encode[name])} ms to encode a picture, {_figures(caption[name])} "
            f"ms to read and caption it; cosine of its grid {likeness.mean():.4f}, "
            f"{same} captions as in fp32"
        )


def _encoded(captioner: TrainedCaptioner, pixels: torch.Tensor) -> torch.Tensor:
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    with torch.inference_mode():
        return torch.cat([captioner._features(batch, mirror=False).grid for batch in batches])


def _timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = function()
    return 1000 * (time.process_time() - start), result


def _figures(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


if __name__ == "__main__":
    main()
