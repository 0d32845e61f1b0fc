"""A picture whose header has been read and whose pixels have not: what every format has in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from raycap.images.colours import Colours
from raycap.images.pixels import TURNS, Levels

# What Pillow's readers raise for files that are damaged or cut short.
FAULTS = (SyntaxError, ValueError, TypeError, LookupError, OSError)
# Headers may carry XMP and text that Pillow would take an orientation from. Browsers do not, so raycap does not.
_OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class PictureError(Exception):
    """Why bytes do not become a picture; up to its first colon the same for all files with this fault."""


@dataclass
class PictureLimits:
    """How large a picture may be; each check comes before memory for pixels is taken."""

    max_pixels: int
    max_side: int
    max_aspect: float
    max_memory: int
    size: tuple[int, int] = field(default=(0, 0))
    """the size that the header states, once it has been read"""

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
        """Tiles and the like, which decoders allocate whole and which may be larger than their picture."""
        if width * height > self.max_pixels:
            raise PictureError(
                f"a decompression bomb: {name} of {width}x{height} pixels (--reading.max-pixels)"
            )

    def check_memory(self, memory: float) -> None:
        if memory > self.max_memory:
            needed = f"decoding may take {memory / 2**20:.0f} MiB"
            raise PictureError(
                f"too much memory: {needed} (--reading.max-memory is {self.max_memory / 2**20:.0f})"
            )


class PictureFile:
    """One picture. A format is a subclass that says how it is opened, and what decoding it takes."""

    salvageable = False
    """whether the part of a truncated file that is there can be shown"""

    def __init__(self, data: bytes, limits: PictureLimits) -> None:
        self.data = data
        self.limits = limits
        self.levels = Levels()
        self.fraction = 1.0  # of the size that is decoded; `shrink` may make it less
        self.shift = 0.0  # of what is decoded then, in its own pixels
        self.colours = Colours()
        self.picture: Image.Image = self.open()
        if self.picture.info:
            for name in _OTHER_ORIENTATIONS:
                self.picture.info.pop(name, None)
        self.size = self.stored_size()
        limits.check_size(*self.size)

    def open(self) -> Image.Image:
        """The picture, not decoded. Formats whose decoder allocates when it opens check the size here first."""
        raise NotImplementedError

    def stored_size(self) -> tuple[int, int]:
        return self.picture.size

    def shrink(self, enough: tuple[int, int]) -> None:
        """Let the decoder make a smaller picture that is at least `enough`, where the format allows it."""

    def memory(self) -> float:
        """Bytes that decoding takes at its peak, the file included. tests/test_memory.py measures each format."""
        raise NotImplementedError

    def load(self, salvage: bool) -> Image.Image:
        """Decode."""
        try:
            self.picture.load()
        except FAULTS:
            if not (salvage and self.salvageable and isinstance(self.picture, ImageFile)):
                raise
            self.picture.tile = []  # what was decoded before the fault stays; raises again where that is nothing
            self.picture.load()
        return self.picture

    def profile(self) -> Colours:
        """What colours the numbers stand for; asked after decoding."""
        return Colours(profile=self.picture.info.get("icc_profile"))

    def turn(self) -> Image.Transpose | None:
        """The turn that puts the picture upright; asked after decoding."""
        for name in _OTHER_ORIENTATIONS:
            self.picture.info.pop(name, None)
        try:
            return TURNS.get(int(self.picture.getexif().get(ExifTags.Base.Orientation, 1)))
        except FAULTS:
            return None  # EXIF that cannot be read costs the turn, not the picture


def bytes_per_pixel(mode: str) -> int:
    """Of a picture in Pillow's memory, where all colours take four bytes."""
    return {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(mode, 4)


def file_of(data: bytes, reader: Callable[[BytesIO], ImageFile]) -> ImageFile:
    return reader(BytesIO(data))
