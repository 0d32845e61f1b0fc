"""WebP and JPEG XL, whose decoders allocate memory when they open a file."""

from io import BytesIO

from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from raycap.images.picture_file import PictureError, PictureFile, boxes


class WebP(PictureFile):
    def open(self) -> Image.Image:
        canvas = _canvas_of_webp(self.data)
        if canvas:
            self.limits.check_size(*canvas)
        return WebPImageFile(BytesIO(self.data))

    def memory(self) -> float:
        return 3 * len(self.data) + self.size[0] * self.size[1] * 12.3

    def load(self, salvage: bool) -> Image.Image:
        assert isinstance(self.picture, WebPImageFile)
        frame = self.picture._decoder.get_next()
        if frame is None:
            raise EOFError("truncated or broken")
        self.picture._decoder = None  # its canvas takes as much memory as the picture
        mode = self.picture.rawmode
        return Image.frombuffer(mode, self.size, frame[0], "raw", mode, 0, 1)  # without a copy


def _canvas_of_webp(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header, None if it has none. Opening a WebP allocates all of it."""
    kind, header = data[12:16], data[20:30]
    if len(data) < 30 or kind not in (b"VP8X", b"VP8L", b"VP8 "):
        return None
    if kind == b"VP8X":
        width = int.from_bytes(header[4:7], "little") + 1
        height = int.from_bytes(header[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width = int.from_bytes(header[6:8], "little") & 0x3FFF
        height = int.from_bytes(header[8:10], "little") & 0x3FFF
    return width, height


class JpegXl(PictureFile):
    def open(self) -> Image.Image:
        try:
            from pillow_jxl.JpegXLImagePlugin import JXLImageFile
        except ImportError:
            raise PictureError(
                "a JPEG XL picture, which needs an extra: pip install 'raycap[jxl]'"
            ) from None
        width, height, self._each = _header_of_jpeg_xl(self.data)
        self.limits.check_size(width, height)
        self.limits.check_memory(self._memory(width, height))  # opening it decodes it
        file = BytesIO(self.data)
        picture: Image.Image
        try:
            picture = JXLImageFile(file)  # type: ignore[no-untyped-call, unused-ignore]
        except RuntimeError as error:
            raise PictureError(f"broken jpeg-xl: {str(error)[:200]}") from None
        return picture

    def _memory(self, width: int, height: int) -> float:
        return 3 * len(self.data) + width * height * self._each

    def memory(self) -> float:
        return self._memory(*self.size)

    def turn(self) -> Image.Transpose | None:
        # The decoder has already turned the picture, unless the file wraps a JPEG.
        return super().turn() if getattr(self.picture, "jpeg", False) else None


class _LowBitsFirst:
    """Reads numbers of some bits, the lowest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        number = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return number


def _header_of_jpeg_xl(data: bytes) -> tuple[int, int, int]:
    """Width, height, and bytes per pixel that decoding takes (ISO 18181-1, annex D)."""
    stream = b""
    if data[:2] == b"\xff\x0a":
        stream = data[:64]
    else:
        for kind, start, _ in boxes(data, 0, len(data)):
            if kind in (b"jxlc", b"jxlp"):
                start += 4 if kind == b"jxlp" else 0  # behind its number
                stream = data[start : start + 64]
                break
    if len(stream) < 12:
        raise EOFError("end of file in the header")
    bits = _LowBitsFirst(stream[2:])
    small = bits.take(1)

    def side() -> int:
        if small:
            return 8 * (1 + bits.take(5))
        return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    if ratio:
        ratios = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
        numerator, denominator = ratios[ratio - 1]
        width = height * numerator // denominator
    else:
        width = side()
    if bits.take(1):  # all defaults: 8 bits, no channels but colours
        return width, height, 10
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(3):  # a preview or an animation, whose headers would follow
            return width, height, 40
    if not bits.take(1):  # integers
        choice = bits.take(2)
        depth = (8, 10, 12)[choice] if choice < 3 else 1 + bits.take(6)
        each = 12 if depth <= 8 else 18
    else:
        bits.take((0, 0, 0, 6)[bits.take(2)])
        bits.take(4)
        each = 28
    bits.take(1)
    extra_channels = bits.take(2)
    if extra_channels == 2:
        extra_channels = 2 + bits.take(4)
    elif extra_channels == 3:
        extra_channels = 1 + bits.take(12)
    return width, height, each + 8 * max(0, extra_channels - 1)
