"""The base of all formats: a picture whose header is read and whose pixels are not decoded yet."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from raycap.images.colours import Colours
from raycap.images.pixels import TURNS, Levels

# What Pillow's readers raise for damaged or truncated files.
FAULTS = (SyntaxError, ValueError, TypeError, LookupError, OSError)
# Pillow would take an orientation from XMP and text in headers. Browsers do not, nor does raycap.
_OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class PictureError(Exception):
    """Why a picture cannot be read. The text up to the first colon is the same for all such
    files."""


@dataclass
class PictureLimits:
    """How large a picture may be; checked before memory for pixels is allocated."""

    max_pixels: int
    max_side: int
    max_aspect: float
    max_memory: int
    size: tuple[int, int] = (0, 0)  # that the header states, once it is read

    def check_size(self, width: int, height: int) -> None:
        self.size = width, height
        named = f"{width}x{height} pixels"
        if width * height > self.max_pixels:
            raise PictureError(f"a decompression bomb: {named} (--reading.max-pixels)")
        if max(width, height) > self.max_side:
            raise PictureError(f"too long a side: {named} (--reading.max-side)")
        if max(width, height) > self.max_aspect * min(width, height):
            raise PictureError(f"too long and thin: {named} (--reading.max-aspect)")

    def check_part(self, name: str, width: int, height: int) -> None:
        """Check tiles and the like, which decoders allocate and which may be larger than the
        picture."""
        if width * height > self.max_pixels:
            raise PictureError(
                f"a decompression bomb: {name} of {width}x{height} pixels (--reading.max-pixels)"
            )

    def check_memory(self, memory: float) -> None:
        if memory > self.max_memory:
            needed = f"decoding may take {memory / 2**20:.0f} MiB"
            raise PictureError(
                f"too much memory: {needed} (--reading.max-memory is "
                f"{self.max_memory / 2**20:.0f})"
            )


class PictureFile:
    """One picture. Each format is a subclass that opens it and knows how much memory decoding
    takes."""

    salvageable = False  # whether the start of a truncated file can be shown

    def __init__(self, data: bytes, limits: PictureLimits) -> None:
        self.data = data
        self.limits = limits
        self.levels = Levels()
        self.fraction = 1.0  # of the size at which it is decoded; `shrink` may reduce it
        self.shift = 0.0  # of the decoded picture, in its own pixels
        self.colours = Colours()
        self.picture: Image.Image = self.open()
        if self.picture.info:
            for name in _OTHER_ORIENTATIONS:
                self.picture.info.pop(name, None)
        self.size = self.stored_size()
        limits.check_size(*self.size)

    def open(self) -> Image.Image:
        """The picture, not decoded. If its decoder allocates on opening, the size is checked
        here."""
        raise NotImplementedError

    def stored_size(self) -> tuple[int, int]:
        return self.picture.size

    def shrink(self, enough: tuple[int, int]) -> None:
        """Decode at a smaller size that is at least `enough`, if the format allows it."""

    def memory(self) -> float:
        """Peak memory of decoding in bytes, with the file. tests/test_memory.py measures each
        format."""
        raise NotImplementedError

    def is_plain_jpeg(self) -> bool:
        """Whether it is a JPEG that every decoder shows in the same way, by its header."""
        return False

    def decode_rgb(self) -> NDArray[np.uint8] | None:
        """The pixels [H, W, 3] of an ordinary picture in RGB, if the format has a fast way to
        them; None: use `load`."""
        return None

    def load(self, salvage: bool) -> Image.Image:
        """Decode."""
        try:
            self.picture.load()
        except FAULTS:
            if not (salvage and self.salvageable and isinstance(self.picture, ImageFile)):
                raise
            # Keeps what was decoded before the error; raises again if that is nothing.
            self.picture.tile = []
            self.picture.load()
        return self.picture

    def profile(self) -> Colours:
        """The meaning of its colours; call it after decoding."""
        return Colours(profile=self.picture.info.get("icc_profile"))

    def turn(self) -> Image.Transpose | None:
        """The rotation or reflection that puts the picture upright; call it after decoding."""
        for name in _OTHER_ORIENTATIONS:
            self.picture.info.pop(name, None)
        try:
            return TURNS.get(int(self.picture.getexif().get(ExifTags.Base.Orientation, 1)))
        except FAULTS:
            return None  # without readable EXIF the picture is shown as it is stored


def bytes_per_pixel(mode: str) -> int:
    """Of a picture in Pillow's memory, where a colour always takes four bytes."""
    return {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(mode, 4)


Box = tuple[bytes, int, int]


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes of an ISO media file from `start` to `end`: kind, start and end of the content."""
    while start + 8 <= end:
        length = int.from_bytes(data[start : start + 4], "big")
        kind, content = data[start + 4 : start + 8], start + 8
        if length == 1:
            length, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        if length == 0:
            length = end - start
        yield kind, content, min(end, start + length)
        if length < content - start:
            return
        start += length
