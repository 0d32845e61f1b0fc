"""How pictures are read: the options, the outcome, and the one door from bytes to pixels."""

import difflib
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from raycap.errors import UserError
from raycap.images.colours import to_srgb
from raycap.images.formats import READERS, describe_unknown, picture_format
from raycap.images.picture_file import PictureError, PictureFile, PictureLimits
from raycap.images.pixels import (
    SIDEWAYS,
    Box,
    Interpolation,
    Resize,
    in_channels,
    padded,
    placement,
    scale_to,
    turned,
)

# A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 that is still this many times the size wanted.
# Less is hardly faster and softens the picture: benchmarks/decode.py prints the difference.
_MARGIN = 1.5
# What the readers say when bytes run out.
_RUN_OUT = re.compile(
    r"truncat|end of file|EOF|no more images|outside of file|buffer of at least|requires a buffer|only got",
    re.I,
)


# Options of Reading that decide no pixel: with more time or memory, what failed can be tried again.
LIMITS = ("timeout", "max_memory")


@dataclass(frozen=True)
class Square:
    """What every picture becomes: a square of pixels, as the encoder wants it."""

    size: int = 224
    """Side in pixels."""
    resize: Resize = "squash"
    """squash (all of it, distorted), crop (its middle), pad (all of it, with borders)"""
    interpolation: Interpolation = "bicubic"
    """The antialiased filter."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 8192:
            raise UserError(f"size is {self.size}: give a side of 1 to 8192 pixels, such as 224")


@dataclass(frozen=True)
class Reading:
    """Which pictures are accepted, and how they are shown."""

    background: str = "#ffffff"
    """colour behind transparent pictures, and of the bars of pad"""
    formats: tuple[str, ...] = tuple(READERS)
    """formats accepted, by the bytes, not the name"""
    max_bytes: int = 128 * 2**20
    """largest file in bytes"""
    max_pixels: int = 120_000_000
    """largest picture in pixels, by its header"""
    max_memory: int = 640
    """most MiB that decoding one picture may take, with its file. Bytes for each pixel: 1 to 4 as jpeg, png, gif,
    bmp, tiff or ppm (8 more in a progressive jpeg, a float tiff; 6 more in a gif whose frame is smaller than its
    canvas), 13 as webp, 12 to 22 as heif or avif, 30 as jpeg2000 (less where a fraction of its size is enough),
    10 to 28 as jpeg-xl"""
    max_side: int = 50_000
    """longest side in pixels"""
    max_aspect: float = 50
    """longest side over shortest"""
    salvage_truncated: bool = False
    """show what is there of a truncated jpeg, png, gif, bmp or ppm (the rest grey or black), not refuse it"""
    timeout: float = 60.0
    """seconds that reading one picture may take; all but ordinary JPEGs and PNGs are read in child processes, which
    are ended then, or when they take more than `max_memory` (on Linux)"""

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
                f"--reading.background {self.background!r} is no colour: write it like #ffffff or white"
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
    """What became of one picture's bytes: pixels, or the reason why not."""

    pixels: np.ndarray | None
    """uint8 [S, S, 3] RGB; none where it failed"""
    format: str
    """what the bytes are, "" where unknown"""
    width: int
    """as a viewer shows the picture, 0 where unknown"""
    height: int
    error: str
    """"" for none; up to its first colon the same for all files with this fault"""


def read_picture(data: bytes, reading: Reading, square: Square = ANY_SQUARE) -> Picture:
    """The picture as a square of RGB pixels. Never raises: a bad picture costs its own row only."""
    return _read(data, reading, square)


def read_whole(data: bytes, reading: Reading) -> Picture:
    """The picture at its own size [H, W, 3], with the same care; for showing, not for encoding."""
    return _read(data, reading, None)


def _read(data: bytes, reading: Reading, square: Square | None) -> Picture:
    kind = picture_format(data)
    limits = PictureLimits(
        reading.max_pixels, reading.max_side, reading.max_aspect, reading.max_memory * 2**20
    )
    interpolation = square.interpolation if square else ANY_SQUARE.interpolation
    try:
        _check_bytes(data, kind, reading)
        opened = READERS[kind](data, limits)
        size = opened.size
        wanted, box = (
            placement(size, square.size, square.resize) if square else (size, (0.0, 0.0, *size))
        )
        decoded, box = _decode(opened, wanted, box, reading.salvage_truncated)
        channels, box = in_channels(decoded, opened.levels, wanted, box)
        scaled = scale_to(channels, wanted, box, interpolation)
        background = ImageColor.getrgb(reading.background)[:3]
        upright = turned(_on(background, scaled, opened), turn := opened.turn())
        shown = size[::-1] if turn in SIDEWAYS else size
        return Picture(
            np.array(padded(upright, square.size if square else None, background)),
            kind,
            *shown,
            "",
        )
    except PictureError as fault:
        error = str(fault)
    except Exception as fault:  # noqa: BLE001 - decoders raise anything; it becomes the row's reason
        error = _reason(fault, data, kind, reading)
    claimed = (
        limits.size if max(limits.size) < 2**31 else (0, 0)
    )  # a header may claim what no table can hold
    return Picture(None, kind, *claimed, error)


def _check_bytes(data: bytes, kind: str, reading: Reading) -> None:
    """Refuse what need not be opened to be refused."""
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
    opened: PictureFile, wanted: tuple[int, int], box: Box, salvage: bool
) -> tuple[Image.Image, Box]:
    """The pixels, at a fraction of the size where the format allows it and that is enough; `box` in it."""
    size = opened.size
    enough = [
        math.ceil(_MARGIN * wanted[axis] * size[axis] / (box[axis + 2] - box[axis]))
        for axis in (0, 1)
    ]
    opened.shrink((enough[0], enough[1]))
    memory = opened.memory()
    if wanted == size:
        memory += (
            12 * size[0] * size[1]
        )  # kept whole: copies in other channels, turned, and as an array
    opened.limits.check_memory(memory)
    decoded = opened.load(salvage)
    left, top, right, bottom = (edge * opened.fraction + opened.shift for edge in box)
    return decoded, (left, top, min(right, decoded.width), min(bottom, decoded.height))


def _on(background: tuple[int, ...], picture: Image.Image, opened: PictureFile) -> Image.Image:
    """In sRGB, with transparent parts showing the background, which is in sRGB already."""
    if picture.mode not in ("LA", "RGBA"):
        return to_srgb(picture, opened.profile())
    colours = to_srgb(picture.convert("L" if picture.mode == "LA" else "RGB"), opened.profile())
    shown = Image.new("RGB", picture.size, background)
    shown.paste(colours, mask=picture.getchannel("A"))
    return shown


def _reason(fault: Exception, data: bytes, kind: str, reading: Reading) -> str:
    """A fault that a decoder raised, with a constant head."""
    if isinstance(fault, MemoryError):
        return f"too little memory for this {kind} (--reading.max-pixels)"
    message = str(fault)
    # A few of Pillow's readers also ask its own limit, where the process has one.
    if isinstance(fault, Image.DecompressionBombError):
        return f"a decompression bomb: {message.split(',')[0]}"
    lacking = kind == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if not lacking and not _RUN_OUT.search(message):
        return f"broken {kind}: {message[:200]}" if message else f"broken {kind}"
    if READERS[kind].salvageable and not reading.salvage_truncated:
        return f"truncated {kind}: --reading.salvage-truncated shows what is there"
    return f"truncated {kind}"
