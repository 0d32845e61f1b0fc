"""Every depth, kind and layout of a format, compared with values computed by hand."""

import functools
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from forging import P3, SRGB, chunk, jpeg, linear, saved, textured, tiff_of
from PIL import Image, ImageCms

from raycap.images import Reading, Square, pixels, read_picture, read_whole
from raycap.images.colours import Colours, coded_profile, to_srgb

PLAIN = Reading()
HEIGHT, WIDTH = 16, 32
RAMP = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
COLOURS = np.dstack([RAMP, RAMP[:, ::-1], RAMP * 0 + 0.3])
COVER = np.where(np.arange(HEIGHT)[:, None] < 8, 1.0, 0.4) * np.ones((HEIGHT, WIDTH))

# Pillow warns of what it finds in broken metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def off(data: bytes, expected: np.ndarray) -> float:
    """The largest difference in levels; infinite where the picture is refused."""
    picture = read_whole(data, PLAIN)
    if picture.pixels is None:
        return float("inf")
    grey = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    return float(np.abs(picture.pixels.astype(float) - grey).max())


def on_white(picture: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return picture * cover + 255 * (1 - cover)


ORDERS: list[dict[str, Any]] = [
    {"order": order, "big": big, "deflated": deflated}
    for order, big, deflated in itertools.product("<>", (False, True), (False, True))
]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_tiff_greys(bits: int) -> None:
    levels = np.round(RAMP * (2**bits - 1))
    expected = levels / (2**bits - 1) * 255
    for tile, layout in itertools.product((0, 16), ORDERS):
        assert off(tiff_of(levels[:, :, None], bits, 1, tile=tile, **layout), expected) <= 1, (
            layout
        )
        assert (
            off(tiff_of(levels[:, :, None], bits, 0, tile=tile, **layout), 255 - expected) <= 1
        ), layout


def test_tiff_floats_and_signed_numbers() -> None:
    for layout in ORDERS:
        assert off(tiff_of(RAMP[:, :, None], 32, 1, kind="f", **layout), RAMP * 255) <= 1, layout
        assert off(tiff_of(RAMP[:, :, None], 32, 0, kind="f", **layout), 255 - RAMP * 255) <= 1, (
            layout
        )
        for bits in (16, 32):  # of unknown range: the smallest usual one that holds all levels
            levels = np.round(RAMP * 255)[:, :, None]
            assert off(tiff_of(levels, bits, 1, kind="i", **layout), levels[:, :, 0]) <= 1, layout


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_colour_maps(bits: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 2**bits))
    places = np.round(RAMP * (2**bits - 1)).astype(int)
    for scale, layout in itertools.product((1, 257), ORDERS):
        tags = {320: tuple((colours * scale).ravel().tolist())}
        assert (
            off(tiff_of(places[:, :, None], bits, 3, tags=tags, **layout), colours.T[places]) == 0
        ), layout


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_colours(bits: int) -> None:
    cover = COVER[:, :, None]
    shown = {
        None: COLOURS * 255,
        0: COLOURS * 255,
        1: on_white(COLOURS * 255, cover),
        2: on_white(COLOURS * 255, cover),
    }
    for extra, planar, tile, layout in itertools.product(shown, (False, True), (0, 16), ORDERS):
        stored = (
            COLOURS
            if extra is None
            else np.dstack([COLOURS * (cover if extra == 1 else 1), COVER])
        )
        tags = {} if extra is None else {338: (extra,)}
        data = tiff_of(
            np.round(stored * (2**bits - 1)),
            bits,
            2,
            planar=planar,
            tile=tile,
            tags=tags,
            **layout,
        )
        assert off(data, shown[extra]) <= 4, (extra, planar, tile, layout)
    ink = np.dstack([RAMP, RAMP[:, ::-1], RAMP * 0, RAMP * 0 + 0.2])
    for planar, layout in itertools.product((False, True), ORDERS):
        data = tiff_of(np.round(ink * (2**bits - 1)), bits, 5, planar=planar, **layout)
        assert off(data, (1 - ink[:, :, :3]) * 0.8 * 255) <= 4, (planar, layout)


def test_tiff_greys_with_alpha_and_other_colours() -> None:
    for extra, layout in itertools.product((0, 1, 2), ORDERS):
        stored = np.dstack([RAMP * (COVER if extra == 1 else 1), COVER])
        expected = on_white(RAMP * 255, COVER) if extra else RAMP * 255
        assert (
            off(tiff_of(np.round(stored * 255), 8, 1, tags={338: (extra,)}, **layout), expected)
            <= 4
        )
    rgb = (COLOURS * 255).astype(np.uint8)
    luma = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    lab = np.dstack([RAMP * 255, RAMP * 0, RAMP * 0])
    for layout in ORDERS:
        assert off(tiff_of(luma, 8, 6, tags={530: (1, 1)}, **layout), rgb) <= 4
        light = read_whole(tiff_of(lab, 8, 8, **layout), PLAIN)
        assert light.error == ""
        assert light.pixels[0, 0].max() < 3 < 252 < light.pixels[0, -1].min()


def test_what_no_decoder_reads_is_refused_with_a_reason() -> None:
    data = tiff_of(np.zeros((8, 8, 2)), 16, 1, tags={338: (2,)})
    assert read_picture(data, PLAIN).error.startswith("broken tiff: ")


PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def png_rows(levels: np.ndarray, depth: int, interlaced: bool) -> bytes:
    def rows(part: np.ndarray) -> bytes:
        flat = part.reshape(len(part), -1)
        if depth == 16:
            packed = flat.astype(">u2").view(np.uint8).reshape(len(part), -1)
        else:
            packed = np.packbits(
                ((flat[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(len(part), -1),
                axis=1,
            )
        return b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)

    if not interlaced:
        return rows(levels)
    parts = [levels[top::down, left::across] for left, top, across, down in PASSES]
    return b"".join(rows(part) for part in parts if part.size)


def png_of(
    shape: tuple[int, ...], depth: int, kind: int, rows: bytes, before: bytes, interlaced: bool
) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, kind, 0, 0, int(interlaced))
    body = before + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


PNG_KINDS = [
    (kind, depth)
    for kind, depths in {
        0: (1, 2, 4, 8, 16),
        2: (8, 16),
        3: (1, 2, 4, 8),
        4: (8, 16),
        6: (8, 16),
    }.items()
    for depth in depths
]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), PNG_KINDS)
def test_png_kinds_holes_and_missing_rows(kind: int, depth: int, interlaced: bool) -> None:
    chance = np.random.default_rng(depth)
    top, channels = 2**depth - 1, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    levels = chance.integers(0, top + 1, (23, 37, channels))
    levels[5:9] = levels[3, 3]
    for holes in (False, True):
        before, cover = b"", np.ones((23, 37))
        colours = (
            levels[:, :, : channels - 1 if kind in (4, 6) else channels] / top * 255 * np.ones(3)
        )
        if kind == 3:
            palette = chance.integers(0, 256, (top + 1, 3))
            before, colours = (
                chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
                palette[levels[:, :, 0]],
            )
        if kind in (4, 6):
            cover = levels[:, :, -1] / top
        if holes and kind in (0, 2):
            key = levels[3, 3]
            before, cover = (
                chunk(b"tRNS", key.astype(">u2").tobytes()),
                1.0 - (levels == key).all(2),
            )
        if holes and kind == 3:
            alphas = chance.integers(0, 256, max(1, top // 2))
            before += chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
            cover = np.append(alphas, np.full(top + 1, 255))[levels[:, :, 0]] / 255
        rows = png_rows(levels, depth, interlaced)
        data = png_of(levels.shape, depth, kind, rows, before, interlaced)
        assert off(data, on_white(colours, cover[:, :, None])) <= 2  # 16 bits keep their high byte
        for share in (0.5, 0.9):
            short = png_of(
                levels.shape, depth, kind, rows[: int(len(rows) * share)], before, interlaced
            )
            assert read_picture(short, PLAIN).error.startswith("truncated png")
            assert read_picture(short, Reading(salvage_truncated=True)).error == ""


def test_only_colours_with_all_16_bits_of_the_key_are_holes() -> None:
    levels = np.full((8, 8, 3), 0x1234)
    levels[4:] = 0x1235
    data = png_of(
        levels.shape, 16, 2, png_rows(levels, 16, False), chunk(b"tRNS", b"\x12\x34" * 3), False
    )
    pixels = read_whole(data, PLAIN).pixels
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[7, 7].tolist() == [0x12] * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 1},
        {"progressive": True},
    ],
)
def test_jpegs_cut_and_closed(mode: str, options: dict[str, Any]) -> None:
    photo = textured().resize((192, 128), Image.Resampling.NEAREST).convert(mode)
    data = jpeg(photo, **options)
    assert read_picture(data, PLAIN).error == ""
    start = data.index(b"\xff\xda") + 14
    # The end of the first scan.
    first = data.find(b"\xff\xc4", start) if "progressive" in options else len(data)
    for share in (0.2, 0.5, 0.9):
        cut = data[: start + int((first - start) * share)].rstrip(b"\xff") + b"\xff\xd9"
        for square in (Square(), Square(size=16)):
            assert read_picture(cut, PLAIN, square).error.startswith("truncated jpeg")
        assert read_picture(cut, Reading(salvage_truncated=True)).error == ""
    for size in ((8, 8), (17, 33), (300, 200)):  # whole pictures of the grey that decoders leave
        grey = (
            Image.new("L", size, 128).convert(mode)
            if mode != "CMYK"
            else Image.new(mode, size, (128,) * 4)
        )
        assert read_picture(jpeg(grey, **options), PLAIN).error == ""


@pytest.mark.parametrize(("primaries", "matrix"), [(1, SRGB), (12, P3)])
@pytest.mark.parametrize(
    ("transfer", "light"),
    [(13, linear), (8, lambda levels: levels / 255), (4, lambda levels: (levels / 255) ** 2.2)],
)
def test_coded_colours(primaries: int, matrix: np.ndarray, transfer: int, light: Any) -> None:
    levels = np.random.default_rng(0).integers(40, 216, (8, 8, 3))
    shown = to_srgb(
        Image.fromarray(levels.astype(np.uint8)),
        Colours(profile=coded_profile(primaries, transfer)),
    )
    rgb = (light(levels) @ (np.linalg.inv(SRGB) @ matrix).T).clip(0, 1)
    expected = 255 * np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(shown) - expected).max() <= 2


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_shows_paper_as_white(transfer: int) -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    shown = np.asarray(
        to_srgb(Image.fromarray(grey), Colours(profile=coded_profile(9, transfer)))
    ).astype(int)
    paper = {16: 0.5807, 18: 0.75}[transfer]  # 203 candelas, by ITU-R BT.2408
    assert (np.diff(shown[0, :, 0]) >= 0).all()
    assert shown[0, round(255 * paper) + 3].min() >= 253
    assert shown[0, round(255 * paper) - 20].max() < 250


def test_profiles_that_change_nothing_cost_nothing() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = textured()
    assert np.array_equal(np.asarray(to_srgb(picture, Colours(profile=own))), np.asarray(picture))
    assert coded_profile(99, 13) is None
    assert coded_profile(1, 99) is None


@pytest.mark.parametrize("kind", ["P1", "P2", "P3", "P4", "P5", "P6"])
@pytest.mark.parametrize("white", [1, 100, 255, 1000, 65535])
def test_ppm_kinds(kind: str, white: int) -> None:
    number, shape = int(kind[1]), (5, 13, 3 if kind in ("P3", "P6") else 1)
    white = 1 if number in (1, 4) else white
    levels = np.random.default_rng(number).integers(0, white + 1, shape)
    head = f"{kind}\n# a comment\n{shape[1]} {shape[0]}\n" + (
        "" if number in (1, 4) else f"{white}\n"
    )
    if number <= 3:
        body = "\n".join(" ".join(map(str, row.ravel())) for row in levels).encode()
    elif number == 4:
        body = np.packbits(levels[:, :, 0].astype(np.uint8), axis=1).tobytes()
    else:
        body = levels.astype(np.uint8 if white < 256 else ">u2").tobytes()
    expected = levels / white * 255 * np.ones(3)
    expected = 255 - expected if number in (1, 4) else expected
    assert off(head.encode() + body, expected) <= 1
    assert read_picture(head.encode() + body[: len(body) // 2], PLAIN).error.startswith(
        "truncated ppm"
    )


@functools.cache
def gradient(size: tuple[int, int], kind: str) -> bytes:
    return saved(Image.radial_gradient("L").resize(size).convert("RGB"), kind)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "PNG"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_sizes_that_no_fraction_divides(kind: str, resize: Any) -> None:
    """Pictures decoded at a fraction, or shrunk in bands, show the same part as whole ones."""
    for size in ((500, 375), (333, 501), (3601, 2403)):
        data = gradient(size, kind)
        for side in (9, 28, 61):
            square = read_picture(data, PLAIN, Square(side, resize))
            assert square.error == ""
            smaller = (side * 6, round(side * 6 * size[1] / size[0]))
            plain = read_picture(gradient(smaller, "PNG"), PLAIN, Square(side, resize))
            assert np.abs(square.pixels.astype(int) - plain.pixels).mean() <= 1.5


def test_transparent_edges_keep_their_colour() -> None:
    """Colours below full transparency must not bleed into what is seen."""
    picture = Image.new("RGBA", (640, 640), (0, 0, 0, 0))
    picture.paste((200, 40, 40, 255), (0, 0, 320, 640))
    for kind in ("PNG", "WEBP"):
        shown = read_picture(
            saved(picture, kind, lossless=True), Reading(background="#c82828"), Square(size=64)
        ).pixels
        assert np.abs(shown.astype(int) - (200, 40, 40)).max() <= 4


def shown(mode: str, levels: np.ndarray) -> np.ndarray:
    """The levels on black: colours that are hardly seen are rounded more."""
    if mode in ("LA", "RGBA"):
        return levels[:, :, :-1] * (levels[:, :, -1:] / 255)
    return levels.astype(float)


@pytest.mark.skipif(pixels.fast is None, reason="no fast resizer on this platform")
@pytest.mark.parametrize(
    ("mode", "kernel"),
    [
        *(("L", "lanczos"), ("LA", "bicubic"), ("RGB", "bicubic"), ("RGB", "lanczos")),
        *(("RGBA", "bilinear"), ("CMYK", "bicubic")),
    ],
)
@pytest.mark.parametrize("size", [(64, 40), (301, 17), (400, 390)], ids=["less", "flat", "more"])
def test_bands_show_what_the_whole_shows(
    mode: str, kernel: pixels.Kernel, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = len(Image.new(mode, (1, 1)).getbands())
    chance = np.random.default_rng(3)
    coarse = chance.integers(0, 255, (31, 43, channels), np.uint8)
    bands = [Image.fromarray(coarse[:, :, each]) for each in range(channels)]
    picture = Image.merge(mode, bands).resize((301, 203), Image.Resampling.NEAREST)
    for box in ((0, 0, 301, 203), (3.5, 2.25, 290.0, 190.5)):
        whole = np.asarray(pixels.scale_to(picture, size, box, kernel))
        with monkeypatch.context() as patch:
            patch.setattr(pixels, "_CACHED_PIXELS", 301 * 9)
            scaled = np.asarray(pixels.scale_to(picture, size, box, kernel))
            off = np.abs(shown(mode, scaled) - shown(mode, whole))
            assert off.max() <= 3 and off.mean() < 0.02, "the filter's numbers are rounded"
            if mode == "RGB":
                assert np.array_equal(pixels.scaled_rgb(picture, size, box, kernel), scaled)
