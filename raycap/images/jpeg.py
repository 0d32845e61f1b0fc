"""JPEG and JPEG 2000: both can be decoded at a fraction of their size."""

import re
import struct
from io import BytesIO

from PIL import Image, ImageChops, ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from raycap.images.picture_file import FAULTS, PictureError, PictureFile, bytes_per_pixel

# Progressive photos have about ten scans. Each scan may be a few bytes that cost a pass over all
# pixels.
_MOST_SCANS = 100
_MARKER = re.compile(
    rb"\xff([^\x00\xd0-\xd7\xff])"
)  # of a JPEG segment; the others occur inside of scans
_END = b"\xff\xd9"
# Bytes that no scan lacks. A restart marker before each part lets a decoder that waits for one
# take them too.
_NOISE = bytes(range(7, 247, 5)) * 16
_MORE_SCAN = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))


class Jpeg(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        self._read_markers()
        if self._scans > _MOST_SCANS:
            raise PictureError("a scan bomb: more passes over its pixels than any photo has")
        self._shrunk_to: tuple[int, int] | None = None
        return JpegImageFile(BytesIO(self.data))

    def _read_markers(self) -> None:
        """Count the scans, up to the end of the first picture: phones append films."""
        self._scans, position, components, sequential = 0, 2, b"", False
        refined: set[int] = set()  # the components whose last details are stored
        self._coefficients = 0.0  # for each pixel, that a decoder of several scans keeps
        while found := _MARKER.search(self.data, position):
            marker, start = found[1][0], found.end()
            length = int.from_bytes(self.data[start : start + 2], "big")
            if marker == 0xD9:  # end of picture
                break
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
                sequential = marker in (0xC0, 0xC1)
                components = self.data[start + 7 : start + 8]
                sampling = list(self.data[start + 9 : start + length : 3])
                areas = [(byte >> 4) * (byte & 15) for byte in sampling]
                most = max((byte >> 4 for byte in sampling), default=1) * max(
                    (b & 15 for b in sampling), default=1
                )
                self._coefficients = 2 * sum(areas) / max(1, most)
            if marker == 0xDA:  # start of scan
                self._scans += 1
                count = self.data[start + 2] if start + 2 < len(self.data) else 0
                last, bits = self.data[start + 4 + 2 * count : start + 6 + 2 * count].ljust(
                    2, b"\xff"
                )
                if last == 63 and not bits & 15:
                    refined.update(self.data[start + 3 : start + 3 + 2 * count : 2])
                if sequential and self.data[start + 2 : start + 3] == components:
                    # All there is in one pass, and the decoder reads no other: no need to walk the
                    # pixels' bytes.
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

    def load(self, salvage: bool) -> Image.Image:
        if salvage:
            # An end marker of our own lets the decoder finish a JPEG that lacks one, and does
            # nothing to others.
            self.picture = JpegImageFile(BytesIO(self.data + _END))
            if self._shrunk_to:
                self.shrink(self._shrunk_to)
        picture = super().load(salvage)
        if not salvage and (self._lacks_scans or _may_be_cut(picture)) and self._is_cut():
            raise EOFError("truncated")
        if picture.mode == "CMYK" and "adobe" not in picture.info:
            return ImageChops.invert(
                picture
            )  # Pillow takes all for Adobe's, which store ink inverted
        return picture

    def _is_cut(self) -> bool:
        """Whether the last scan ends before its last block. Then a decoder that finds more bytes
        there shows them; behind a whole scan it skips them. A progressive JPEG that lacks details
        only is whole: it is less sharp."""
        end = _end_of_picture(self.data)
        longer = self.data[:end] + _MORE_SCAN + _END
        return _small(self.data) != _small(longer)


def _may_be_cut(picture: Image.Image) -> bool:
    """What a scan lacks is left at the middle level, in all channels, down to the last pixel."""
    corner = picture.crop(
        (max(0, picture.width - 2), max(0, picture.height - 2), *picture.size)
    ).tobytes()
    return all(126 <= level <= 129 for level in corner)


def _end_of_picture(data: bytes) -> int:
    """Where the first end marker behind a scan is."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        if found[1] == b"\xd9" and scans:
            return found.start()
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return len(data)


def _small(data: bytes) -> bytes:
    """The pixels at an eighth."""
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
        """Sizes of the picture, its tiles and their parts: all are allocated before a pixel is
        decoded."""
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
        self._tiles = -(-(right - tile_left) // tile_width) * -(
            -(bottom - tile_top) // tile_height
        )
        self._tile = min(tile_width, width) * min(tile_height, height)
        depths = [(byte & 0x7F) + 1 for byte in stream[42 : 42 + 3 * self._components : 3]]
        self._sample = 4 + (2 if max(depths, default=8) > 8 else 1)  # as decoded, and as handed on
        self._halvings, self._blocks = 0, 0.0
        self._read_coding_style(stream, width * height)
        self._reduce = 0

    def _read_coding_style(self, stream: bytes, pixels: int) -> None:
        position = 4 + int.from_bytes(stream[4:6], "big")
        while (
            position + 4 <= len(stream)
            and stream[position] == 0xFF
            and stream[position + 1] != 0x90
        ):
            length = int.from_bytes(stream[position + 2 : position + 4], "big")
            if stream[position + 1] == 0x52 and length >= 12:
                style = stream[position + 4 : position + 2 + length]
                self._halvings = style[5]
                width, height = style[6] + 2, style[7] + 2  # of a code block, as powers of two
                precincts = style[10:] if style[0] & 1 else b""
                for byte in precincts:
                    width, height = (
                        min(width, max(0, (byte & 15) - 1)),
                        min(height, max(0, (byte >> 4) - 1)),
                    )
                self._blocks = 1.4 * pixels / 2 ** (width + height)
                return
            position += 2 + length

    def shrink(self, enough: tuple[int, int]) -> None:
        fits = min(self.size[0] / enough[0], self.size[1] / enough[1])
        # One halving less than would be enough, for the picture's edges move by up to half of one
        # of its pixels.
        while self._reduce < self._halvings and fits >= 4:
            fits /= 2
            self._reduce += 1
        self.fraction = 1 / 2**self._reduce
        self.shift = (
            1 - self.fraction
        ) / 2  # wavelets keep the first of each group of pixels, not their middle
        # Pillow rounds reduced sizes down where OpenJPEG rounds edges up, and then refuses the
        # picture.
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
        # Records of code blocks and tiles, by the sizes of OpenJPEG's structures.
        records = self._blocks * self._components * 400 + self._tiles * (
            6000 + 1200 * self._components
        )
        return float(2 * len(self.data) + 1.05 * (tile + picture) + records)


def _codestream(data: bytes) -> bytes:
    """The picture inside its boxes, or the bytes themselves where they have none."""
    position = 0
    while data[:2] != b"\xff\x4f" and position + 8 <= len(data):
        length, kind = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
        )
        start = position + 8
        if length == 1:
            length, start = (
                int.from_bytes(data[position + 8 : position + 16], "big"),
                position + 16,
            )
        if kind == b"jp2c":
            return data[start : start + 2**16]
        if length < 8:
            return b""
        position += length
    return data[: 2**16]
