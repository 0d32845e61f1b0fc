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
        # Around the frame, browsers show the background.
        canvas = Image.new("RGBA", self.size)
        canvas.paste(picture.crop(self._frame).convert("RGBA"), self._frame[:2])
        return canvas


class Bmp(PictureFile):
    salvageable = True

    def open(self) -> Image.Image:
        return BmpImageFile(BytesIO(self.data))

    def memory(self) -> float:
        each = bytes_per_pixel(self.picture.mode)
        if self.picture.info.get("compression") in (1, 2):
            each += 2  # run lengths are decoded in Python
        return len(self.data) + self.size[0] * self.size[1] * each

    def load(self, salvage: bool) -> Image.Image:
        picture = super().load(salvage)
        if picture.mode == "RGBA":
            # Programs without alpha write 0 for it. Ignore it then, or nothing would be visible.
            self.levels.opaque = picture.getchannel("A").getextrema() == (0, 0)
        return picture


# A PPM header: numbers between blanks and comments, and one blank behind the last number.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([14])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})\s", re.A)
_HEADER_WITH_WHITE = re.compile(
    rb"P([2356])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,5})\s", re.A
)
_COMMENT = re.compile(rb"#[^\r\n]*")


class Ppm(PictureFile):
    """PBM, PGM and PPM, binary or text. Pillow reads most of them number by number, in minutes."""

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
        # The shortest number takes two bytes in text and four once it is read.
        copies = 6 if self._kind <= 3 else 2
        return copies * len(self.data) + self.size[0] * self.size[1] * each

    def load(self, salvage: bool) -> Image.Image:
        width, height = self.size
        row = width * self._channels()
        if self._kind == 4:
            packed = self._bytes(height * ((width + 7) // 8), salvage)
            return Image.frombytes("1", self.size, packed, "raw", "1;I")
        if self._kind <= 3:
            levels = self._text(row * height)
        else:
            levels = self._numbers(row * height, salvage)
        if len(levels) < row * height:
            if not salvage:
                raise EOFError("truncated")
            levels = np.concatenate([levels, np.zeros(row * height - len(levels), levels.dtype)])
        picture = Image.new("RGB" if self._channels() == 3 else "L", self.size)
        rows = max(1, 2**20 // row)
        for top in range(0, height, rows):
            part = levels[top * row : (top + rows) * row]
            if self._white != 255:
                part = np.minimum(part, self._white).astype(np.float32)
                part = (part * (255 / self._white)).round()
            shape = (-1, width, 3) if self._channels() == 3 else (-1, width)
            band = np.ascontiguousarray(part, np.uint8).reshape(shape)
            picture.paste(Image.fromarray(band), (0, top))
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
        if self._kind == 1:  # 1 is black; digits need no blanks between them
            digits = np.frombuffer(body.translate(None, b" \t\r\n\v\f"), np.uint8)[:count]
            return np.asarray(digits == ord("0"), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for text behind the last number
            levels: np.ndarray = np.fromstring(body, np.int32, sep=" ")[:count]
        levels[levels < 0] = 0
        return levels
