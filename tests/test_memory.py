"""Peak memory of reading a picture, measured in processes of their own: bounded by what its format
states."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import jpeg, patched, saved, tiff_of
from PIL import Image

from raycap.images import Reading
from raycap.images.formats import READERS, picture_format
from raycap.images.picture_file import PictureLimits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")

Make = Callable[[int], bytes]
MIB = 2**20
# What a process has before it reads a picture, and what bands and records take beside the picture.
BESIDE = 40 * MIB

# Prints the peak of each file over what the process had before, and the reason where it could not
# be read.
MEASURE = """
import json, pathlib, sys, warnings
warnings.simplefilter("ignore")
from raycap.images import Reading, read_picture
def status(name):
    lines = pathlib.Path("/proc/self/status").read_text()
    return int(lines.partition(name + ":")[2].split()[0]) * 1024
read_picture(pathlib.Path(sys.argv[1]).read_bytes(), Reading())  # loads what is loaded once
for path in sys.argv[2:]:
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    picture = read_picture(pathlib.Path(path).read_bytes(), Reading())
    print(json.dumps([path, status("VmHWM") - before, status("VmHWM"), picture.error]), flush=True)
"""


def plain(side: int) -> Image.Image:
    """Of one colour, so that it is quickly encoded."""
    return Image.new("RGB", (side, side), (90, 140, 60))


def with_alpha(side: int) -> Image.Image:
    picture = plain(side)
    picture.putalpha(128)
    return picture


def written(kind: str, make: Callable[[int], Image.Image] = plain, **options: Any) -> Make:
    def write(side: int) -> bytes:
        file = io.BytesIO()
        make(side).save(file, kind, **options)
        return file.getvalue()

    return write


def frame_in_canvas(side: int) -> bytes:
    small = saved(Image.new("P", (16, 16), 1), "GIF")
    return patched(small, 6, side.to_bytes(2, "little") * 2)


def wide_grey(side: int) -> bytes:
    return tiff_of(np.zeros((side, side, 1), np.uint8), 32, 1, kind="f", deflated=True)


MAKE: dict[str, Make] = {
    "progressive.jpg": written("JPEG", progressive=True, subsampling=0),
    "progressive-cmyk.jpg": lambda side: jpeg(
        Image.new("CMYK", (side, side), (9, 200, 30, 4)), progressive=True
    ),
    "colour.png": written("PNG", compress_level=1),
    "alpha.png": written("PNG", with_alpha, compress_level=1),
    "lossy.webp": written("WEBP", method=0),
    "lossless-alpha.webp": written("WEBP", with_alpha, method=0, lossless=True, quality=0),
    "colour.avif": written("AVIF", speed=10, subsampling="4:4:4"),
    "alpha.avif": written("AVIF", with_alpha, speed=10),
    "one-resolution.jp2": written("JPEG2000", num_resolutions=1),
    "frame-in-canvas.gif": frame_in_canvas,
    "colour.bmp": written("BMP"),
    "float.tif": wide_grey,
    "colour.ppm": written("PPM"),
}


def peaks(folder: Path, files: dict[str, bytes]) -> list[Any]:
    """For each file its name, the peak over what was there before, the peak of all, and the
    reason."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    first = folder / "first.png"
    first.write_bytes(saved(Image.new("RGB", (400, 400)), "PNG"))
    command = [sys.executable, "-c", MEASURE, str(first), *(str(folder / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [(Path(path).name, *rest) for path, *rest in rows]


def stated(data: bytes) -> float:
    """The bytes that raycap expects decoding to take."""
    opened = READERS[picture_format(data)](data, PictureLimits(10**9, 10**6, 1000, 10**12))
    opened.shrink((336, 336))
    return opened.memory()


@pytest.mark.thorough
def test_no_format_takes_more_memory_than_it_states(tmp_path: Path) -> None:
    # More than 2**23 pixels: converted in bands.
    files = {name: make(2900) for name, make in MAKE.items()}
    for name, over, _, error in peaks(tmp_path, files):
        assert error == ""
        assert over <= stated(files[name]) + BESIDE, (
            f"{name}: {over / 2900**2:.1f} bytes for each pixel"
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MAKE)
def test_the_largest_picture_of_each_format_stays_under_700_mib(name: str, tmp_path: Path) -> None:
    reading = Reading()
    small = MAKE[name](1000)
    each = stated(small) / 1000**2
    side = isqrt(
        int(
            min(
                reading.max_pixels,
                reading.max_memory * MIB / each,
                reading.max_bytes * 1e6 / len(small),
            )
        )
    )
    side = min(int(side * 0.97), 16_383)  # the longest side of a WebP
    [(_, _, peak, error)] = peaks(tmp_path, {name: MAKE[name](side)})
    assert error == ""
    assert peak < 700 * MIB
    assert peak > 100 * MIB  # it is a large picture
