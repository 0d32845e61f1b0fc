"""Says by the header whether a picture is an ordinary photo, which every decoder has seen a billion times."""

import re
import struct

# Width x height. With more, decoding takes memory that is worth a limit.
MOST_PIXELS = {"jpeg": 2**25, "png": 2**24}
MOST_BYTES = 2**25
# Segments before the frame header of a JPEG: EXIF, colour profiles, ...
MOST_SEGMENTS = 200

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_TABLES_AND_NOTES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)


def is_ordinary(kind: str, data: bytes) -> bool:
    """Whether `data` of the format `kind` may be read without a guard: a JPEG or PNG with 8 bits a channel that is
    not very large."""
    if len(data) > MOST_BYTES:
        return False
    if kind == "jpeg":
        frame = _frame_of_jpeg(data)
    elif kind == "png" and data[12:16] == b"IHDR" and len(data) > 25:
        width, height, bits = struct.unpack_from(">IIB", data, 16)
        frame = bits, width, height
    else:
        frame = None
    if frame is None:
        return False
    bits, width, height = frame
    return bits <= 8 and width * height <= MOST_PIXELS[kind]


def _frame_of_jpeg(data: bytes) -> tuple[int, int, int] | None:
    """Bits, width and height of a baseline or progressive JPEG; None for others."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.match(data, position)
        if not found or found.end() + 7 > len(data):
            return None
        marker, start = found[1][0], found.end()
        if marker in _BASELINE_OR_PROGRESSIVE:
            bits, height, width = struct.unpack_from(">BHH", data, start + 2)
            return bits, width, height
        if marker not in _TABLES_AND_NOTES:
            return None
        position = start + int.from_bytes(data[start : start + 2], "big")
    return None
