"""Reads a picture: its options, and the way from bytes to RGB pixels or a reason."""

import difflib
import io
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from raycap.errors import UserError
from raycap.images.colours import stays_as_it_is, to_srgb
from raycap.images.formats import READERS, describe_unknown, picture_format
from raycap.images.intake import Encoded, Fit, Intake, Square, SquareOrJpeg
from raycap.images.picture_file import PictureError, PictureFile, PictureLimits
from raycap.images.pixels import (
    SIDEWAYS,
    Box,
    as_picture,
    pad_to_square,
    resize_plan,
    scale_to,
    scaled_rgb,
    size_of,
    to_eight_bits,
)

# A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 that is still this many times the size
# wanted. Less is hardly faster, and softens the picture: benchmarks/decode.py prints the
# difference.
_MARGIN = 1.5
# Messages of readers that run out of bytes.
_RUN_OUT = re.compile(
    r"truncat|end of file|EOF|no more images|outside of file|buffer of at least"
    r"|requires a buffer|only got",
    re.I,
)
# Options of Reading that change no pixel: with other values, failed pictures can be tried again.
LIMITS = ("timeout", "max_memory")


@dataclass(frozen=True)
class Reading:
    """Which pictures are accepted, and how they become pixels."""

    background: str = "#ffffff"
    """colour behind transparent pictures, and of the borders of pad"""
    formats: tuple[str, ...] = tuple(READERS)
    """accepted formats; recognised by the bytes, not the name"""
    max_bytes: int = 128 * 2**20
    """maximum size of a file in bytes"""
    max_pixels: int = 120_000_000
    """maximum number of pixels, by the header"""
    max_memory: int = 640
    """maximum MiB for decoding one picture, with its file. Bytes per pixel: 1 to 4 for jpeg, png,
    gif, bmp, tiff and ppm (8 more for a progressive jpeg or a float tiff; 6 more for a gif whose
    frame is smaller than its canvas), 13 for webp, 12 to 22 for heif and avif, 30 for jpeg2000
    (less if it is decoded at a fraction of its size), 10 to 28 for jpeg-xl"""
    max_side: int = 50_000
    """maximum length of a side in pixels"""
    max_aspect: float = 50
    """maximum ratio of the sides"""
    salvage_truncated: bool = False
    """accept truncated jpeg, png, gif, bmp and ppm files; the missing part is grey or black"""
    timeout: float = 60.0
    """seconds for reading one picture. All but ordinary JPEGs and PNGs are read in child
    processes, which are ended after this time, or when they take more than `max_memory` (on
    Linux)"""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_memory", "max_side", "max_aspect"):
            limit = getattr(self, name)
            if not (math.isfinite(limit) and limit >= 1):
                option = f"--reading.{name.replace('_', '-')}"
                raise UserError(f"{option} is {limit}: it must be a number that is at least 1")
        if not 0 < self.timeout <= 86_400:
            raise UserError(
                f"--reading.timeout is {self.timeout}: give seconds above 0, at most a day"
            )
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise UserError(
                f"--reading.background {self.background!r} is no colour: write it like #ffffff or "
                "white"
            ) from None
        for name in self.formats:
            if name not in READERS:
                near = difflib.get_close_matches(name, READERS, 1)
                hint = f", perhaps you meant {near[0]}" if near else ""
                raise UserError(
                    f"--reading.formats {name!r} is unknown{hint}; known are {', '.join(READERS)}"
                )


ANY_SQUARE = Square()


@dataclass(frozen=True)
class Picture:
    """The result of reading a picture: pixels, or the reason why there are none."""

    pixels: np.ndarray | None
    """uint8 in RGB: [S, S, 3] for a Square, [H, W, 3] for a Fit; the bytes of a file [N] for
    Encoded, and for a plain JPEG with SquareOrJpeg. None if reading failed"""
    format: str
    """the format of the bytes, "" if unknown"""
    width: int
    """as a viewer shows the picture; 0 if unknown"""
    height: int
    error: str
    """"" for none; the text up to its first colon is the same for all pictures with this fault"""


def read_picture(data: bytes, reading: Reading, intake: Intake = ANY_SQUARE) -> Picture:
    """The picture as the intake says. Never raises: a bad picture has an error instead."""
    return _read(data, reading, intake)


def read_whole(data: bytes, reading: Reading) -> Picture:
    """The picture at its own size [H, W, 3], with the same checks; for display, not for
    encoders."""
    return _read(data, reading, None)


def _read(data: bytes, reading: Reading, intake: Intake | None) -> Picture:
    kind = picture_format(data)
    limits = PictureLimits(
        reading.max_pixels, reading.max_side, reading.max_aspect, reading.max_memory * 2**20
    )
    side = intake.size if isinstance(intake, Square) else None
    interpolation = intake.interpolation if isinstance(intake, Square | Fit) else "bicubic"
    try:
        _check_bytes(data, kind, reading)
        file = READERS[kind](data, limits)
        if isinstance(intake, SquareOrJpeg) and intake.resize != "pad" and file.is_plain_jpeg():
            limits.check_memory(file.memory())
            return Picture(np.frombuffer(data, np.uint8), kind, *file.size, "")
        wanted, box = _plan(file.size, intake)
        wanted_sideways = wanted
        if isinstance(intake, Fit):  # the grid is that of the upright picture
            high, wide = intake.size_of(*file.size[::-1])
            wanted_sideways = wide, high
        enough = max(wanted[0], wanted_sideways[0]), max(wanted[1], wanted_sideways[1])
        decoded, box = _decode(file, enough, box, intake, reading.salvage_truncated)
        turn = file.turn()
        is_sideways = turn in SIDEWAYS
        if is_sideways:
            wanted = wanted_sideways
        eight_bit: Image.Image | np.ndarray = decoded
        if isinstance(decoded, Image.Image):
            eight_bit, box = to_eight_bits(decoded, file.levels, wanted, box)
        is_rgb = not isinstance(eight_bit, Image.Image) or eight_bit.mode == "RGB"
        is_padded = side is not None and wanted != (side, side)
        if is_rgb and stays_as_it_is(file.profile()) and turn is None and not is_padded:
            pixels = scaled_rgb(eight_bit, wanted, box, interpolation)
        else:
            scaled = scale_to(as_picture(eight_bit), wanted, box, interpolation)
            background = ImageColor.getrgb(reading.background)[:3]
            upright = _flatten(scaled, file, background)
            if turn is not None:
                upright = upright.transpose(turn)
            pixels = np.array(pad_to_square(upright, side, background))
        shown = file.size[::-1] if is_sideways else file.size
        if isinstance(intake, Encoded):
            pixels = _encode(pixels, intake)
        return Picture(pixels, kind, *shown, "")
    except PictureError as fault:
        error = str(fault)
    except Exception as fault:  # noqa: BLE001 - decoders raise anything
        error = _reason(fault, data, kind, reading)
    # A header may state sizes that no table can hold.
    width, height = limits.size if max(limits.size) < 2**31 else (0, 0)
    return Picture(None, kind, width, height, error)


def _plan(size: tuple[int, int], intake: Intake | None) -> tuple[tuple[int, int], Box]:
    """The size to scale to, and the box of the picture to take."""
    if isinstance(intake, Square):
        return resize_plan(size, intake.size, intake.resize)
    return (size if intake is None else intake.size_of(*size)), (0, 0, *size)


def _encode(pixels: np.ndarray, intake: Encoded) -> np.ndarray:
    """The bytes of a file with these pixels. It is made of pixels alone, so that no metadata of
    the original gets into it."""
    file = io.BytesIO()
    if intake.format == "jpeg":
        Image.fromarray(pixels).save(file, "jpeg", quality=intake.quality)
    else:
        Image.fromarray(pixels).save(file, "png", compress_level=1)
    return np.frombuffer(file.getvalue(), np.uint8)


def _check_bytes(data: bytes, kind: str, reading: Reading) -> None:
    """Raises PictureError for what can be rejected without opening it."""
    if not data:
        raise PictureError("zero bytes")
    if len(data) > reading.max_bytes:
        raise PictureError(f"too many bytes: {len(data)} (--reading.max-bytes)")
    if not kind:
        raise PictureError(f"not a picture: {describe_unknown(data)}")
    if kind not in READERS:
        raise PictureError(f"format {kind!r} cannot be read")
    if kind not in reading.formats:
        raise PictureError(f"format {kind!r} is not in the allow-list (--reading.formats)")


def _decode(
    file: PictureFile, wanted: tuple[int, int], box: Box, intake: Intake | None, salvage: bool
) -> tuple[Image.Image | np.ndarray, Box]:
    """The decoded picture, or its pixels in RGB [H, W, 3], and `box` in it; at a fraction of its
    size if the format allows it."""
    width, height = file.size
    left, top, right, bottom = box
    file.shrink(
        (
            math.ceil(_MARGIN * wanted[0] * width / (right - left)),
            math.ceil(_MARGIN * wanted[1] * height / (bottom - top)),
        )
    )
    memory = file.memory()
    if wanted == file.size or not isinstance(intake, Square):
        # It may be large then, and is copied: other channels, upright, as an array.
        memory += 12 * wanted[0] * wanted[1]
    file.limits.check_memory(memory)
    rgb = file.decode_rgb()
    decoded = file.load(salvage) if rgb is None else rgb
    left, top, right, bottom = (edge * file.fraction + file.shift for edge in box)
    width, height = size_of(decoded)
    return decoded, (left, top, min(right, width), min(bottom, height))


def _flatten(picture: Image.Image, file: PictureFile, background: tuple[int, ...]) -> Image.Image:
    """In sRGB, with the background (sRGB too) behind transparent parts."""
    if picture.mode not in ("LA", "RGBA"):
        return to_srgb(picture, file.profile())
    colours = to_srgb(picture.convert("L" if picture.mode == "LA" else "RGB"), file.profile())
    flat = Image.new("RGB", picture.size, background)
    flat.paste(colours, mask=picture.getchannel("A"))
    return flat


def _reason(fault: Exception, data: bytes, kind: str, reading: Reading) -> str:
    """The reason for an exception of a decoder; its start is the same for all such pictures."""
    if isinstance(fault, MemoryError):
        return f"too little memory for this {kind} (--reading.max-pixels)"
    message = str(fault)
    # Some of Pillow's readers check its own limit, if the process has one.
    if isinstance(fault, Image.DecompressionBombError):
        return f"a decompression bomb: {message.split(',')[0]}"
    is_cut = kind == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if not is_cut and not _RUN_OUT.search(message):
        return f"broken {kind}: {message[:200]}" if message else f"broken {kind}"
    if READERS[kind].salvageable and not reading.salvage_truncated:
        return f"truncated {kind}: --reading.salvage-truncated shows what is there"
    return f"truncated {kind}"
