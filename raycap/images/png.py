"""PNG: only the chunks that make pixels reach the decoder.

A text chunk that inflates to gigabytes, a profile of megabytes or a wrong checksum of either does
no harm then. Animations lose their other frames: the default image remains.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from raycap.images.colours import Colours, coded_profile, gamma_profile
from raycap.images.picture_file import FAULTS, PictureFile, bytes_per_pixel

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_KEPT = (b"tRNS", b"eXIf")
_LARGEST_NOTE = 2**20
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The passes of an interlaced picture: first column, first row, and the steps.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class Png(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        header = self.data[16:29]
        self._depth, self._kind, self._interlaced = 8, _RGB, 0
        if len(header) == 13:
            self._depth, self._kind, self._interlaced = header[8], header[9], header[12]
        self._notes: dict[bytes, bytes] = {}
        self.data = self._pixels_only(self.data)
        picture = PngImageFile(BytesIO(self.data))
        key = picture.info.get("transparency")
        if self._kind == _GREY and isinstance(key, int):
            key = int.from_bytes(self._notes[b"tRNS"][:2], "big") & (2**self._depth - 1)
            if self._depth == 16:
                self.levels.transparent = key
                del picture.info["transparency"]
            else:
                picture.info["transparency"] = key * 255 // (2**self._depth - 1)
        elif self._kind == _RGB and self._depth == 8 and isinstance(key, tuple):
            picture.info["transparency"] = tuple(level & 255 for level in key)
        return picture

    def _pixels_only(self, data: bytes) -> bytes:
        """The file without the ancillary chunks that do not change pixels; keeps what colours
        need."""
        view, parts = memoryview(data), []
        kept_from, position, before_pixels = 0, 8, True
        while position + 12 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            end = position + 12 + length
            if kind in _CRITICAL:
                before_pixels = before_pixels and kind != b"IDAT"
                position = end
                if kind == b"IEND":
                    break
                continue
            if not kind.isalpha() or not kind[0] & 0x20 or end > len(data):
                break  # the decoder will report it
            if not (self._noted(kind, data, position, length, before_pixels) and kind in _KEPT):
                parts.append(view[kept_from:position])
                kept_from = end
            position = end
        if not parts:
            return data
        return b"".join([*parts, view[kept_from:]])

    def _noted(
        self, kind: bytes, data: bytes, position: int, length: int, before_pixels: bool
    ) -> bool:
        """Whether the chunk is useful and whole; notes its content if so."""
        if length > _LARGEST_NOTE or kind in self._notes:
            return False
        if kind not in _COLOUR + _KEPT or not (before_pixels or kind == b"eXIf"):
            return False
        checked = data[position + 4 : position + 8 + length]
        [checksum] = struct.unpack_from(">I", data, position + 8 + length)
        if zlib.crc32(checked) != checksum:
            return False
        if kind == b"tRNS" and length < {_GREY: 2, _RGB: 6}.get(self._kind, 0):
            return False
        self._notes[kind] = checked[4:]
        return True

    def memory(self) -> float:
        each = bytes_per_pixel(self.picture.mode)
        if self._has_wide_key():
            each = 9  # decoded twice, and the transparency
        return 2 * len(self.data) + self.size[0] * self.size[1] * each

    def _has_wide_key(self) -> bool:
        return self._kind == _RGB and self._depth == 16 and b"tRNS" in self._notes

    def load(self, salvage: bool) -> Image.Image:
        picture = super().load(salvage)
        if not salvage and self._may_lack_rows(picture) and self._lacks_rows():
            raise EOFError("truncated")
        if self._has_wide_key():
            del picture.info["transparency"]
            picture.putalpha(self._wide_alpha(picture))
        return picture

    def _may_lack_rows(self, picture: Image.Image) -> bool:
        """Whether the last row is zero, as missing rows are: the decoder accepts data that end
        early."""
        last = picture.crop((0, picture.height - 1, picture.width, picture.height))
        return bool(self._interlaced) or not any(last.tobytes())

    def _lacks_rows(self) -> bool:
        """Whether the data inflate to less than all rows. The inflated bytes are only counted."""
        lacking, inflate = self._length_of_rows(), zlib.decompressobj()
        for body in self._bodies():
            while body and lacking > 0 and not inflate.eof:
                try:
                    lacking -= len(inflate.decompress(body, 2**20))
                except zlib.error:
                    return True
                body = inflate.unconsumed_tail
        return lacking > 0

    def _length_of_rows(self) -> int:
        bits = self._depth * _CHANNELS[self._kind]
        total = 0
        for x, y, step_x, step_y in _PASSES if self._interlaced else ((0, 0, 1, 1),):
            width = -(-(self.size[0] - x) // step_x)
            height = -(-(self.size[1] - y) // step_y)
            if width > 0 and height > 0:
                total += height * (1 + -(-width * bits // 8))
        return total

    def _bodies(self) -> Iterator[bytes]:
        position = 8
        while position + 8 <= len(self.data):
            length, kind = struct.unpack(">I4s", self.data[position : position + 8])
            if kind == b"IDAT":
                yield self.data[position + 8 : position + 8 + length]
            position += 12 + length

    def _wide_alpha(self, high: Image.Image) -> Image.Image:
        """The alpha channel: 0 where all 16 bits of each channel equal the key.

        The decoder keeps the high bytes. With the raw mode of the other byte order it keeps the
        low ones.
        """
        low = PngImageFile(BytesIO(self.data))
        tile = low.tile[0]
        low.tile = [tile._replace(args="RGB;16L")]
        try:
            low.load()
        except FAULTS:  # truncated, as the first was: compare what both have
            low.tile = []
            low.load()
        key = np.frombuffer(self._notes[b"tRNS"][:6], np.uint8).reshape(3, 2)
        rows = max(1, 2**20 // high.width)
        holes = Image.new("L", high.size)
        for top in range(0, high.height, rows):
            part = (0, top, high.width, min(top + rows, high.height))
            same_high = np.asarray(high.crop(part)) == key[:, 0]
            same = same_high & (np.asarray(low.crop(part)) == key[:, 1])
            holes.paste(Image.fromarray(np.where(same.all(2), 0, 255).astype(np.uint8)), part[:2])
        return holes

    def profile(self) -> Colours:
        """As in browsers, cICP comes before iCCP, then sRGB, then gAMA and cHRM."""
        notes = self._notes
        if len(code := notes.get(b"cICP", b"")) == 4 and code[2] == 0:
            coded = coded_profile(code[0], code[1], bool(code[3]))
            if coded:
                return Colours(profile=coded)
        if b"iCCP" in notes and (profile := _inflated_profile(notes[b"iCCP"])):
            return Colours(profile=profile)
        if b"sRGB" in notes or len(notes.get(b"gAMA", b"")) != 4:
            return Colours()
        gamma = int.from_bytes(notes[b"gAMA"], "big") / 100_000
        if not 0.01 <= gamma <= 100:
            return Colours()
        if len(notes.get(b"cHRM", b"")) == 32:
            chromaticity = [level / 100_000 for level in struct.unpack(">8I", notes[b"cHRM"])]
            return Colours(profile=gamma_profile(chromaticity, gamma), gamma=gamma)
        return Colours(gamma=gamma)


def _inflated_profile(body: bytes) -> bytes | None:
    _, _, packed = body.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], _LARGEST_NOTE)
    except zlib.error:
        return None
    return None if not packed or packed[0] or inflate.unconsumed_tail else profile
