"""Pictures: the result of each hostile file, and properties of all pictures."""

import json
import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import forging
import hostile
import misread
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from raycap.errors import UserError
from raycap.images import Picture, Reading, Square, jpeg, pixels, read_picture, read_whole

KINDS = hostile.hostile()
NAMED = {kind.name: kind for kind in KINDS}
PLAIN = Reading()

# Pillow warns of what it finds in broken metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Likeness in decibels: 30 is hard to tell apart by eye, 48 is an error of one level."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def plain_pillow(data: bytes, side: int) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB").resize((side, side)))


def centres(square: np.ndarray) -> list[list[int]]:
    """Colours in the middle of the four quadrants."""
    side = len(square)
    return [
        square[y, x].tolist()
        for y in (side // 4, side * 3 // 4)
        for x in (side // 4, side * 3 // 4)
    ]


def sound(picture: Picture, side: int = 224) -> bool:
    """Pixels of the right shape, or a reason; never both, never neither."""
    if picture.pixels is None:
        return picture.error != ""
    return (
        picture.error == ""
        and picture.pixels.shape == (side, side, 3)
        and picture.pixels.dtype == np.uint8
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_hostile_file_becomes_what_it_must(kind: hostile.Hostile) -> None:
    picture = read_picture(kind.data, Reading(**kind.options))
    assert sound(picture)
    assert picture.format == kind.format
    assert picture.error.startswith(kind.error) if kind.error else picture.error == ""
    if picture.pixels is not None:
        assert (picture.width, picture.height) == kind.size
        for found, expected in zip(centres(picture.pixels), kind.quadrants, strict=True):
            assert expected is None or np.abs(np.subtract(found, expected)).max() <= kind.tolerance


def test_the_corpus_is_the_same_on_each_run(tmp_path: Path) -> None:
    assert len(KINDS) >= 40
    assert len(NAMED) == len(KINDS)
    assert [kind.data for kind in hostile.hostile()] == [kind.data for kind in KINDS]
    written = hostile.write(tmp_path)
    assert written == len([path for path in tmp_path.rglob("*") if path.is_file()])
    assert all((tmp_path / kind.name).read_bytes() == kind.data for kind in KINDS)


# In a process of its own: a crash of a decoder fails one test and does not end the others.
READ_ALL = """
import json, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
sys.path[:0] = sys.argv[1:]
import hostile
from raycap.images import Reading, Square, read_picture
warnings.simplefilter("ignore")
files = [(kind.name, kind.data, Reading(**kind.options), Square()) for kind in hostile.hostile()]
for name, data in hostile.flips():
    salvaging = Reading(salvage_truncated=True), Square(size=32, resize="pad")
    files += [(name, data, Reading(), Square()), (name + " salvaged", data, *salvaging)]
for name, data, reading, square in files:
    picture = read_picture(data, reading, square)
    assert max(picture.width, picture.height) < 2**31
    shape = None if picture.pixels is None else picture.pixels.shape
    print(json.dumps([name, shape, square.size, picture.error]), flush=True)
if sys.platform == "linux":  # whose ru_maxrss also counts the process that started this one
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
heavy = [module for module in ("torch", "ray") if module in sys.modules]
print(json.dumps([peak * (1 if sys.platform == "darwin" else 1024), heavy]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="memory limits of a process are POSIX")
def test_no_flipped_bits_crash_the_process_or_fill_its_memory() -> None:
    folder = Path(__file__).resolve().parent
    command = [sys.executable, "-c", READ_ALL, str(folder), str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    *rows, last = done.stdout.splitlines()
    assert done.returncode == 0, f"died of {last} (exit {done.returncode}): {done.stderr[-2000:]}"
    outcomes = [json.loads(row) for row in rows]
    assert len(outcomes) == len(KINDS) + 2 * len(list(hostile.flips()))
    assert [row for row in outcomes if (row[1] != [row[2], row[2], 3]) == (row[3] == "")] == []
    flipped = [row for row in outcomes if row[0].startswith("flip-")]
    # They do break files, and not all.
    assert 50 < sum(row[3] == "" for row in flipped) < len(flipped) - 50
    peak, heavy = json.loads(last)
    assert peak < 700 * 2**20
    assert heavy == []


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([kind.data[:40] for kind in KINDS]),
    st.integers(0, 40),
    st.binary(max_size=400),
)
def test_no_bytes_raise(start: bytes, length: int, rest: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sound(read_picture(start[:length] + rest, PLAIN, Square(size=8)), 8)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_all_orientations_are_one_picture(resize: str) -> None:
    upright = read_picture(NAMED["orientation-1.jpg"].data, PLAIN, Square(61, resize)).pixels
    for orientation in range(2, 9):
        turned = read_picture(
            NAMED[f"orientation-{orientation}.jpg"].data, PLAIN, Square(61, resize)
        ).pixels
        assert psnr(upright, turned) > 35


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_resize_modes_show_the_part_that_they_promise(resize: str, interpolation: str) -> None:
    picture = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    ).resize((300, 200))
    square = read_picture(
        forging.saved(picture, "PNG"),
        Reading(background="#102030"),
        Square(60, resize, interpolation),
    )
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[
        interpolation
    ]
    expected = Image.new("RGB", (60, 60), "#102030")
    if resize == "pad":
        expected.paste(picture.resize((60, 40), kernel), (0, 10))
    else:
        expected = picture.resize(
            (60, 60), kernel, box=(50, 0, 250, 200) if resize == "crop" else None
        )
    assert psnr(square.pixels, np.asarray(expected)) > 45


def test_the_same_pictures_without_the_fast_resizer(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["large-turned.jpg", "large-cmyk.jpg", "grey.jpg", "alpha.png", "colour-16.png"]
    before = [read_picture(NAMED[name].data, PLAIN).pixels for name in names]
    monkeypatch.setattr(pixels, "fast", None)
    after = [read_picture(NAMED[name].data, PLAIN).pixels for name in names]
    assert min(psnr(*pair) for pair in zip(before, after, strict=True)) > 45


def test_the_fast_decoder_of_jpegs_changes_no_pixel_and_no_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("simplejpeg", reason="simplejpeg has no wheel for this platform")
    files = [(kind.name, kind.data, Reading(**kind.options)) for kind in KINDS]
    files += [(name, data, Reading(salvage_truncated=True)) for name, data in hostile.flips()]
    files = [file for file in files if file[1].startswith(b"\xff\xd8")]

    def read_all() -> dict[str, tuple[Picture, Picture]]:
        return {
            name: (read_picture(data, reading, Square(size=20)), read_whole(data, reading))
            for name, data, reading in files
        }

    decoded = []
    decode = jpeg.fast.decode_jpeg

    def counting(*given, **options):
        decoded.append(decode(*given, **options))
        return decoded[-1]

    monkeypatch.setattr(jpeg.fast, "decode_jpeg", counting)
    fast = read_all()
    monkeypatch.setattr(jpeg, "fast", None)
    slow = read_all()
    assert 50 < len(decoded) < 2 * len(files) - 50, "it decodes some files, and leaves others"
    for name, pair in fast.items():
        for one, other in zip(pair, slow[name], strict=True):
            assert (one.error, one.width, one.height) == (other.error, other.width, other.height)
            assert np.array_equal(one.pixels, other.pixels), name


def test_large_photos_decoded_at_a_fraction_look_as_decoded_whole(shared_data: Path) -> None:
    paths = sorted((shared_data / "flickr8k-original").iterdir())
    for path in [path for path in paths if "icc_profile" not in Image.open(path).info][:12]:
        data = path.read_bytes()
        # Too small for a fraction.
        assert psnr(read_picture(data, PLAIN).pixels, plain_pillow(data, 224)) > 45
        large = forging.jpeg(Image.open(path).resize((2000, 1500)))
        assert psnr(read_picture(large, PLAIN).pixels, plain_pillow(large, 224)) > 38
        # The hardest case: a photo sharp to the pixel, at the ratio of 12 megapixels to 224.
        assert psnr(read_picture(data, PLAIN, Square(size=28)).pixels, plain_pillow(data, 28)) > 28


def test_threads_agree_and_leave_the_process_as_it_was() -> None:
    globals_before = (
        ImageFile.LOAD_TRUNCATED_IMAGES,
        Image.MAX_IMAGE_PIXELS,
        list(warnings.filters),
    )
    files = [
        (kind.data, Reading(**kind.options)) for kind in KINDS if not kind.name.endswith(".tif")
    ] * 3
    alone = [read_picture(*file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: read_picture(*file), files))
    for one, other in zip(alone, together, strict=True):
        assert (one.format, one.width, one.height, one.error) == (
            other.format,
            other.width,
            other.height,
            other.error,
        )
        assert (
            np.array_equal(one.pixels, other.pixels)
            if one.pixels is not None
            else other.pixels is None
        )
    assert (
        ImageFile.LOAD_TRUNCATED_IMAGES,
        Image.MAX_IMAGE_PIXELS,
        list(warnings.filters),
    ) == globals_before


@pytest.mark.parametrize("limit", [None, 100])
def test_limits_are_not_the_ones_of_the_process(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for name in (
        "bomb.png",
        "bomb.gif",
        "bomb.bmp",
        "bomb.tif",
        "bomb.jpg",
        "bomb.webp",
        "lossy-bomb.webp",
    ):
        assert read_picture(NAMED[name].data, PLAIN).error.startswith("a decompression bomb")
    for name in ("plain.jpg", "plain.png", "plain.gif", "plain.bmp"):
        assert read_picture(NAMED[name].data, PLAIN).error == ""


def test_a_refused_picture_still_has_its_size() -> None:
    picture = read_picture(NAMED["bomb.png"].data, PLAIN)
    assert (picture.format, picture.width, picture.height) == ("png", 60000, 60000)


def test_heic_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'raycap[heif]'" in read_picture(hostile.HEIC, PLAIN).error


def test_jpeg_xl_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl.JpegXLImagePlugin", None)
    assert "pip install 'raycap[jxl]'" in read_picture(misread.JXL, PLAIN).error


def test_heic_with_its_extra_is_read() -> None:
    pytest.importorskip(
        "pillow_heif", reason="pillow-heif is not installed: pip install 'raycap[heif]'"
    )
    picture = read_picture(hostile.HEIC, PLAIN)
    assert (picture.error, picture.width, picture.height) == ("", 64, 64)
    assert np.abs(np.subtract(centres(picture.pixels), forging.QUADRANTS)).max() <= 6


def test_whole_pictures_keep_their_size_and_stand_upright() -> None:
    for name in ("orientation-6.jpg", "turned.tif", "alpha.png", "grey-16.png", "cmyk-adobe.jpg"):
        whole = read_whole(NAMED[name].data, PLAIN)
        assert whole.pixels.shape == (whole.height, whole.width, 3) == (64, 96, 3)
        small = read_picture(NAMED[name].data, PLAIN)
        assert np.abs(np.subtract(whole.pixels[16, 24], small.pixels[56, 56])).max() <= 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"background": "whit"}, "--reading.background"),
        ({"formats": ("jpg",)}, "perhaps you meant jpeg"),
        ({"max_pixels": 0}, "--reading.max-pixels"),
        ({"max_aspect": 0.5}, "--reading.max-aspect"),
        *(
            ({name: value}, f"--reading.{name.replace('_', '-')} is {value}")
            for name in ("max_bytes", "max_pixels", "max_memory", "max_side", "max_aspect")
            for value in (math.nan, math.inf, -math.inf, -1)
        ),
    ],
)
def test_impossible_options_are_refused(options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Reading(**options)
    with pytest.raises(UserError, match="size is 0"):
        Square(size=0)
