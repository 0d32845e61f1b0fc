"""Bytes to 224x224 RGB, raycap beside plain Pillow and other decoders: pictures a second on one
core, and likeness.

    python benchmarks/decode.py [--rounds 9] [--photos FOLDER]

Real photos come from a folder, by default flickr8k-original in RAYCAP_DATA, else they are made.
All decoders take turns on the same pictures in each round; times are medians over rounds and
pictures.
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from json_figures import add_json, write_figures
from PIL import Image

from raycap.images import Reading, Square, read_picture
from raycap.images.pixels import scale_to

SIDE = 224
Decode = Callable[[bytes], np.ndarray]


def plain_pillow(data: bytes, side: int = SIDE) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB").resize((side, side)))


def raycap(data: bytes, side: int = SIDE) -> np.ndarray:
    picture = read_picture(data, Reading(), Square(size=side))
    assert picture.pixels is not None, picture.error
    return picture.pixels


def pillow_draft(data: bytes) -> np.ndarray:
    picture = Image.open(BytesIO(data))
    picture.draft("RGB", (SIDE, SIDE))
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))


def simplejpeg(data: bytes) -> np.ndarray:
    decode = importlib.import_module("simplejpeg").decode_jpeg
    return np.asarray(
        Image.fromarray(decode(data, "RGB", min_height=SIDE, min_width=SIDE)).resize((SIDE, SIDE))
    )


def simplejpeg_with_our_resize(data: bytes) -> np.ndarray:
    decode, enough = importlib.import_module("simplejpeg").decode_jpeg, SIDE * 3 // 2
    picture = Image.fromarray(decode(data, "RGB", min_height=enough, min_width=enough))
    return np.asarray(scale_to(picture, (SIDE, SIDE), (0, 0, *picture.size), "bicubic"))


def with_torch(module: str) -> Decode:
    """Decode with torchvision.io or torchcodec.decoders and resize with torchvision, on one
    thread."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)
    decode_jpeg = importlib.import_module(module).decode_jpeg

    def decode(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # [3, S, S]
        square = resize(
            decode_jpeg(encoded), [SIDE, SIDE], InterpolationMode.BICUBIC, antialias=True
        )
        return np.asarray(square.permute(1, 2, 0))

    return decode


def decoders() -> dict[str, Decode]:
    """Plain Pillow first, then whatever is installed."""
    found: dict[str, Decode] = {
        "plain Pillow": plain_pillow,
        "raycap": raycap,
        "Pillow draft": pillow_draft,
    }
    if importlib.util.find_spec("simplejpeg"):
        found |= {"simplejpeg": simplejpeg, "simplejpeg + our resize": simplejpeg_with_our_resize}
    for module in ("torchvision.io", "torchcodec.decoders"):
        if importlib.util.find_spec(module.split(".")[0]):
            found[module] = with_torch(module)
    return found


def photos(folder: Path) -> list[bytes]:
    """Photos of about 500x375 without a colour profile: plain Pillow ignores those, so outputs
    would differ."""
    if folder.is_dir():
        pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        return [data for data in pictures if "icc_profile" not in Image.open(BytesIO(data)).info][
            :16
        ]
    print(
        f"no photos at {folder}: made pictures instead, whose decoding takes longer or shorter "
        "than that of photos"
    )
    return [as_jpeg(made(seed)) for seed in range(16)]


def made(seed: int) -> Image.Image:
    """Blobs of all sizes, the small ones fainter, as in photos."""
    chance = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(chance.integers(0, 256, (3 * n, 4 * n, 3), dtype=np.uint8)).resize(
                (500, 375)
            )
        )
        for n in (1, 4, 16, 64)
    ]
    return Image.fromarray(np.average(layers, 0, [8, 4, 2, 1]).astype(np.uint8))


def as_jpeg(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def enlarged(data: bytes, seed: int) -> bytes:
    """The photo at 12 megapixels, with the noise of a sensor."""
    picture = Image.open(BytesIO(data)).convert("RGB").resize((4000, 3000))
    noise = np.random.default_rng(seed).normal(0, 4, (3000, 4000, 3))
    return as_jpeg(Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)))


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR: 48 is an error of one level, 30 is hard to see."""
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def compare(title: str, pictures: list[bytes], rounds: int) -> tuple[float, float]:
    """How many times as fast as plain Pillow raycap is, and its least likeness."""
    candidates = decoders()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    likeness = {
        name: [decibels(decode(data), plain_pillow(data)) for data in pictures]  # also warms up
        for name, decode in candidates.items()
    }
    for _ in range(rounds):
        for data in pictures:
            for name, decode in candidates.items():
                start = time.perf_counter()
                decode(data)
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain Pillow"])
    size = statistics.median(len(data) for data in pictures) / 1000
    print(f"\n{title}: {len(pictures)} pictures of {size:.0f} kB, {rounds} rounds")
    print(f"{'':24}{'a second':>10}{'ratio':>8}   PSNR to plain Pillow, least and median")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        alike = f"{min(likeness[name]):.1f} {statistics.median(likeness[name]):.1f} dB"
        print(
            f"{name:24}{1 / middle:10.0f}{plain / middle:7.2f}x   "
            f"{alike if name != 'plain Pillow' else ''}"
        )
    return plain / statistics.median(seconds["raycap"]), min(likeness["raycap"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    shared = Path(os.environ.get("RAYCAP_DATA", "/nowhere")) / "flickr8k-original"
    parser.add_argument("--photos", type=Path, default=shared)
    add_json(parser)
    given = parser.parse_args()
    small = photos(given.photos)
    large = [enlarged(data, seed) for seed, data in enumerate(small[:3])]
    small_ratio, small_psnr = compare("500x375", small, given.rounds)
    large_ratio, large_psnr = compare("12 megapixels", large, given.rounds)
    # Enlarged photos have no fine detail, which flatters decoding at a fraction. Real ones at 1/18
    # do.
    sharp = [decibels(raycap(data, 28), plain_pillow(data, 28)) for data in small]
    print(
        f"\nphotos sharp to the pixel, at the ratio of 12 megapixels to {SIDE} (500x375 to "
        "28x28), raycap:"
    )
    print(
        f"PSNR to plain Pillow, least and median: {min(sharp):.1f} {statistics.median(sharp):.1f} "
        "dB"
    )
    write_figures(
        given,
        {
            "small_ratio": small_ratio,
            "small_psnr": small_psnr,
            "large_ratio": large_ratio,
            "large_psnr": large_psnr,
        },
    )


if __name__ == "__main__":
    main()
