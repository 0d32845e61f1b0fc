"""The pixels of a decoded picture: 8 bits per channel, resized, on a square."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Box = tuple[float, float, float, float]
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
Kernel = Literal["bilinear", "bicubic", "lanczos"]  # with those that only models of others use

_PILLOW_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Larger pictures are brought to 8 bits in bands, each of which is shrunk at once: copies of the
# whole picture would take several times its memory.
LARGE_PIXELS = 2**23
_BAND_PIXELS = 2**20
# Larger pictures are resized in bands of so many pixels: the bytes are copied twice, which is done
# in a third of the time within a processor's cache.
_CACHED_PIXELS = 2**16
# The widest filter looks at so many pixels to each side, or as many rows of the result.
_REACH = 3
# Whole factors shrink a picture to at least this many times the size wanted; the antialiasing
# filter does the rest.
_GAP = 3

# By EXIF orientation, the rotation or reflection that puts the picture upright.
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
    """The meaning of a picture's numbers, as far as Pillow's mode does not say it."""

    white: float | None = None
    """the level of white in a grey of more than 8 bits; None for the usual one"""
    inverted: bool = False
    """whether 0 is white and `white` is black"""
    unsigned: bool = False
    """whether 32-bit integers are unsigned"""
    transparent: int | None = None
    """the level of a 16-bit grey that is transparent"""
    opaque: bool = False
    """whether the fourth channel is not alpha"""


def _fast_resizer() -> Any:
    """A resizer that takes a sixth of the time of Pillow's, which is that of decoding a small
    photo."""
    try:
        import cykooz_resizer  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None  # no wheel for this platform: Pillow's is slower, and the same to 50 dB
    return cykooz_resizer


fast = _fast_resizer()


def to_eight_bits(
    picture: Image.Image, levels: Levels, wanted: tuple[int, int], box: Box
) -> tuple[Image.Image, Box]:
    """The picture in mode L, LA, RGB, RGBA or CMYK, and `box` in it. Large ones shrink to near
    `wanted`."""
    white = _white(picture, levels)
    width, height = picture.size
    if width * height <= LARGE_PIXELS:
        return _convert(picture, levels, white), box
    fits = min((box[2] - box[0]) / wanted[0], (box[3] - box[1]) / wanted[1])
    factor = max(1, int(fits / _GAP))
    if factor == 1 and picture.mode in ("L", "RGB", "CMYK") and not picture.has_transparency_data:
        return picture, box
    whole = None
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        band = _convert(picture.crop((0, top, width, min(top + rows, height))), levels, white)
        if whole is None:
            whole = Image.new(band.mode, (math.ceil(width / factor), math.ceil(height / factor)))
        whole.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    assert whole is not None
    return whole, (box[0] / factor, box[1] / factor, box[2] / factor, box[3] / factor)


def _convert(picture: Image.Image, levels: Levels, white: float) -> Image.Image:
    mode = picture.mode
    if mode.startswith(("I", "F")):
        return _scale_grey(picture, levels, white)
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
    """The level of white. 32-bit files do not state it: it is the smallest usual one that fits."""
    if levels.white:
        return levels.white
    if picture.mode not in ("I", "F"):
        return 65535 if picture.mode.startswith("I") else 255
    rows = max(1, _BAND_PIXELS // picture.width)
    largest = -math.inf
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        largest = max(largest, float(_numbers(band, levels).max()))
    if largest >= 2**31 and levels.unsigned:
        return 2**32 - 1
    usual: tuple[float, ...] = (1, 255, 65535) if picture.mode == "F" else (255, 65535)
    return next((white for white in usual if largest <= white), largest)


def _numbers(picture: Image.Image, levels: Levels) -> np.ndarray:
    """The numbers of a grey of more than 8 bits, as float32 [H, W]."""
    numbers = np.asarray(picture)
    if levels.unsigned:
        numbers = numbers.view(np.uint32)
    return np.nan_to_num(numbers.astype(np.float32), copy=False, posinf=0, neginf=0)


def _scale_grey(picture: Image.Image, levels: Levels, white: float) -> Image.Image:
    numbers = _numbers(picture, levels)
    transparent = None
    if levels.transparent is not None:
        transparent = numbers == levels.transparent
    numbers *= 255 / white
    if levels.inverted:
        np.subtract(255, numbers, out=numbers)
    grey = Image.fromarray(numbers.round(out=numbers).clip(0, 255, out=numbers).astype(np.uint8))
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return grey


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB", flags=ImageCms.Flags.NOCACHE)


def resize_plan(size: tuple[int, int], side: int, resize: Resize) -> tuple[tuple[int, int], Box]:
    """The size to scale to, and the box of the picture to take, for a square of `side`."""
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
    picture: Image.Image, size: tuple[int, int], box: Box, interpolation: Kernel
) -> Image.Image:
    """The box of an L, LA, RGB, RGBA or CMYK picture, resized with antialiasing; alpha weighs
    colours."""
    if _is_whole(picture.size, size, box):
        return picture
    if _is_for_pillow(picture.size, size, box):
        kernel = _PILLOW_FILTERS[interpolation]
        return picture.resize(size, kernel, box=box, reducing_gap=float(_GAP))
    return Image.frombuffer(picture.mode, size, _scaled(picture, size, box, interpolation))


def scaled_rgb(
    picture: Image.Image | np.ndarray, size: tuple[int, int], box: Box, interpolation: Kernel
) -> np.ndarray:
    """The same of an RGB picture, or of its pixels [H, W, 3], as uint8 [H, W, 3]. A Pillow picture
    between would take copies that cost as much as the resize."""
    whole = size_of(picture)
    if _is_whole(whole, size, box) and isinstance(picture, np.ndarray):
        return picture
    if _is_whole(whole, size, box) or _is_for_pillow(whole, size, box):
        return np.array(scale_to(as_picture(picture), size, box, interpolation))
    scaled = _scaled(picture, size, box, interpolation)
    return np.frombuffer(scaled, np.uint8).reshape(size[1], size[0], 3)


def size_of(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]


def as_picture(picture: Image.Image | np.ndarray) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def _is_whole(whole: tuple[int, int], size: tuple[int, int], box: Box) -> bool:
    return whole == size and list(box) == [0, 0, *size]


def _is_for_pillow(whole: tuple[int, int], size: tuple[int, int], box: Box) -> bool:
    """Whether whole factors shrink it first, which only Pillow does, or nothing else is there."""
    is_large = whole[0] * whole[1] > LARGE_PIXELS
    fits = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    return fast is None or (is_large and fits >= 2 * _GAP)


def _scaled(
    picture: Image.Image | np.ndarray, size: tuple[int, int], box: Box, interpolation: Kernel
) -> bytes | bytearray:
    """The levels of the resized picture. A large one is resized in bands, with the rows around
    each that the filter looks at: the result is the same but for rounding, and the same memory is
    used again."""
    filters = {
        "bilinear": fast.FilterType.bilinear,
        "bicubic": fast.FilterType.catmull_rom,
        "lanczos": fast.FilterType.lanczos3,
    }
    mode = picture.mode if isinstance(picture, Image.Image) else "RGB"
    width, height = size_of(picture)
    kinds = {"L": "U8", "LA": "U8x2", "RGB": "U8x3"}
    kind = getattr(fast.PixelType, kinds.get(mode, "U8x4"))
    algorithm = fast.ResizeAlg.convolution(filters[interpolation])
    resizer = fast.Resizer()

    def resize(first: int, end: int, rows: int, top: float, bottom: float) -> bytes:
        """The rows `first` to `end` of the picture, from `top` to `bottom` in these, as `rows`."""
        options = fast.ResizeOptions(
            resize_alg=algorithm,
            use_alpha=mode in ("LA", "RGBA"),  # the fourth channel of CMYK is ink
            crop_box=fast.CropBox(box[0], top, box[2] - box[0], bottom - top),
        )
        # Through bytes: its functions for Pillow's own objects read their private memory layout.
        levels = fast.ImageData(width, end - first, kind, _bytes_of_rows(picture, first, end))
        scaled = fast.ImageData(size[0], rows, kind)
        resizer.resize(levels, scaled, options)
        buffer: bytes = scaled.get_buffer()
        return buffer

    if width * height <= 2 * _CACHED_PIXELS:
        return resize(0, height, size[1], box[1], box[3])
    scale = (box[3] - box[1]) / size[1]  # rows of the picture for one row of the result
    around = _REACH * max(1.0, scale) + 1
    rows = max(1, int(_CACHED_PIXELS / width / scale))
    whole = bytearray()
    for row in range(0, size[1], rows):
        count = min(rows, size[1] - row)
        top, bottom = box[1] + row * scale, box[1] + (row + count) * scale
        first = max(0, math.floor(top - around))
        end = min(height, math.ceil(bottom + around))
        # Rounding must not lead out of it.
        whole += resize(first, end, count, top - first, min(bottom - first, end - first))
    return whole


def _bytes_of_rows(picture: Image.Image | np.ndarray, first: int, end: int) -> bytes:
    if isinstance(picture, np.ndarray):
        return picture[first:end].tobytes()
    if (first, end) != (0, picture.height):
        picture = picture.crop((0, first, picture.width, end))
    return picture.tobytes()


def pad_to_square(
    picture: Image.Image, side: int | None, background: tuple[int, ...]
) -> Image.Image:
    """The picture in the middle of a square of `side`; as it is if there is no side."""
    if side is None or picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), background)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
