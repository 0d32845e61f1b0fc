"""Which format the bytes are in (never the name), and how each is opened without decoding a pixel of it."""

import re
from collections.abc import Callable
from io import BytesIO

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile


class Unreadable(Exception):
    """Why bytes do not become a picture; up to its first colon the same for all files with this fault."""


def _open_heif(file: BytesIO) -> ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise Unreadable("a HEIC picture, which needs an extra: pip install 'raycap[heif]'") from None
    opened: ImageFile = HeifImageFile(file)  # type: ignore[no-untyped-call, unused-ignore]
    return opened


# Each is opened by its own class, not by Image.open, which goes by process-wide limits that belong to the user.
READERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "heif": _open_heif,
    "avif": AvifImageFile,
    "jpeg2000": Jpeg2KImageFile,
    "ppm": PpmImageFile,
}

# Also what raycap does not read, so that a refusal can name it.
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"P4", "ppm"),
    (b"P5", "ppm"),
    (b"P6", "ppm"),
    (b"\0\0\0\x0cJXL ", "jpeg-xl"),
    (b"\xff\x0a", "jpeg-xl"),
    (b"\0\0\x01\0", "ico"),
    (b"8BPS", "psd"),
    (b"%!PS", "eps"),
    (b"\xc5\xd0\xd3\xc6", "eps"),
    (b"%PDF", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # of a JPEG segment; the others occur inside of scans


def picture_format(data: bytes) -> str:
    """The name of the format that the first bytes show, "" where they show none."""
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else "riff"
    if data[4:8] == b"ftyp":
        return _boxed_format(data)
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    return "svg" if _is_markup(data) and b"<svg" in data[:1024] else ""


def _boxed_format(data: bytes) -> str:
    """AVIF, HEIC or a film: all share one container, and name themselves in a list of four-letter brands."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "avif"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "heif"
    return "mp4"


def canvas_of_webp(data: bytes) -> tuple[int, int] | None:
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


def scans_of_jpeg(data: bytes) -> int:
    """How many passes over the pixels are stored, up to the end of the first picture: phones append films."""
    scans, position, channels = 0, 2, b""
    while found := _MARKER.search(data, position):
        marker, start = found[1], found.end()
        if marker == b"\xd9":  # end of picture
            break
        if marker in (b"\xc0", b"\xc1"):  # baseline
            channels = data[start + 7 : start + 8]
        if marker == b"\xda":
            scans += 1
            if channels and data[start + 2 : start + 3] == channels:
                break  # all there is in one pass, and the decoder reads no other: no need to walk the pixels' bytes
        position = start + int.from_bytes(data[start : start + 2], "big")
    return scans


def describe_stranger(data: bytes) -> str:
    """What bytes of no known format are: servers send pages and messages in place of pictures."""
    if _is_markup(data):
        return "a web page (HTML or XML)"
    start = data[:1024]
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "text"
    return "its first bytes are of no known format"


def _is_markup(data: bytes) -> bool:
    return data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
