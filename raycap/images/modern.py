"""WebP, HEIF, AVIF and JPEG XL: their decoders hand on copies, and some allocate when they open a file."""

from io import BytesIO

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.WebPImagePlugin import WebPImageFile

from raycap.images.av1 import Frames, coded_colours, frames_of_avif
from raycap.images.colours import Colours, coded_profile
from raycap.images.picture_file import PictureError, PictureFile


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
        self.picture._decoder = None  # whose canvas takes as much as the picture
        mode = self.picture.rawmode
        decoded = Image.frombuffer(mode, self.size, frame[0], "raw", mode, 0, 1)  # without a copy
        return decoded


def _canvas_of_webp(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header, none where it has none: opening a WebP takes memory for all of them."""
    wide, at = data[12:16], data[20:30]
    if len(data) < 30 or wide not in (b"VP8X", b"VP8L", b"VP8 "):
        return None
    if wide == b"VP8X":
        return int.from_bytes(at[4:7], "little") + 1, int.from_bytes(at[7:10], "little") + 1
    if wide == b"VP8L":
        bits = int.from_bytes(at[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(at[6:8], "little") & 0x3FFF, int.from_bytes(at[8:10], "little") & 0x3FFF


class Avif(PictureFile):
    def open(self) -> Image.Image:
        self._frames: Frames = frames_of_avif(self.data)
        for width, height in self._frames.sizes:
            self.limits.check_part("a frame", width, height)
        return AvifImageFile(BytesIO(self.data))

    def memory(self) -> float:
        coded = (
            sum(width * height for width, height in self._frames.sizes)
            or self.size[0] * self.size[1]
        )
        each = 7 if self._frames.deep else 3.5
        return 2 * len(self.data) + coded * each + self.size[0] * self.size[1] * 8

    def load(self, salvage: bool) -> Image.Image:
        assert isinstance(self.picture, AvifImageFile)
        pixels = self.picture._decoder.get_frame(0)[0]
        self.picture._decoder = None  # which holds another copy
        mode = self.picture.mode
        if mode == "RGBA":
            return Image.frombuffer(mode, self.size, pixels, "raw", mode, 0, 1)  # without a copy
        return Image.frombytes(mode, self.size, pixels)

    def profile(self) -> Colours:
        given = super().profile()
        return given if given.profile else _coded(self.data)


def _coded(data: bytes) -> Colours:
    coded = coded_colours(data)
    return Colours(profile=coded_profile(*coded)) if coded else Colours()


class Heif(PictureFile):
    def open(self) -> Image.Image:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise PictureError(
                "a HEIC picture, which needs an extra: pip install 'raycap[heif]'"
            ) from None
        opened: Image.Image = HeifImageFile(BytesIO(self.data))  # type: ignore[no-untyped-call, unused-ignore]
        return opened

    def memory(self) -> float:
        """libheif itself refuses frames that are larger than the size that the file states."""
        each = 12 if self.picture.info.get("bit_depth", 8) <= 8 else 18
        if self.picture.mode == "RGBA":
            each += 4
        return 2 * len(self.data) + self.size[0] * self.size[1] * each

    def profile(self) -> Colours:
        given = super().profile()
        return given if given.profile else _coded(self.data)


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
        try:
            opened: Image.Image = JXLImageFile(BytesIO(self.data))  # type: ignore[no-untyped-call, unused-ignore]
        except RuntimeError as fault:
            raise PictureError(f"broken jpeg-xl: {str(fault)[:200]}") from None
        return opened

    def _memory(self, width: int, height: int) -> float:
        return 3 * len(self.data) + width * height * self._each

    def memory(self) -> float:
        return self._memory(*self.size)

    def turn(self) -> Image.Transpose | None:
        # The decoder has turned the picture by its own header, unless the file wraps a JPEG.
        return super().turn() if getattr(self.picture, "jpeg", False) else None


class _Bits:
    """Numbers from bits, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        number = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return number


def _header_of_jpeg_xl(data: bytes) -> tuple[int, int, int]:
    """Width, height, and the bytes that decoding takes for each pixel (ISO 18181-1, annex D)."""
    stream = data[:64] if data[:2] == b"\xff\x0a" else _jpeg_xl_stream(data)
    if len(stream) < 12:
        raise EOFError("end of file in the header")
    bits = _Bits(stream[2:])
    small = bits.take(1)

    def side() -> int:
        if small:
            return 8 * (1 + bits.take(5))
        return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[
            ratio - 1
        ]
        width = height * numerator // denominator
    else:
        width = side()
    if bits.take(1):  # all defaults: 8 bits, no channels but colours
        return width, height, 10
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(3):  # a preview or an animation, whose headers would follow
            return width, height, 40
    each = 28
    if not bits.take(1):  # whole numbers
        depth = (8, 10, 12, 0)[choice] if (choice := bits.take(2)) < 3 else 1 + bits.take(6)
        each = 12 if depth <= 8 else 18
    else:
        bits.take((0, 0, 0, 6)[bits.take(2)])
        bits.take(4)
    bits.take(1)
    extra = (
        (0, 1)[choice]
        if (choice := bits.take(2)) < 2
        else (2 + bits.take(4) if choice == 2 else 1 + bits.take(12))
    )
    return width, height, each + 8 * max(0, extra - 1)


def _jpeg_xl_stream(data: bytes) -> bytes:
    """The start of the codestream inside the boxes."""
    position = 0
    while position + 8 <= len(data):
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
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0
            return data[start : start + 64]
        if length < 8:
            break
        position += length
    return b""
