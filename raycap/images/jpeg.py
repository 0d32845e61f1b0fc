"""JPEG and JPEG 2000, which can be decoded at a fraction of their size.

A JPEG is opened by Pillow. The pixels of an ordinary one are decoded by simplejpeg, if it is
there: the same libjpeg-turbo and the same pixels, without the copies that Pillow makes. What
simplejpeg finds any fault with is decoded by Pillow, and gets its reason there.
"""

import math
import re
import struct
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from raycap.images.colours import stays_as_it_is
from raycap.images.picture_file import FAULTS, PictureError, PictureFile, boxes, bytes_per_pixel
from raycap.images.pixels import LARGE_PIXELS

# Progressive photos have about ten scans. A scan may be a few bytes that cost a pass over all
# pixels.
_MOST_SCANS = 100
# The marker of a segment; the other markers occur within scans.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_END = b"\xff\xd9"
# Of the first channel, across and down, where the others have (1, 1): 4:4:4, 4:2:2, 4:2:0.
_USUAL_SAMPLING = ((1, 1), (2, 1), (2, 2))
# Bytes that every scan can continue with. The restart markers are for decoders that wait for one.
_NOISE = bytes(range(7, 247, 5)) * 16
_MORE_SCAN = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))


def _fast_decoder() -> Any:
    """A decoder without Pillow's copies."""
    try:
        import simplejpeg
    except ImportError:
        return None  # no wheel for this platform: Pillow's is slower
    return simplejpeg


fast = _fast_decoder()


class Jpeg(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        self._read_markers()
        if self._scans > _MOST_SCANS:
            raise PictureError("a scan bomb: more passes over its pixels than any photo has")
        self._shrunk_to: tuple[int, int] | None = None
        return JpegImageFile(BytesIO(self.data))

    def _read_markers(self) -> None:
        """Count the scans of the first picture in the file: phones append videos."""
        self._scans = self._first_scan = 0
        self._coefficients = 0.0  # bytes per pixel that a decoder of several scans keeps
        position, components, sequential = 2, b"", False
        refined: set[int] = set()  # the components whose last details are stored
        while found := _MARKER.search(self.data, position):
            marker, start = found[1][0], found.end()
            length = int.from_bytes(self.data[start : start + 2], "big")
            if marker == 0xD9:  # end of picture
                break
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
                sequential = marker in (0xC0, 0xC1)
                components = self.data[start + 7 : start + 8]
                sampling = list(self.data[start + 9 : start + length : 3])
                across = [byte >> 4 for byte in sampling]
                down = [byte & 15 for byte in sampling]
                areas = sum(x * y for x, y in zip(across, down, strict=True))
                largest = max(across, default=1) * max(down, default=1)
                self._coefficients = 2 * areas / max(1, largest)
            if marker == 0xDA:  # start of scan
                self._scans += 1
                self._first_scan = self._first_scan or start
                count = self.data[start + 2] if start + 2 < len(self.data) else 0
                end = self.data[start + 4 + 2 * count : start + 6 + 2 * count]
                last, bits = end.ljust(2, b"\xff")
                if last == 63 and not bits & 15:
                    refined.update(self.data[start + 3 : start + 3 + 2 * count : 2])
                if sequential and self.data[start + 2 : start + 3] == components:
                    # One scan holds everything, and the decoder reads no other.
                    self._coefficients = 0
                    break
            position = start + length
        self._lacks_scans = not sequential and bool(components) and len(refined) < components[0]

    def shrink(self, enough: tuple[int, int]) -> None:
        self._shrunk_to = enough
        assert isinstance(self.picture, JpegImageFile)
        drafted = self.picture.draft(None, enough)
        if drafted:
            self.fraction = drafted[1][2] / self.size[0]

    def memory(self) -> float:
        stored = self.size[0] * self.size[1] * self._coefficients
        decoded = self.picture.width * self.picture.height * bytes_per_pixel(self.picture.mode)
        return len(self.data) + stored + decoded

    def is_plain_jpeg(self) -> bool:
        """Upright, in sRGB, of three channels in the usual sampling, in one scan, with nothing
        behind it, and not very large."""
        picture, info = self.picture, self.picture.info
        assert isinstance(picture, JpegImageFile)
        if picture.mode != "RGB" or picture.width * picture.height > LARGE_PIXELS:
            return False
        names = [layer[0] for layer in picture.layer]
        sampling = [layer[1:3] for layer in picture.layer]
        return (
            picture.bits == 8
            and self._scans == 1
            and "progressive" not in info
            and info.get("adobe_transform", 1) == 1
            and names in ([1, 2, 3], [0, 1, 2])
            and sampling[0] in _USUAL_SAMPLING
            and sampling[1:] == [(1, 1), (1, 1)]
            and self.data.find(_END, self._first_scan) == len(self.data) - len(_END)
            and self.turn() is None
            and stays_as_it_is(self.profile())
        )

    def decode_rgb(self) -> NDArray[np.uint8] | None:
        width, height = self.picture.size
        is_ordinary = self.picture.mode == "RGB" and not self._lacks_scans
        if fast is None or not is_ordinary or width * height > LARGE_PIXELS:
            return None
        factor = 1 if self.picture.size == self.size else 2  # at least
        try:
            decoded: NDArray[np.uint8] = fast.decode_jpeg(
                self.data, min_width=width, min_height=height, min_factor=factor
            )
        except ValueError:  # any fault, however small
            return None
        return decoded if decoded.shape == (height, width, 3) else None

    def load(self, salvage: bool) -> Image.Image:
        if salvage:
            # With an end marker the decoder can finish a JPEG that lacks one.
            self.picture = JpegImageFile(BytesIO(self.data + _END))
            if self._shrunk_to:
                self.shrink(self._shrunk_to)
        picture = super().load(salvage)
        if not salvage and (self._lacks_scans or _may_be_cut(picture)) and self._is_cut():
            raise EOFError("truncated")
        if picture.mode == "CMYK" and "adobe" not in picture.info:
            # Pillow inverts all CMYK pictures, as if Adobe, which inverts ink, had written them.
            return ImageChops.invert(picture)
        return picture

    def _is_cut(self) -> bool:
        """Whether the last scan ends before its last block.

        Then a decoder shows bytes that are added there; after a whole scan it skips them. A
        progressive JPEG that lacks only details counts as whole: it is less sharp.
        """
        end = _end_of_picture(self.data)
        longer = self.data[:end] + _MORE_SCAN + _END
        return _small(self.data) != _small(longer)


def _may_be_cut(picture: Image.Image) -> bool:
    """Whether the last pixels have the middle level in all channels, as missing blocks do."""
    width, height = picture.size
    corner = picture.crop((max(0, width - 2), max(0, height - 2), width, height)).tobytes()
    return all(126 <= level <= 129 for level in corner)


def _end_of_picture(data: bytes) -> int:
    """The position of the first end marker after a scan."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        if found[1] == b"\xd9" and scans:
            return found.start()
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return len(data)


def _small(data: bytes) -> bytes:
    """The pixels at an eighth of the size."""
    picture = JpegImageFile(BytesIO(data))
    picture.draft(None, (1, 1))
    try:
        picture.load()
    except FAULTS:
        picture.tile = []
        picture.load()
    return picture.tobytes()


class Jpeg2000(PictureFile):
    def open(self) -> Image.Image:
        self._read_codestream(_codestream(self.data))
        return Jpeg2KImageFile(BytesIO(self.data))

    def _read_codestream(self, stream: bytes) -> None:
        """Read the sizes of the picture, its tiles and their parts: all are allocated before
        decoding."""
        if len(stream) < 42 or stream[:4] != b"\xff\x4f\xff\x51":
            raise EOFError("end of file in the header")
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack(
            ">8I", stream[8:40]
        )
        self._edges = left, top, right, bottom
        width, height = right - left, bottom - top
        if min(width, height, tile_width, tile_height) < 1:
            raise PictureError("broken jpeg2000: no size")
        self.limits.check_size(width, height)
        tile_width, tile_height = min(tile_width, right), min(tile_height, bottom)
        self._components = int.from_bytes(stream[40:42], "big")
        if self._components > 4:
            raise PictureError(f"broken jpeg2000: {self._components} channels")
        columns = math.ceil((right - tile_left) / tile_width)
        rows = math.ceil((bottom - tile_top) / tile_height)
        self._tiles = columns * rows
        self._tile = min(tile_width, width) * min(tile_height, height)
        depths = [(byte & 0x7F) + 1 for byte in stream[42 : 42 + 3 * self._components : 3]]
        # Bytes per sample: as decoded, and as handed to Pillow.
        self._sample = 4 + (2 if max(depths, default=8) > 8 else 1)
        self._halvings, self._blocks = 0, 0.0  # how often it can be halved; its code blocks
        self._read_coding_style(stream, width * height)
        self._reduce = 0  # how often it is halved

    def _read_coding_style(self, stream: bytes, pixels: int) -> None:
        position = 4 + int.from_bytes(stream[4:6], "big")
        while position + 4 <= len(stream) and stream[position] == 0xFF:
            marker = stream[position + 1]
            if marker == 0x90:  # start of the first tile
                return
            length = int.from_bytes(stream[position + 2 : position + 4], "big")
            if marker == 0x52 and length >= 12:
                style = stream[position + 4 : position + 2 + length]
                self._halvings = style[5]
                width, height = style[6] + 2, style[7] + 2  # of a code block, as powers of two
                precincts = style[10:] if style[0] & 1 else b""
                for byte in precincts:
                    width = min(width, max(0, (byte & 15) - 1))
                    height = min(height, max(0, (byte >> 4) - 1))
                self._blocks = 1.4 * pixels / 2 ** (width + height)
                return
            position += 2 + length

    def shrink(self, enough: tuple[int, int]) -> None:
        fits = min(self.size[0] / enough[0], self.size[1] / enough[1])
        # One halving less than possible: edges move by up to half a pixel of the smaller picture.
        while self._reduce < self._halvings and fits >= 4:
            fits /= 2
            self._reduce += 1
        self.fraction = 1 / 2**self._reduce
        # Wavelets keep the first of each group of pixels, not their middle.
        self.shift = (1 - self.fraction) / 2
        # Pillow rounds reduced sizes down, OpenJPEG rounds edges up, and Pillow rejects that.
        left, top, right, bottom = (-(-edge // 2**self._reduce) for edge in self._edges)
        assert isinstance(self.picture, Jpeg2KImageFile)
        [(decoder, _, offset, options)] = self.picture.tile
        assert isinstance(options, tuple)
        self.picture._size = right - left, bottom - top
        options = (options[0], self._reduce, *options[2:])
        self.picture.tile = [ImageFile._Tile(decoder, (0, 0, *self.picture.size), offset, options)]

    def memory(self) -> float:
        part = float(4**self._reduce)
        tile = self._tile / part * self._components * self._sample
        picture = self.size[0] * self.size[1] / part * bytes_per_pixel(self.picture.mode)
        # The sizes of OpenJPEG's structures for code blocks and tiles.
        records = self._blocks * self._components * 400
        records += self._tiles * (6000 + 1200 * self._components)
        return float(2 * len(self.data) + 1.05 * (tile + picture) + records)


def _codestream(data: bytes) -> bytes:
    """The start of the codestream, within boxes or without."""
    if data[:2] != b"\xff\x4f":
        for kind, start, _ in boxes(data, 0, len(data)):
            if kind == b"jp2c":
                return data[start : start + 2**16]
    return data[: 2**16]
