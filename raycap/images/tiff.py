"""TIFF: its first picture, given to the decoder with only the tags that its pixels need.

The tags are read here and written again behind the file's own bytes: the sizes of tiles are
checked before they are allocated, big-endian BigTIFF becomes a plain TIFF, and what Pillow
misreads is corrected.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageFile, TiffImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

from raycap.images.picture_file import PictureError, PictureFile, bytes_per_pixel
from raycap.images.pixels import TURNS

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS = 273, 274, 277, 278
STRIP_LENGTHS, PLANAR, COLOUR_MAP = 279, 284, 320
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, PROFILE = 338, 339, 347, 34675
_KEPT = {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, SAMPLES, STRIP_ROWS}
_KEPT |= {STRIP_LENGTHS, PLANAR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS}
_KEPT |= {EXTRA_SAMPLES, SAMPLE_FORMAT, PROFILE, JPEG_TABLES}
# Fill order, fax options, predictor, dot range, old JPEG, and the sampling of YCbCr.
_KEPT |= {266, 292, 293, 317, 332, 336, *range(512, 522), 529, 530, 531, 532}
_PER_PART = (STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS, 519, 520, 521)
# Bytes of a value of each type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_SHORT, _LONG, _LONG8 = 3, 4, 16
_MOST_ENTRIES = 4096
_LARGEST_TAG = 4 * 2**20
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_UNCOMPRESSED = 1

# Kinds of pictures that Pillow can decode and does not list.
for _key, _modes in {
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)

# libtiff returns numbers in the byte order of the machine. Pillow considers that for some kinds
# only.
_NATIVE = {"I;16S": "I;16NS", "I;16BS": "I;16NS", "I;16B": "I;16N"}
_NATIVE |= {"I;32S": "I;32NS", "I;32BS": "I;32NS", "I;32B": "I;32N"}
_NATIVE |= {"F;32F": "F;32NF", "F;32BF": "F;32NF"}


@dataclass
class _Tag:
    type: int
    count: int
    data: bytes

    def integers(self, order: str) -> tuple[int, ...]:
        if self.type not in _INTEGERS:
            return ()
        return struct.unpack(f"{order}{self.count}{_INTEGERS[self.type]}", self.data)

    def first(self, count: int) -> "_Tag":
        """The tag with its first `count` values."""
        return _Tag(self.type, count, self.data[: count * _SIZES[self.type]])


class Tiff(PictureFile):
    def open(self) -> Image.Image:
        self._order = "<" if self.data[:2] == b"II" else ">"
        self._tags = self._read_tags()
        width, height = self._number(WIDTH, 0), self._number(HEIGHT, 0)
        if width < 1 or height < 1:
            raise PictureError("broken tiff: no size")
        self.limits.check_size(width, height)
        self._turn = TURNS.get(self._number(ORIENTATION, 1))
        self._check_parts(width, height)
        self._correct()
        self.data = self._rewritten()
        picture = TiffImageFile(BytesIO(self.data))
        planar = self._number(PLANAR, 1)
        if self._number(PHOTOMETRIC, 0) == _YCBCR and self._number(SAMPLES, 1) == 3:
            # Pillow itself does not support subsampled colours, libtiff does.
            picture.use_load_libtiff = True
            picture._mode = "RGB"
            is_jpeg = self._number(COMPRESSION, 1) == 7 and planar == 1
            picture.tile = [_whole(picture, "RGB" if is_jpeg else "RGBX")]
        elif planar == 2:
            # Pillow itself misreads planes of 16 bits and planes beside RGB, libtiff does not.
            picture.use_load_libtiff = True
            raw = self._raw_mode()
            raw = raw[:-1] + "N" if raw.endswith((";16L", ";16B")) else raw
            picture.tile = [_whole(picture, _NATIVE.get(raw, raw))]
        elif picture.use_load_libtiff:
            [(_, _, _, arguments)] = picture.tile
            if isinstance(arguments, str):
                raw = arguments
            else:
                raw = str(arguments[0] if arguments else "")
            picture.tile = [_whole(picture, _NATIVE.get(raw, raw))]
        return picture

    def _raw_mode(self) -> str:
        """Pillow's name for the format of the numbers in the file."""
        bits = self._numbers(BITS) or (1,)
        bits = bits * self._number(SAMPLES, 1) if len(bits) == 1 else bits
        order = b"II" if self._order == "<" else b"MM"
        key = (
            order,
            self._number(PHOTOMETRIC, 0),
            (self._number(SAMPLE_FORMAT, 1),),
            1,
            bits,
            self._numbers(EXTRA_SAMPLES),
        )
        return TiffImagePlugin.OPEN_INFO[key][1]

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self.data, at)

    def _read_tags(self) -> dict[int, _Tag]:
        big = 43 in self.data[2:4]
        count_layout, entry_layout, entry_size = ("Q", "HHQ", 20) if big else ("H", "HHI", 12)
        at = self._unpack("Q", 8)[0] if big else self._unpack("I", 4)[0]
        if at >= len(self.data):
            raise PictureError("broken tiff: its directory is behind its end")
        entries = self._unpack(count_layout, at)[0]
        if entries > _MOST_ENTRIES:
            raise PictureError(f"broken tiff: {entries} tags")
        at += 8 if big else 2
        room = 8 if big else 4  # bytes for a value within its entry
        tags: dict[int, _Tag] = {}
        for entry in range(at, at + entries * entry_size, entry_size):
            tag, kind, count = self._unpack(entry_layout, entry)
            if tag not in _KEPT | {ORIENTATION} or kind not in _SIZES or tag in tags:
                continue
            length, start = count * _SIZES[kind], entry + entry_size - room
            if length > room:
                start = self._unpack("Q" if big else "I", start)[0]
            if start + length > len(self.data):
                raise EOFError("truncated file: a tag points behind its end")
            tags[tag] = _Tag(kind, count, self.data[start : start + length])
        return tags

    def _numbers(self, tag: int) -> tuple[int, ...]:
        return self._tags[tag].integers(self._order) if tag in self._tags else ()

    def _number(self, tag: int, default: int) -> int:
        found = self._tags.get(tag)
        if not found or not found.count or found.type not in _INTEGERS:
            return default
        return found.first(1).integers(self._order)[0]

    def _set(self, tag: int, values: tuple[int, ...], kind: int = _SHORT) -> None:
        layout = f"{self._order}{len(values)}{_INTEGERS[kind]}"
        self._tags[tag] = _Tag(kind, len(values), struct.pack(layout, *values))

    def _check_parts(self, width: int, height: int) -> None:
        """Check strips and tiles, which are decoded whole and need a record each."""
        part_width, part_height = width, min(height, self._number(STRIP_ROWS, height) or height)
        if TILE_OFFSETS in self._tags or TILE_WIDTH in self._tags:
            part_width, part_height = self._number(TILE_WIDTH, 0), self._number(TILE_HEIGHT, 0)
            if part_width < 1 or part_height < 1:
                raise PictureError("broken tiff: tiles have no size")
            self.limits.check_part("tiles", part_width, part_height)
        samples = self._number(SAMPLES, 1)
        planes = samples if self._number(PLANAR, 1) == 2 else 1
        self._parts = -(-width // part_width) * -(-height // part_height) * planes
        bits = max(self._numbers(BITS)[:16], default=1)
        self._part_bytes = part_width * part_height * max(4, samples * bits / 8)
        for tag, found in list(self._tags.items()):
            if tag in _PER_PART and found.count > self._parts:
                self._tags[tag] = found.first(self._parts)
            elif tag not in _PER_PART and len(found.data) > _LARGEST_TAG:
                del self._tags[tag]  # no tag that is needed is that large
        self._parts = min(self._parts, max(len(self._tags[tag].data) for tag in self._tags))

    def _correct(self) -> None:
        """Correct the tags that Pillow misreads."""
        bits, photometric = self._number(BITS, 1), self._number(PHOTOMETRIC, 0)
        if self._number(SAMPLE_FORMAT, 1) == 4:  # "undefined" is the same as no tag
            del self._tags[SAMPLE_FORMAT]
        self._tags.pop(ORIENTATION, None)  # applied after scaling, which takes less memory
        if photometric in (0, 1) and self._number(SAMPLES, 1) == 1:
            if self._number(SAMPLE_FORMAT, 1) == 1:  # unsigned integers
                self.levels.white = {12: 4095, 16: 65535}.get(bits)
                self.levels.unsigned = bits == 32
            if photometric == _WHITE_IS_ZERO and bits > 8:
                self._set(PHOTOMETRIC, (1,))
                self.levels.inverted = True
        extra = self._numbers(EXTRA_SAMPLES)
        if self._number(PLANAR, 1) == 2 and extra and not any(extra):  # planes without a meaning
            samples = self._number(SAMPLES, 1) - len(extra)
            self._set(SAMPLES, (samples,))
            self._set(BITS, self._numbers(BITS)[:samples])
            del self._tags[EXTRA_SAMPLES]
            for tag in (STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS):
                if tag in self._tags:
                    found = self._tags[tag]
                    count = found.count * samples // (samples + len(extra))
                    self._tags[tag] = found.first(count)
        colours = self._numbers(COLOUR_MAP)
        if photometric == _PALETTE and colours and max(colours) < 256:
            # 8 bits, and there should be 16.
            self._set(COLOUR_MAP, tuple(level * 257 for level in colours))

    def _rewritten(self) -> bytes:
        """The file as a plain TIFF with one directory, at its end."""
        start = len(self.data) + len(self.data) % 2
        after = start + 2 + 12 * len(self._tags) + 4
        entries, values = b"", b""
        for tag, found in sorted(self._tags.items()):
            if found.type == _LONG8:
                self._set(tag, found.integers(self._order), _LONG)
                found = self._tags[tag]
            value = found.data
            if len(value) > 4:
                at, values = after + len(values), values + value + bytes(len(value) % 2)
                value = struct.pack(self._order + "I", at)
            entries += struct.pack(self._order + "HHI", tag, found.type, found.count)
            entries += value.ljust(4, b"\0")
        head = b"II" if self._order == "<" else b"MM"
        head += struct.pack(self._order + "HI", 42, start)
        pad, count = bytes(start - len(self.data)), struct.pack(self._order + "H", len(self._tags))
        return b"".join([head, memoryview(self.data)[8:], pad, count, entries, bytes(4), values])

    def memory(self) -> float:
        picture = self.size[0] * self.size[1] * bytes_per_pixel(self.picture.mode)
        return 2 * len(self.data) + picture + 2 * self._part_bytes + 500 * self._parts

    def turn(self) -> Image.Transpose | None:
        return self._turn


def _whole(picture: TiffImageFile, raw: str) -> Any:
    """A tile of the whole picture, which libtiff decodes."""
    box = (0, 0, *picture.size)
    return ImageFile._Tile("libtiff", box, 0, (raw, False, picture.tag_v2.offset))
