"""How pictures are read: the options, the outcome, and the one door from bytes to pixels."""

import difflib
import re
import struct
from dataclasses import dataclass
from io import BytesIO
from math import ceil

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageColor
from PIL.ImageFile import ImageFile

from raycap.images.formats import (
    READERS,
    Unreadable,
    canvas_of_webp,
    describe_stranger,
    picture_format,
    scans_of_jpeg,
)
from raycap.images.pixels import (
    SIDEWAYS,
    TURNS,
    Box,
    Interpolation,
    Resize,
    flatten,
    padded,
    placement,
    scale_to,
    to_srgb,
    turned,
)
from raycap.refusal import Refusal

# A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 that is still this many times the size wanted.
# Less is hardly faster and softens the picture: benchmarks/decode.py prints the difference.
_JPEG_MARGIN = 1.5
# Progressive photos have about ten scans. Each scan may be a few bytes that cost a pass over all pixels.
_JPEG_SCANS = 100
# What the readers say when bytes run out.
_RUN_OUT = re.compile(
    r"truncat|end of file|EOF|no more images|outside of file|buffer of at least|requires a buffer|only got", re.I
)
_SALVAGEABLE = ("jpeg", "png", "gif", "bmp", "ppm")
_FAULTS = (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error)


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
            raise Refusal(f"size is {self.size}: give a side of 1 to 8192 pixels, such as 224")


@dataclass(frozen=True)
class Reading:
    """Which pictures are accepted, and how they are shown."""

    background: str = "#ffffff"
    """colour behind transparent pictures, and of the bars of pad"""
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif")
    """formats accepted, by the bytes, not the name; jpeg2000 and ppm can be added"""
    max_bytes: int = 128 * 2**20
    """largest file in bytes"""
    max_pixels: int = 120_000_000
    """largest picture in pixels, by its header; decoding takes up to 10 bytes for each"""
    max_side: int = 50_000
    """longest side in pixels"""
    max_aspect: float = 50
    """longest side over shortest"""
    salvage_truncated: bool = False
    """show what is there of a truncated jpeg, png, gif, bmp or ppm (the rest grey or black), not refuse it"""
    timeout: float = 60.0
    """seconds that reading one picture may take"""
    max_memory: int = 600 * 2**20
    """bytes of memory that reading one picture may take, where it is read in a process of its own (on Linux): all
    but ordinary JPEGs and PNGs are"""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side", "max_aspect"):
            if getattr(self, name) < 1:
                raise Refusal(f"--reading.{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if not 0 < self.timeout <= 86_400:
            raise Refusal(f"--reading.timeout is {self.timeout}: give seconds above 0, at most a day")
        if self.max_memory < 16 * 2**20:
            raise Refusal(f"--reading.max-memory is {self.max_memory}: give bytes, at least {16 * 2**20}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise Refusal(
                f"--reading.background {self.background!r} is no colour: write it like #ffffff or white"
            ) from None
        for name in self.formats:
            if name not in READERS:
                near = difflib.get_close_matches(name, READERS, 1)
                hint = f", perhaps you meant {near[0]}" if near else ""
                raise Refusal(f"--reading.formats {name!r} is unknown{hint}; known are {', '.join(READERS)}")


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
    size = (0, 0)
    interpolation = square.interpolation if square else ANY_SQUARE.interpolation
    try:
        _check_bytes(data, kind, reading)
        opened = _open(data, kind, reading)
        size = opened.size
        _check_size(size, reading)
        wanted, box = placement(size, square.size, square.resize) if square else (size, (0.0, 0.0, *size))
        decoded, box = _decode(opened, size, wanted, box, reading.salvage_truncated and kind in _SALVAGEABLE)
        turn = None if kind == "tiff" else TURNS.get(_orientation(opened))  # Pillow turns TIFFs itself
        size = size[::-1] if turn in SIDEWAYS else size
        background = ImageColor.getrgb(reading.background)[:3]
        scaled = scale_to(flatten(decoded, background), wanted, box, interpolation)
        upright = turned(to_srgb(scaled, opened.info.get("icc_profile")), turn)
        return Picture(np.array(padded(upright, square.size if square else None, background)), kind, *size, "")
    except Unreadable as fault:
        error = str(fault)
    except Exception as fault:  # noqa: BLE001 - decoders raise anything; it becomes the row's reason
        error = _reason(fault, data, kind, reading)
    claimed = size if max(size) < 2**31 else (0, 0)  # a corrupted header may claim what no table can hold
    return Picture(None, kind, *claimed, error)


def _check_bytes(data: bytes, kind: str, reading: Reading) -> None:
    """Refuse what need not be opened to be refused."""
    if not data:
        raise Unreadable("zero bytes")
    if len(data) > reading.max_bytes:
        raise Unreadable(f"too many bytes: {len(data)} (--reading.max-bytes)")
    if not kind:
        raise Unreadable(f"not a picture: {describe_stranger(data)}")
    if kind not in READERS:
        raise Unreadable(f"format {kind!r} cannot be read")
    if kind not in reading.formats:
        raise Unreadable(f"format {kind!r} is not in the allow-list (--reading.formats)")
    if kind == "jpeg" and scans_of_jpeg(data) > _JPEG_SCANS:
        raise Unreadable("a scan bomb: more passes over its pixels than any photo has")


def _check_size(size: tuple[int, int], reading: Reading) -> None:
    """Refuse by the header, before memory for pixels is taken."""
    named = f"{size[0]}x{size[1]} pixels"
    if size[0] * size[1] > reading.max_pixels:
        raise Unreadable(f"a decompression bomb: {named} (--reading.max-pixels)")
    if max(size) > reading.max_side:
        raise Unreadable(f"too long a side: {named} (--reading.max-side)")
    if max(size) > reading.max_aspect * min(size):
        raise Unreadable(f"too long and thin: {named} (--reading.max-aspect)")


def _open(data: bytes, kind: str, reading: Reading) -> ImageFile:
    canvas = canvas_of_webp(data) if kind == "webp" else None
    if canvas:
        _check_size(canvas, reading)
    # An end marker of our own lets the decoder finish a JPEG that lacks its own, and does nothing to whole ones.
    ending = b"\xff\xd9" if reading.salvage_truncated and kind == "jpeg" else b""
    return READERS[kind](BytesIO(data + ending))


def _decode(
    opened: ImageFile, size: tuple[int, int], wanted: tuple[int, int], box: Box, salvage: bool
) -> tuple[Image.Image, Box]:
    """The pixels, of a JPEG at a fraction of its size where that is enough, and `box` in that fraction."""
    enough = [ceil(_JPEG_MARGIN * wanted[axis] * size[axis] / (box[axis + 2] - box[axis])) for axis in (0, 1)]
    drafted = opened.draft(None, (enough[0], enough[1]))
    if drafted:
        fraction = drafted[1][2] / size[0]
        box = (box[0] * fraction, box[1] * fraction, box[2] * fraction, box[3] * fraction)
    try:
        opened.load()
    except _FAULTS:
        if not salvage:
            raise
        opened.tile = []  # what was decoded before the fault stays; raises again where that is nothing
        opened.load()
    if opened.mode == "CMYK" and opened.format == "JPEG" and "adobe" not in opened.info:
        return ImageChops.invert(opened), box  # Pillow takes all for Adobe's, which store ink inverted
    return opened, box


def _orientation(opened: ImageFile) -> int:
    try:
        return int(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except _FAULTS:
        return 1  # EXIF that cannot be read costs the turn, not the picture


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
    if kind in _SALVAGEABLE and not reading.salvage_truncated:
        return f"truncated {kind}: --reading.salvage-truncated shows what is there"
    return f"truncated {kind}"
