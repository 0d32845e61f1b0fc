"""Geometry and channels of one decoded picture: brought to 8 bits, resized, turned upright, put on a background."""

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Box = tuple[float, float, float, float]
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Above this many pixels a picture is brought to 8 bits in bands, each shrunk at once: copies of all of it would
# take several times its memory.
_LARGE_PIXELS = 2**23
_BAND_PIXELS = 2**20
# Whole factors shrink a picture to no less than this many times the size wanted; the antialiased filter does the
# rest.
_GAP = 3

# EXIF orientation to the turn that puts the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])  # these swap width and height


@dataclass
class Levels:
    """What the numbers of a picture mean, where Pillow's mode does not say it."""

    white: float | None = None
    """the level of white in a grey of more than 8 bits; None takes the usual one"""
    inverted: bool = False
    """whether 0 is white there, and `white` is black"""
    unsigned: bool = False
    """whether 32-bit integers have no sign"""
    transparent: int | None = None
    """the one level of a 16-bit grey that is a hole"""
    opaque: bool = False
    """whether the fourth channel is no alpha"""


def _fast_resizer() -> Any:
    """Pillow's own resize takes as long as decoding a small photo; this one a sixth of that."""
    try:
        import cykooz_resizer  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None  # no wheel for this platform: slower, the same picture to 50 dB
    return cykooz_resizer


fast = _fast_resizer()


def in_channels(
    picture: Image.Image, levels: Levels, wanted: tuple[int, int], box: Box
) -> tuple[Image.Image, Box]:
    """In one of L, LA, RGB, RGBA and CMYK, and `box` in it: a large picture is also shrunk to near `wanted`."""
    white = _white(picture, levels)
    width, height = picture.size
    if width * height <= _LARGE_PIXELS:
        return _channels(picture, levels, white), box
    fits = min((box[2] - box[0]) / wanted[0], (box[3] - box[1]) / wanted[1])
    factor = max(1, int(fits / _GAP))
    if factor == 1 and picture.mode in ("L", "RGB", "CMYK") and not picture.has_transparency_data:
        return picture, box
    whole = None
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        band = _channels(picture.crop((0, top, width, min(top + rows, height))), levels, white)
        if whole is None:
            whole = Image.new(band.mode, (ceil(width / factor), ceil(height / factor)))
        whole.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    assert whole is not None
    return whole, (box[0] / factor, box[1] / factor, box[2] / factor, box[3] / factor)


def _channels(picture: Image.Image, levels: Levels, white: float) -> Image.Image:
    mode = picture.mode
    if mode.startswith(("I", "F")):
        return _to_eight_bits(picture, levels, white)
    if mode in ("La", "RGBa"):
        return picture.convert(mode.upper())
    if mode == "LAB":
        return _lab_to_rgb().apply(picture)
    if picture.has_transparency_data and not levels.opaque:
        return picture.convert("LA" if mode in ("1", "L", "LA") else "RGBA")
    if mode in ("L", "RGB", "CMYK"):
        return picture
    return picture.convert("L" if mode in ("1", "LA") else "RGB")


def _white(picture: Image.Image, levels: Levels) -> float:
    """The level of white. 32-bit files do not state theirs: take the smallest usual one that holds all levels."""
    if levels.white:
        return levels.white
    if picture.mode not in ("I", "F"):
        return 65535 if picture.mode.startswith("I") else 255
    rows = max(1, _BAND_PIXELS // picture.width)
    bands = range(0, picture.height, rows)
    crops = (
        picture.crop((0, top, picture.width, min(top + rows, picture.height))) for top in bands
    )
    largest = max(float(_numbers(crop, levels).max()) for crop in crops)
    ranges: tuple[float, ...] = (1, 255, 65535) if picture.mode == "F" else (255, 65535)
    if largest >= 2**31 and levels.unsigned:
        return 2**32 - 1
    return next((top for top in ranges if largest <= top), largest)


def _numbers(picture: Image.Image, levels: Levels) -> np.ndarray:
    """Of a wide grey, as float32 [H, W]."""
    numbers = np.asarray(picture)
    if levels.unsigned:
        numbers = numbers.view(np.uint32)
    return np.nan_to_num(numbers.astype(np.float32), copy=False, posinf=0, neginf=0)


def _to_eight_bits(picture: Image.Image, levels: Levels, white: float) -> Image.Image:
    numbers = _numbers(picture, levels)
    hole = None if levels.transparent is None else numbers == levels.transparent
    numbers *= 255 / white
    if levels.inverted:
        np.subtract(255, numbers, out=numbers)
    grey = Image.fromarray(numbers.round(out=numbers).clip(0, 255, out=numbers).astype(np.uint8))
    if hole is not None:
        grey.putalpha(Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)))
    return grey


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB", flags=ImageCms.Flags.NOCACHE)


def placement(size: tuple[int, int], side: int, resize: Resize) -> tuple[tuple[int, int], Box]:
    """The size to scale to, and the part of a `size` picture to take, for a square of `side`."""
    width, height = size
    if resize == "squash":
        return (side, side), (0, 0, width, height)
    if resize == "crop":
        short = min(size)
        left, top = (width - short) / 2, (height - short) / 2
        return (side, side), (left, top, left + short, top + short)
    scale = side / max(size)
    return (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)


def scale_to(
    picture: Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation
) -> Image.Image:
    """Antialiased resize of the part `box` of an L, LA, RGB, RGBA or CMYK picture; alpha weighs the colours."""
    if picture.size == size and list(box) == [0, 0, *size]:
        return picture
    if fast is None or picture.width * picture.height > _LARGE_PIXELS:
        return picture.resize(
            size, _PILLOW_FILTERS[interpolation], box=box, reducing_gap=float(_GAP)
        )
    kernel = (
        fast.FilterType.bilinear if interpolation == "bilinear" else fast.FilterType.catmull_rom
    )
    left, top, right, bottom = box
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(kernel),
        use_alpha=picture.mode in ("LA", "RGBA"),  # the fourth channel of CMYK is ink
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
    )
    kind = getattr(
        fast.PixelType, {"L": "U8", "LA": "U8x2", "RGB": "U8x3"}.get(picture.mode, "U8x4")
    )
    # By way of bytes: its door for Pillow's own objects reads their private memory layout.
    scaled = fast.ImageData(*size, kind)
    fast.Resizer().resize(fast.ImageData(*picture.size, kind, picture.tobytes()), scaled, options)
    return Image.frombytes(picture.mode, size, scaled.get_buffer())


def turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def padded(picture: Image.Image, side: int | None, background: tuple[int, ...]) -> Image.Image:
    """In the middle of a square of `side`, where there is one and it is larger."""
    if side is None or picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), background)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
