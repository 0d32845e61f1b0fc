"""GIF, BMP and PPM."""

import re
import warnings
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile

from raycap.images.picture_file import PictureError, PictureFile, bytes_per_pixel


class Gif(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        picture = GifImageFile(BytesIO(self.data))
        self._frame = (picture.tile[0].extents if picture.tile else None) or (0, 0, *picture.size)
        return picture

    def _fills_canvas(self) -> bool:
        return self._frame == (0, 0, *self.size)

    def memory(self) -> float:
        return len(self.data) + self.size[0] * self.size[1] * (1 if self._fills_canvas() else 10)

    def load(self, salvage: bool) -> Image.Image:
        picture = super().load(salvage)
        if self._fills_canvas():
            return picture
        canvas = Image.new(
            "RGBA", self.size
        )  # around the frame, browsers show what lies behind the picture
        canvas.paste(picture.crop(self._frame).convert("RGBA"), self._frame[:2])
        return canvas


class Bmp(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        return BmpImageFile(BytesIO(self.data))

    def memory(self) -> float:
        packed = (
            2 if self.picture.info.get("compression") in (1, 2) else 0
        )  # run lengths are unpacked in Python
        return len(self.data) + self.size[0] * self.size[1] * (
            packed + bytes_per_pixel(self.picture.mode)
        )

    def load(self, salvage: bool) -> Image.Image:
        picture = super().load(salvage)
        # Programs that know of no alpha leave it zero. Then it is none, or the picture would be empty.
        self.levels.opaque = picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (
            0,
            0,
        )
        return picture


# A header of PPM: numbers between blanks and comments, and one blank behind the last.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([14])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})\s", re.A)
_HEADER_WITH_WHITE = re.compile(
    rb"P([2356])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,5})\s", re.A
)
_COMMENT = re.compile(rb"#[^\r\n]*")


class Ppm(PictureFile):
    """PBM, PGM and PPM, as bytes and as text. Pillow reads most of them number by number, which takes minutes."""

    salvageable = True

    def open(self) -> Image.Image:
        header = _HEADER.match(self.data[:65536]) or _HEADER_WITH_WHITE.match(self.data[:65536])
        if not header:
            if len(self.data) < 32:
                raise EOFError("end of file in the header")
            raise PictureError("broken ppm: its header has no size")
        self._kind, width, height = int(header[1]), int(header[2]), int(header[3])
        self._white = int(header[4]) if self._kind not in (1, 4) else 1
        if not (width and height and 0 < self._white < 65536):
            raise PictureError("broken ppm: no size, or no white")
        self.limits.check_size(width, height)
        self._wanted, self._start = (width, height), header.end()
        return Image.new("L", (1, 1))

    def stored_size(self) -> tuple[int, int]:
        return self._wanted

    def _channels(self) -> int:
        return 3 if self._kind in (3, 6) else 1

    def memory(self) -> float:
        each = 1 if self._channels() == 1 else 4
        # The shortest number in a text takes two bytes, and four when it is read.
        copies = 6 if self._kind <= 3 else 2
        return copies * len(self.data) + self.size[0] * self.size[1] * each

    def load(self, salvage: bool) -> Image.Image:
        width, height = self.size
        row = width * self._channels()
        if self._kind == 4:
            return Image.frombytes(
                "1", self.size, self._bytes(height * ((width + 7) // 8), salvage), "raw", "1;I"
            )
        levels = (
            self._text(row * height) if self._kind <= 3 else self._numbers(row * height, salvage)
        )
        if len(levels) < row * height:
            if not salvage:
                raise EOFError("truncated")
            levels = np.concatenate([levels, np.zeros(row * height - len(levels), levels.dtype)])
        picture = Image.new("RGB" if self._channels() == 3 else "L", self.size)
        rows = max(1, 2**20 // row)
        for top in range(0, height, rows):
            part = levels[top * row : (top + rows) * row]
            if self._white != 255:
                part = (
                    np.minimum(part, self._white).astype(np.float32) * (255 / self._white)
                ).round()
            shape = (-1, width, 3) if self._channels() == 3 else (-1, width)
            picture.paste(
                Image.fromarray(np.ascontiguousarray(part, np.uint8).reshape(shape)), (0, top)
            )
        return picture

    def _bytes(self, length: int, salvage: bool) -> bytes:
        body = self.data[self._start : self._start + length]
        if len(body) < length and not salvage:
            raise EOFError("truncated")
        return body.ljust(length, b"\0")

    def _numbers(self, count: int, salvage: bool) -> np.ndarray:
        each = np.dtype(np.uint8 if self._white < 256 else ">u2")
        return np.frombuffer(self._bytes(count * each.itemsize, salvage), each)

    def _text(self, count: int) -> np.ndarray:
        body = _COMMENT.sub(b"", self.data[self._start :])
        if self._kind == 1:  # 1 is black, and the digits need no blanks between them
            digits = np.frombuffer(body.translate(None, b" \t\r\n\v\f"), np.uint8)[:count]
            return np.asarray(digits == ord("0"), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of text behind the last number
            levels: np.ndarray = np.fromstring(body, np.int32, sep=" ")[:count]
        levels[levels < 0] = 0
        return levels
