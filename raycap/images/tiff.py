"""TIFF: its first picture, handed to the decoder with only the tags that its pixels need.

The tags are read here and written anew behind the file's own bytes, so that sizes of tiles are
checked before they are allocated, big-endian BigTIFF becomes a plain TIFF, and what Pillow would
misread is set right.
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
STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_LENGTHS, PLANAR = (
    273,
    274,
    277,
    278,
    279,
    284,
)
COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS = 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, PROFILE = 338, 339, 347, 34675
# Also: fill order, fax options, predictor, dot range, what old JPEG needs, and how YCbCr is
# sampled.
_KEPT = {
    WIDTH,
    HEIGHT,
    BITS,
    COMPRESSION,
    PHOTOMETRIC,
    STRIP_OFFSETS,
    SAMPLES,
    STRIP_ROWS,
    STRIP_LENGTHS,
    PLANAR,
}
_KEPT |= {
    COLOUR_MAP,
    TILE_WIDTH,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_LENGTHS,
    EXTRA_SAMPLES,
    SAMPLE_FORMAT,
    PROFILE,
}
_KEPT |= {JPEG_TABLES, 266, 292, 293, 317, 332, 336, *range(512, 522), 529, 530, 531, 532}
_PER_PART = (STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS, 519, 520, 521)
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_SHORT, _LONG, _LONG8 = 3, 4, 16
_MOST_ENTRIES = 4096
_LARGEST_TAG = 4 * 2**20
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_UNCOMPRESSED = 1

# Kinds that Pillow can decode and does not list.
for _key, _modes in {
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)

# libtiff hands on numbers in the machine's own byte order. Pillow minds that only for some kinds.
_NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "I;32B": "I;32N",
}
_NATIVE |= {"I;16B": "I;16N", "F;32F": "F;32NF", "F;32BF": "F;32NF"}


@dataclass
class _Tag:
    type: int
    count: int
    data: bytes

    def integers(self, order: str) -> tuple[int, ...]:
        if self.type not in _INTEGERS:
            return ()
        return struct.unpack(f"{order}{self.count}{_INTEGERS[self.type]}", self.data)


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
        self._set_right()
        self.data = self._rewritten()
        picture = TiffImageFile(BytesIO(self.data))
        if self._number(PHOTOMETRIC, 0) == _YCBCR and self._number(SAMPLES, 1) == 3:
            # Pillow itself does not know of subsampled colours, libtiff does.
            picture.use_load_libtiff = True
            picture._mode = "RGB"
            raw = (
                "RGB"
                if self._number(COMPRESSION, 1) == 7 and self._number(PLANAR, 1) == 1
                else "RGBX"
            )
            picture.tile = [_whole(picture, raw)]
        elif self._number(PLANAR, 1) == 2:
            # Pillow itself misreads planes of 16 bits and planes beside RGB, libtiff does not.
            picture.use_load_libtiff = True
            raw = self._raw_mode()
            raw = raw[:-1] + "N" if raw.endswith((";16L", ";16B")) else raw
            picture.tile = [_whole(picture, _NATIVE.get(raw, raw))]
        elif picture.use_load_libtiff:
            [(_, _, _, given)] = picture.tile
            raw = given if isinstance(given, str) else str(given[0] if given else "")
            picture.tile = [_whole(picture, _NATIVE.get(raw, raw))]
        return picture

    def _raw_mode(self) -> str:
        """Pillow's name for how the file stores its numbers."""
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
        room = 8 if big else 4  # for a value that stands in its entry
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
        return _Tag(found.type, 1, found.data[: _SIZES[found.type]]).integers(self._order)[0]

    def _set(self, tag: int, values: tuple[int, ...], kind: int = _SHORT) -> None:
        layout = f"{self._order}{len(values)}{_INTEGERS[kind]}"
        self._tags[tag] = _Tag(kind, len(values), struct.pack(layout, *values))

    def _check_parts(self, width: int, height: int) -> None:
        """Strips and tiles are decoded whole, and each has its record."""
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
                self._tags[tag] = _Tag(
                    found.type, self._parts, found.data[: self._parts * _SIZES[found.type]]
                )
            elif tag not in _PER_PART and len(found.data) > _LARGEST_TAG:
                del self._tags[tag]  # no tag that is needed is so large
        self._parts = min(self._parts, max(len(self._tags[tag].data) for tag in self._tags))

    def _set_right(self) -> None:
        """What Pillow misreads."""
        bits, photometric = self._number(BITS, 1), self._number(PHOTOMETRIC, 0)
        if self._number(SAMPLE_FORMAT, 1) == 4:  # "undefined": as if it were not there
            del self._tags[SAMPLE_FORMAT]
        self._tags.pop(ORIENTATION, None)  # turned after scaling instead, which takes less memory
        if photometric in (0, 1) and self._number(SAMPLES, 1) == 1:
            self.levels.white = (
                {12: 4095, 16: 65535}.get(bits) if self._number(SAMPLE_FORMAT, 1) == 1 else None
            )
            self.levels.unsigned = bits == 32 and self._number(SAMPLE_FORMAT, 1) == 1
            if photometric == _WHITE_IS_ZERO and bits > 8:
                self._set(PHOTOMETRIC, (1,))
                self.levels.inverted = True
        extra = self._numbers(EXTRA_SAMPLES)
        if self._number(PLANAR, 1) == 2 and extra and not any(extra):  # planes that mean nothing
            samples = self._number(SAMPLES, 1) - len(extra)
            self._set(SAMPLES, (samples,))
            self._set(BITS, self._numbers(BITS)[:samples])
            del self._tags[EXTRA_SAMPLES]
            for tag in (STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS):
                if tag in self._tags:
                    found = self._tags[tag]
                    count = found.count * samples // (samples + len(extra))
                    self._tags[tag] = _Tag(
                        found.type, count, found.data[: count * _SIZES[found.type]]
                    )
        colours = self._numbers(COLOUR_MAP)
        if (
            photometric == _PALETTE and colours and max(colours) < 256
        ):  # 8 bits where there should be 16
            self._set(COLOUR_MAP, tuple(level * 257 for level in colours))

    def _rewritten(self) -> bytes:
        """The file as a plain TIFF whose only directory is at its end."""
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
            entries += struct.pack(
                self._order + "HHI", tag, found.type, found.count
            ) + value.ljust(4, b"\0")
        head = (b"II" if self._order == "<" else b"MM") + struct.pack(
            self._order + "HI", 42, start
        )
        pad, count = bytes(start - len(self.data)), struct.pack(self._order + "H", len(self._tags))
        return b"".join([head, memoryview(self.data)[8:], pad, count, entries, bytes(4), values])

    def memory(self) -> float:
        picture = self.size[0] * self.size[1] * bytes_per_pixel(self.picture.mode)
        return 2 * len(self.data) + picture + 2 * self._part_bytes + 500 * self._parts

    def turn(self) -> Image.Transpose | None:
        return self._turn


def _whole(picture: TiffImageFile, raw: str) -> Any:
    """All of the picture as one tile, which libtiff decodes."""
    box = (0, 0, *picture.size)
    return ImageFile._Tile("libtiff", box, 0, (raw, False, picture.tag_v2.offset))
