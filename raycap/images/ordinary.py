"""Says by the header whether a picture is an ordinary photo, which every decoder has seen a billion times."""

import re

# A JPEG of a camera, a PNG of a screen. With more pixels, decoding takes memory that is worth a limit.
MOST_PIXELS = {"jpeg": 2**25, "png": 2**24}
MOST_BYTES = 2**25

_SEGMENT = re.compile(rb"\xff+([^\x00\xff])")


def is_ordinary(kind: str, data: bytes) -> bool:
    """Whether `data` of the format `kind` may be read without a guard: a JPEG or PNG with 8 bits a channel that is
    not very large."""
    if kind not in MOST_PIXELS or len(data) > MOST_BYTES:
        return False
    if kind == "jpeg":
        header = _frame_of_jpeg(data)  # bits, height and width
    else:
        header = data[24:25] + data[20:24] + data[16:20] if data[12:16] == b"IHDR" else b""
    half = (len(header) - 1) // 2
    bits = header[:1]
    pixels = int.from_bytes(header[1 : 1 + half], "big") * int.from_bytes(header[1 + half :], "big")
    return bool(half > 0 and bits and bits[0] <= 8 and pixels <= MOST_PIXELS[kind])


def _frame_of_jpeg(data: bytes) -> bytes:
    """Bits, height and width of a baseline or progressive JPEG; empty for others."""
    position = 2
    for _ in range(200):  # segments before the frame header: EXIF, ICC, ...
        found = _SEGMENT.match(data, position)
        if not found:
            return b""
        marker, start = found[1][0], found.end()
        if marker in (0xC0, 0xC1, 0xC2):
            return data[start + 2 : start + 7]
        if marker in (0xD8, 0xD9, 0xDA) or (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return b""
        position = start + int.from_bytes(data[start : start + 2], "big")
    return b""
