"""AVIF and HEIF, and what their files state of the pictures inside: colours and sizes of AV1
frames.

An AVIF may state a small size and hold a huge frame, which the decoder decodes first and then
scales down.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile

from raycap.images.colours import Colours, coded_profile
from raycap.images.picture_file import Box, PictureError, PictureFile, boxes

_MOST_ITEMS = 10_000
_SEQUENCE_HEADER = 1


class Avif(PictureFile):
    def open(self) -> Image.Image:
        self._frames: Frames = frames_of_avif(self.data)
        for width, height in self._frames.sizes:
            self.limits.check_part("a frame", width, height)
        return AvifImageFile(BytesIO(self.data))

    def memory(self) -> float:
        pixels = self.size[0] * self.size[1]
        coded = sum(width * height for width, height in self._frames.sizes) or pixels
        each = 7 if self._frames.deep else 3.5
        return 2 * len(self.data) + coded * each + pixels * 8

    def load(self, salvage: bool) -> Image.Image:
        assert isinstance(self.picture, AvifImageFile)
        pixels = self.picture._decoder.get_frame(0)[0]
        self.picture._decoder = None  # which holds another copy
        mode = self.picture.mode
        if mode == "RGBA":
            return Image.frombuffer(mode, self.size, pixels, "raw", mode, 0, 1)  # without a copy
        return Image.frombytes(mode, self.size, pixels)

    def profile(self) -> Colours:
        return (
            super().profile() if self.picture.info.get("icc_profile") else coded_colours(self.data)
        )


class Heif(PictureFile):
    def open(self) -> Image.Image:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise PictureError(
                "a HEIC picture, which needs an extra: pip install 'raycap[heif]'"
            ) from None
        file = BytesIO(self.data)
        picture: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call, unused-ignore]
        return picture

    def memory(self) -> float:
        """libheif itself rejects frames that are larger than the size that the file states."""
        each = 12 if self.picture.info.get("bit_depth", 8) <= 8 else 18
        if self.picture.mode == "RGBA":
            each += 4
        return 2 * len(self.data) + self.size[0] * self.size[1] * each

    def profile(self) -> Colours:
        return (
            super().profile() if self.picture.info.get("icc_profile") else coded_colours(self.data)
        )


@dataclass
class Frames:
    """The AV1 frames of a file: one, or one for each tile of a grid, and others for alpha."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    deep: bool = False  # whether any has more than 8 bits per channel


def inside(data: bytes, box: Box, *path: bytes) -> Iterator[Box]:
    """The boxes at a path of kinds, such as meta, iprp."""
    for found in boxes(data, box[1], box[2]):
        if found[0] == path[0]:
            if len(path) == 1:
                yield found
            else:
                yield from inside(data, found, *path[1:])


def coded_colours(data: bytes) -> Colours:
    """The first colours that a file states as numbers of ITU-T H.273; sRGB if there are none."""
    for _, meta_start, meta_end in inside(data, (b"", 0, len(data)), b"meta"):
        meta = (b"meta", meta_start + 4, meta_end)  # behind its version
        for _, start, end in inside(data, meta, b"iprp", b"ipco", b"colr"):
            if data[start : start + 4] == b"nclx" and end - start >= 8:
                primaries, transfer = struct.unpack_from(">HH", data, start + 4)
                return Colours(profile=coded_profile(primaries, transfer))
    return Colours()


def frames_of_avif(data: bytes) -> Frames:
    """The frames, as the sequence headers of the AV1 streams state them."""
    frames = Frames()
    for at in _starts(data):
        header = _sequence_header(data, at)
        if header:
            try:
                width, height, deep = _parse_sequence_header(header)
            except IndexError:
                continue
            frames.sizes.append((width, height))
            frames.deep = frames.deep or deep
    return frames


def _starts(data: bytes) -> Iterator[int]:
    """The offsets of all items and tracks."""
    everything = b"", 0, len(data)
    for meta in inside(data, everything, b"meta"):
        content = b"meta", meta[1] + 4, meta[2]
        item_data = next((start for _, start, _ in inside(data, content, b"idat")), 0)
        for _, start, end in inside(data, content, b"iloc"):
            yield from _item_starts(data[start:end], item_data)
    tables = b"moov", b"trak", b"mdia", b"minf", b"stbl"
    for kind, size in ((b"stco", 4), (b"co64", 8)):
        for _, start, _ in inside(data, everything, *tables, kind):
            yield int.from_bytes(data[start + 8 : start + 8 + size], "big")


def _item_starts(table: bytes, item_data: int) -> Iterator[int]:
    """The offsets in an item location box; `item_data` is where the box of small items begins."""
    position = 6

    def number(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(table[position - size : position], "big")

    if len(table) < 8:
        return
    version = table[0]
    offset_size, length_size, base_size = table[4] >> 4, table[4] & 15, table[5] >> 4
    index_size = table[5] & 15 if version in (1, 2) else 0
    id_size = 2 if version < 2 else 4
    count = number(id_size)
    if count > _MOST_ITEMS:
        raise PictureError(f"broken avif: {count} items")
    for _ in range(count):
        number(id_size)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base, extents = number(base_size), number(2)
        if position > len(table):
            return
        for extent in range(extents):
            number(index_size)
            start = number(offset_size)
            number(length_size)
            if position > len(table):
                return
            if extent == 0:
                yield base + start + (item_data if method == 1 else 0)


def _sequence_header(data: bytes, at: int) -> bytes:
    """The content of the first sequence header among the units from `at` on; b"" if there is
    none."""
    for _ in range(16):
        if at >= len(data) or not data[at] & 2:  # a unit without a length is the last
            return b""
        kind, has_extension = data[at] >> 3 & 15, data[at] & 4
        at += 2 if has_extension else 1
        length = 0
        for place in range(8):
            byte = data[at] if at < len(data) else 0
            at += 1
            length |= (byte & 127) << (7 * place)
            if byte < 128:
                break
        if kind == _SEQUENCE_HEADER:
            return data[at : at + min(length, 1024)]
        at += length
    return b""


class _HighBitsFirst:
    """Reads numbers of some bits, the highest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._all, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("end of the header")
        return self._all >> self._left & ((1 << count) - 1)


def _parse_sequence_header(header: bytes) -> tuple[int, int, bool]:
    """Largest width and height of a frame, and whether it has more than 8 bits (AV1 spec, 5.5)."""
    take = _HighBitsFirst(header).take
    take(4)  # profile, still picture
    reduced = take(1)
    if reduced:
        take(5)
    else:
        _skip_operating_points(take)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    width, height = take(width_bits) + 1, take(height_bits) + 1
    if not reduced and take(1):  # frame numbers
        take(7)
    take(3)
    if not reduced:
        take(4)
        order = take(1)
        if order:
            take(2)
        screen = 2 if take(1) else take(1)
        if screen and not take(1):
            take(1)
        if order:
            take(3)
    take(3)
    return width, height, bool(take(1))


def _skip_operating_points(take: Callable[[int], int]) -> None:
    model, delay_bits = 0, 0
    if take(1):  # timing
        take(64)
        if take(1):
            zeros = 0
            while not take(1):
                zeros += 1
            take(zeros)
        model = take(1)
        if model:
            delay_bits = take(5) + 1
            take(42)
    delays = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if model and take(1):
            take(2 * delay_bits + 1)
        if delays and take(1):
            take(4)
