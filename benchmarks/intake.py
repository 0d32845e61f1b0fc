"""How fast pictures become the pixels that a model wants: decode workers against the model's own
processor.

    python benchmarks/intake.py [--photos FOLDER]

From the bytes of a JPEG to uint8 pixels on the model's grid. The other side is Pillow's decoder
and the resize of the Hugging Face image processor, as transformers does it; normalising, which
both need, is left out. One thread each. Ratios are medians of three rounds.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from json_figures import add_json, write_figures
from PIL import Image, ImageOps
from transformers import BlipImageProcessor, Idefics3ImageProcessor, Qwen2VLImageProcessor

from raycap.captioners.huggingface.intakes import intake_of
from raycap.images import Intake, Reading, read_picture

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("RAYCAP_DATA", "/nowhere")) / "flickr8k-original"
    parser.add_argument("--photos", type=Path, default=shared, help="the first JPEG is used")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photo = a_photo(given.photos)
    files = {
        "500x375": as_jpeg(photo.resize((500, 375))),
        "12 MP": as_jpeg(photo.resize((4000, 3000), Image.Resampling.BICUBIC)),
    }
    processors = {
        "Qwen2-VL": Qwen2VLImageProcessor(
            size={"shortest_edge": 3136, "longest_edge": 1280 * 28 * 28}
        ),
        "SmolVLM": Idefics3ImageProcessor(
            size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
        ),
        "BLIP": BlipImageProcessor(size={"height": 384, "width": 384}),
    }
    figures: dict[str, float] = {}
    print(f"{'model':10} {'file':9} {'ours':>9} {'theirs':>9} {'ratio':>7}  {'distance':>8}")
    for name, processor in processors.items():
        intake, _ = intake_of(processor, 0)
        for size, data in files.items():
            ratios, ours, theirs = [], 0.0, 0.0
            for _ in range(ROUNDS):
                ours = seconds(lambda: our_pixels(data, intake), given.seconds)  # noqa: B023
                theirs = seconds(lambda: their_pixels(data, processor), given.seconds)  # noqa: B023
                ratios.append(theirs / ours)
            mine = our_pixels(data, intake).astype(int)
            other = their_pixels(data, processor)
            assert mine.shape == other.shape, "the same grid"
            distance = np.abs(mine - other).mean()
            print(
                f"{name:10} {size:9} {ours * 1e3:6.1f} ms {theirs * 1e3:6.1f} ms "
                f"{statistics.median(ratios):6.2f}x  {distance:8.2f}"
            )
            short = "small" if size == "500x375" else "large"
            figures[f"{name.lower().replace('-', '_')}_{short}"] = statistics.median(ratios)
    write_figures(given, figures)


def our_pixels(data: bytes, intake: Intake) -> np.ndarray:
    pixels = read_picture(data, Reading(), intake).pixels
    assert pixels is not None
    return pixels


def their_pixels(data: bytes, processor: Any) -> np.ndarray:
    """As transformers: open, turn upright, RGB, tensor, resize."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    tensor = processor.process_image(picture, do_convert_rgb=True)[None]
    size, how = processor.size, {"resample": processor.resample}
    if isinstance(processor, Qwen2VLImageProcessor):
        made = processor.resize(tensor, size, factor=28, **how)
    elif isinstance(processor, Idefics3ImageProcessor):
        longest = processor.resize(tensor, size, **how)
        made = processor.resize_for_vision_encoder(longest, 512, **how)
    else:
        made = processor.resize(tensor, size, **how)
    return np.asarray(made[0].permute(1, 2, 0))


def seconds(work: Callable[[], object], measured: float) -> float:
    """The median of single runs in processor time, which other programs disturb little."""
    work()
    taken: list[float] = []
    end = time.monotonic() + measured
    while time.monotonic() < end or len(taken) < 3:
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


def a_photo(folder: Path) -> Image.Image:
    """The first photo of the folder, or waves where there is none."""
    for path in sorted(folder.glob("*.jpg")):
        return Image.open(path).convert("RGB")
    across, down = np.meshgrid(np.linspace(0, 40, 1000), np.linspace(0, 30, 750))
    waves = [np.sin(across * k) * np.cos(down * (4 - k)) for k in (1, 2, 3)]
    return Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8))


def as_jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
