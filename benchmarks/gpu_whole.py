"""The sections of `gpu.py` about whole jobs: from JPEG bytes to rows, and decoding."""

import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gpu_model import make_captioner
from gpu_tools import BusyMeter, Report, Setting, rate
from PIL import Image

from raycap.captioners.trained.device_jpegs import decode_jpegs
from raycap.images import Picture, Reading, Square, SquareOrJpeg, read_picture

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
SIZE = (500, 375)


def made_photos(count: int) -> list[bytes]:
    """JPEGs of 500x375, cut from the photos in samples/."""
    photos = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    found = []
    for number in range(count):
        photo, chance = photos[number % len(photos)], np.random.default_rng(number)
        share = chance.uniform(0.6, 1.0)
        wide, high = (max(1, int(side * share)) for side in photo.size)
        left = int(chance.integers(0, photo.width - wide + 1))
        top = int(chance.integers(0, photo.height - high + 1))
        part = photo.crop((left, top, left + wide, top + high)).resize(SIZE)
        file = io.BytesIO()
        part.save(file, "jpeg", quality=90)
        found.append(file.getvalue())
    return found


def jobs(report: Report, setting: Setting) -> None:
    """`raycap caption` from files to rows: two sizes, so that what happens once drops out."""
    model = setting.path / "captioner"
    make_captioner(model, setting.short)
    photos = made_photos(8 if setting.short else 240)
    few, many = (4, 8) if setting.short else (4_000, 40_000)
    for name, flags in (("", ()), (", JPEGs on the device", ("--jpegs-on-device",))):
        if setting.short and flags:
            continue  # the test of the option runs it
        with report.part(f"job{name}"):
            seconds = []
            for rows in (few, many):
                source = setting.path / f"photos-{rows}"
                if not source.exists():
                    link_photos(source, photos, rows)
                out = setting.path / f"out-{rows}{len(flags)}"
                with BusyMeter() as meter:
                    seconds.append(caption(source, model, out, flags, setting))
            report.add(f"job{name}: {many:,} photos in all", many / seconds[1], "pictures/s")
            steady = (many - few) / max(1e-9, seconds[1] - seconds[0])
            if not setting.short:
                report.add(f"job{name}: without what happens once", steady, "pictures/s")
            share = meter.share()
            reason = meter.reason or "nvidia-smi said nothing"
            report.add(f"job{name}: GPU busy", reason if share is None else share, "share")
            identity = json.loads((out / "run.json").read_text())["identity"]
            report.add(f"job{name}: batch", identity.get("batch", 64), "pictures")


def link_photos(folder: Path, photos: Sequence[bytes], rows: int) -> None:
    """A folder with so many names of the photos."""
    folder.mkdir(parents=True)
    for number in range(min(rows, len(photos))):
        (folder / f"{number:06d}.jpg").write_bytes(photos[number])
    for number in range(len(photos), rows):
        os.link(folder / f"{number % len(photos):06d}.jpg", folder / f"{number:06d}.jpg")


def caption(source: Path, model: Path, out: Path, flags: Sequence[str], setting: Setting) -> float:
    """Seconds of the command, in this process."""
    from raycap.cli import main

    job = ["caption", str(source), "--model", str(model), "--out", str(out), *flags]
    if setting.short:
        job += ["--batch", "4"]
    else:
        job += ["--cluster.local-rows", "0"]  # on Ray, also the small one
    start = time.perf_counter()
    status = main(job)
    if status != 0:
        raise RuntimeError(f"raycap caption ended with {status}")
    return time.perf_counter() - start


def decode(report: Report, setting: Setting) -> None:
    """JPEG bytes of 500x375 to 224x224: by processors with the reader's checks, and by the
    device."""
    photos = made_photos(4 if setting.short else 256)
    count = os.cpu_count() or 1
    start = time.perf_counter()
    one = read_all(photos)
    report.add("decode: one processor", one / (time.perf_counter() - start), "pictures/s")
    if not setting.short:
        with report.part("decode: all processors"), ProcessPoolExecutor(count) as pool:
            list(pool.map(read_all, [photos[:1]] * count))  # start them
            start = time.perf_counter()
            done = sum(pool.map(read_all, [photos] * (4 * count)))
            value = done / (time.perf_counter() - start)
            report.add(f"decode: {count} processors", value, "pictures/s")
    with report.part("decode: device"):
        files = [np.frombuffer(data, np.uint8) for data in photos]
        kept = [read_picture(data, Reading(), SquareOrJpeg(224)).pixels for data in photos]
        plain = sum(each is not None and each.ndim == 1 for each in kept)
        report.add("decode: share that the device may decode", plain / len(photos), "share")
        for batch in (4,) if setting.short else (64, 256):
            some = files[:batch]
            value = rate(
                lambda: decode_jpegs(some, Reading(), Square(224), setting.device),  # noqa: B023
                batch,
                setting.seconds,
            )
            report.add(f"decode: {setting.device}, batch {batch}", value, "pictures/s")
        found = decode_jpegs(files, Reading(), Square(224), setting.device)
        report.add("decode: least PSNR to the reader's pixels", likeness(found, photos), "dB")


def read_all(photos: Sequence[bytes]) -> int:
    pictures = [read_picture(data, Reading(), Square(224)) for data in photos]
    assert all(picture.pixels is not None for picture in pictures)
    return len(pictures)


def likeness(found: Sequence[torch.Tensor | Picture], photos: Sequence[bytes]) -> float:
    decibels = []
    for each, data in zip(found, photos, strict=True):
        wanted = read_picture(data, Reading(), Square(224)).pixels
        if isinstance(each, Picture) or wanted is None:
            raise RuntimeError("a photo was not decoded on the device")
        error = float(np.mean((each.cpu().numpy().astype(float) - wanted.astype(float)) ** 2))
        decibels.append(99.0 if not error else 10 * float(np.log10(255**2 / error)))
    return min(decibels)
