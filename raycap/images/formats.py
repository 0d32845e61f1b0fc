"""Recognises the format of a picture by its bytes, and names the class that reads each format."""

import re

from raycap.images.avif_heif import Avif, Heif
from raycap.images.bitmaps import Bmp, Gif, Ppm
from raycap.images.jpeg import Jpeg, Jpeg2000
from raycap.images.picture_file import PictureFile
from raycap.images.png import Png
from raycap.images.tiff import Tiff
from raycap.images.webp_jxl import JpegXl, WebP

READERS: dict[str, type[PictureFile]] = {
    "jpeg": Jpeg,
    "png": Png,
    "webp": WebP,
    "gif": Gif,
    "bmp": Bmp,
    "tiff": Tiff,
    "heif": Heif,
    "avif": Avif,
    "jpeg2000": Jpeg2000,
    "jpeg-xl": JpegXl,
    "ppm": Ppm,
}

# With formats that raycap does not read, so that an error can name them.
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
_PPM = re.compile(rb"P[1-6][\s#]")


def picture_format(data: bytes) -> str:
    """The name of the format by the first bytes, "" if they are unknown."""
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else "riff"
    if data[4:8] == b"ftyp":
        return _boxed_format(data)
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if _PPM.match(data):
        return "ppm"
    return "svg" if _is_markup(data) and b"<svg" in data[:1024] else ""


def _boxed_format(data: bytes) -> str:
    """AVIF, HEIF or MP4: they share a container, which lists four-letter brands."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "avif"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "heif"
    return "mp4"


def describe_unknown(data: bytes) -> str:
    """Describes bytes of no known format: servers send web pages and messages in place of
    pictures."""
    if _is_markup(data):
        return "a web page (HTML or XML)"
    start = data[:1024]
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "text"
    return "its first bytes are of no known format"


def _is_markup(data: bytes) -> bool:
    return data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
