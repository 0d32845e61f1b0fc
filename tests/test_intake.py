"""What captioners want pictures as: grids of models in their own proportions, and new files."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import hostile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raycap.errors import UserError
from raycap.images import Encoded, Fit, Intake, Reading, Square, read_picture, reading
from raycap.images.guard import read_in_child
from raycap.images.loading import load_pictures

PLAIN = Reading()
QWEN = Fit(multiple_of=28, min_pixels=3136, max_pixels=1_003_520)
SMOLVLM = Fit(multiple_of=64, longest_side=256, interpolation="lanczos")
INTERNVL = Fit(multiple_of=448, max_tiles=12)
ANY_SIZE = Fit(max_pixels=100_000)
INTAKES: list[Intake] = [
    Square(50),
    QWEN,
    SMOLVLM,
    INTERNVL,
    ANY_SIZE,
    Encoded(64),
    Encoded(64, "png"),
]
NAMES = ["square", "qwen", "smolvlm", "internvl", "any-size", "jpeg", "png"]
SIDES = st.integers(1, 6000)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green grows to the bottom; blue is constant."""
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    pixels = np.stack([across, down, np.full((height, width), 60)], -1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def saved(picture: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opened(pixels: np.ndarray | None) -> Image.Image:
    assert pixels is not None and pixels.ndim == 1 and pixels.dtype == np.uint8
    picture = Image.open(io.BytesIO(pixels.tobytes()))
    picture.load()
    return picture


def as_array(pixels: np.ndarray | None, intake: Intake) -> np.ndarray:
    """The pixels, of a new file too."""
    if isinstance(intake, Encoded):
        return np.asarray(opened(pixels))
    assert pixels is not None
    return pixels


@given(SIDES, SIDES)
def test_fit_cuts_the_grid_of_qwen(width: int, height: int) -> None:
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    if max(width, height) > 200 * min(width, height):
        return  # that is an error there
    high, wide = qwen.smart_resize(height, width, 28, QWEN.min_pixels, QWEN.max_pixels)
    assert QWEN.size_of(width, height) == (wide, high)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([364, 512]))
def test_fit_cuts_the_grid_of_idefics3(width: int, height: int, tile: int) -> None:
    torch = pytest.importorskip("torch")
    idefics = pytest.importorskip("transformers.models.idefics3.image_processing_idefics3")
    cut = idefics.get_resize_output_image_size
    fit = Fit(multiple_of=tile, longest_side=4 * tile, interpolation="lanczos")
    high, wide = cut(torch.empty(3, height, width, device="meta"), 4 * tile)
    sizes = []

    class Measured(idefics.Idefics3ImageProcessor):
        def resize(self, image, size, **_):  # type: ignore[no-untyped-def]
            sizes.append((size.width, size.height))

    resized = torch.empty(3, high, wide, device="meta")
    Measured.resize_for_vision_encoder(Measured(), resized, tile)
    assert [fit.size_of(width, height)] == sizes


@given(SIDES, SIDES, st.integers(1, 3), st.integers(3, 12))
def test_fit_cuts_the_grid_of_internvl(width: int, height: int, least: int, most: int) -> None:
    got = pytest.importorskip("transformers.models.got_ocr2.image_processing_got_ocr2")
    columns, rows = got.get_optimal_tiled_canvas((height, width), (448, 448), least, most)
    fit = Fit(multiple_of=448, min_tiles=least, max_tiles=most)
    assert fit.size_of(width, height) == (columns * 448, rows * 448)


@given(SIDES, SIDES)
def test_without_a_grid_a_picture_keeps_its_proportions_and_is_never_enlarged(
    width: int, height: int
) -> None:
    wide, high = ANY_SIZE.size_of(width, height)
    assert 1 <= wide <= width and 1 <= high <= height
    assert wide * high <= 100_000 or min(wide, high) == 1
    if width * height <= 100_000:
        assert (wide, high) == (width, height)
    assert abs(wide / width - high / height) <= 1 / width + 1 / height


@given(SIDES, SIDES, st.sampled_from([QWEN, SMOLVLM, INTERNVL]))
def test_a_grid_is_cut_once(width: int, height: int, fit: Fit) -> None:
    """A model's own processor leaves pixels alone that are on its grid."""
    size = fit.size_of(width, height)
    if max(size) <= 20 * min(size):
        assert fit.size_of(*size) == size


@pytest.mark.parametrize("intake", INTAKES, ids=NAMES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(intake: Intake, orientation: int) -> None:
    upright = gradient(331, 120)
    expected = as_array(read_picture(saved(upright), PLAIN, intake).pixels, intake)
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(saved(stored, exif=exif), PLAIN, intake)
    assert (picture.width, picture.height, picture.error) == (331, 120, "")
    found = as_array(picture.pixels, intake)
    assert found.shape == expected.shape
    if isinstance(intake, Fit):
        assert found.shape == (*intake.size_of(331, 120)[::-1], 3)
    assert np.abs(found.astype(int) - expected).max() <= (12 if intake == Encoded(64) else 2)


@pytest.mark.parametrize("intake", INTAKES, ids=NAMES)
def test_every_part_of_a_picture_is_where_it_belongs(intake: Intake) -> None:
    """Also from a JPEG that is decoded at a fraction of its size."""
    picture = read_picture(saved(gradient(2400, 1500), "jpeg", quality=95), PLAIN, intake)
    found = as_array(picture.pixels, intake).astype(float)
    high, wide = found.shape[:2]
    across = (np.arange(wide) + 0.5) / wide * 255
    down = (np.arange(high) + 0.5) / high * 255
    assert np.abs(found[..., 0] - across).max() < 8
    assert np.abs(found[..., 1] - down[:, None]).max() < 8


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_new_file_has_no_metadata_and_is_not_enlarged(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET"
    data = saved(gradient(90, 60), "jpeg", exif=exif, comment=b"SECRET", quality=95)
    large = Encoded(1000, format)  # type: ignore[arg-type]
    made = read_picture(data, PLAIN, large)
    assert b"SECRET" not in made.pixels.tobytes()
    picture = opened(made.pixels)
    assert picture.size == (60, 90) and picture.mode == "RGB"
    assert picture.format == format.upper()
    assert not picture.getexif() and "icc_profile" not in picture.info
    small = opened(read_picture(data, PLAIN, Encoded(45, format)).pixels)  # type: ignore[arg-type]
    assert small.size == (30, 45)


def test_colours_are_srgb_and_transparent_parts_have_the_background() -> None:
    kinds = {kind.name: kind.data for kind in hostile.hostile()}
    for name in ("display-p3.jpg", "cmyk-adobe.jpg", "gamma.png", "linear-called-srgb.jpg"):
        plain = read_picture(kinds[name], PLAIN, Square(64)).pixels
        new = np.asarray(opened(read_picture(kinds[name], PLAIN, Encoded(64, "png")).pixels))
        assert np.abs(new.mean((0, 1)) - plain.mean((0, 1))).max() < 3
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    red = Reading(background="#c82828")
    for intake in INTAKES[1:]:
        found = as_array(read_picture(saved(clear), red, intake).pixels, intake)
        assert np.abs(found.astype(int) - (0xC8, 0x28, 0x28)).max() < 6


@pytest.mark.parametrize("intake", INTAKES[1:], ids=NAMES[1:])
def test_bad_pictures_have_the_same_reasons_for_every_intake(intake: Intake) -> None:
    for kind in hostile.hostile():
        reading = Reading(**kind.options)
        square, other = (read_picture(kind.data, reading, each) for each in (Square(), intake))
        assert (square.error == "") == (other.error == ""), kind.name
        assert square.error.partition(":")[0] == other.error.partition(":")[0], kind.name
        assert (other.pixels is None) == bool(other.error)


@pytest.mark.skipif(os.name != "posix", reason="children need POSIX")
@pytest.mark.parametrize("intake", INTAKES, ids=NAMES)
def test_children_answer_the_same(intake: Intake) -> None:
    data = saved(gradient(70, 50), "bmp")
    here, there = read_picture(data, PLAIN, intake), read_in_child(data, PLAIN, intake)
    assert here.pixels is not None and here.pixels.dtype == np.uint8
    assert np.array_equal(here.pixels, there.pixels)


@pytest.mark.parametrize("intake", INTAKES, ids=NAMES)
def test_most_photos_go_a_shorter_way_to_the_same_pixels(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(gradient(70, 50))
    short = read_picture(data, PLAIN, intake).pixels
    monkeypatch.setattr(reading, "stays_as_it_is", lambda colours: False)
    long = read_picture(data, PLAIN, intake).pixels
    assert short is not None and long is not None and np.array_equal(short, long)


def test_memory_is_checked_for_the_picture_that_is_made() -> None:
    data = saved(gradient(16, 16))
    tight = Reading(max_memory=100)
    assert read_picture(data, tight, Fit(min_pixels=10**6, max_pixels=2 * 10**6)).error == ""
    enlarged = Fit(min_pixels=10**7, max_pixels=2 * 10**7)
    assert read_picture(data, tight, enlarged).error.startswith("too much memory")


def test_pictures_are_loaded_as_the_intake_says() -> None:
    files = [saved(gradient(width, 40)) for width in (30, 60, 90)]

    class NoFetcher:
        def fetch_each(self, uris: list[str], patience: object) -> list[object]:
            return []

    with ThreadPoolExecutor(2):
        loaded = dict(load_pictures(files, NoFetcher(), PLAIN, QWEN))  # type: ignore[arg-type]
    shapes = [loaded[number].pixels.shape for number in range(3)]
    assert shapes == [(*QWEN.size_of(width, 40)[::-1], 3) for width in (30, 60, 90)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Fit(multiple_of=0),
        lambda: Fit(max_pixels=0),
        lambda: Fit(min_pixels=10, max_pixels=5),
        lambda: Fit(longest_side=10**6),
        lambda: Fit(max_tiles=10**6, multiple_of=448),
        lambda: Fit(max_tiles=3, min_tiles=4),
        lambda: Encoded(max_side=0),
        lambda: Encoded(format="gif"),
        lambda: Encoded(quality=0),
    ],
    ids=["multiple", "max", "min", "side", "tiles", "min-tiles", "max-side", "format", "quality"],
)
def test_impossible_intakes_are_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"give|over"):
        wrong()  # type: ignore[operator]
