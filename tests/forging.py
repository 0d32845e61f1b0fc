"""Pictures and files made by hand for the hostile corpus: what no library would write."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
WIDTH, HEIGHT = 96, 64  # each quadrant is whole in blocks of 16, so that JPEG keeps its colour
# As one reads.
QUADRANTS: list[Colour] = [
    (200, 40, 40),
    (40, 160, 60),
    (40, 60, 200),
    (230, 200, 60),
]


def quadrants(
    colours: list[Any] = QUADRANTS, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    picture = Image.new(mode, size)
    for place, colour in enumerate(colours):
        left, top = (place % 2) * size[0] // 2, (place // 2) * size[1] // 2
        picture.paste(colour, (left, top, left + size[0] // 2, top + size[1] // 2))
    return picture


@dataclass(frozen=True)
class Hostile:
    """One file and its expected outcome."""

    name: str
    data: bytes
    format: str = ""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    """as a viewer shows it; not looked at where the file is refused"""
    error: str = ""
    """the head of the reason, "" where the picture can be read"""
    quadrants: list[Colour | None] = field(default_factory=lambda: list(QUADRANTS))
    """colours in the middle of the quadrants, none where anything may be"""
    tolerance: int = 6
    options: dict[str, Any] = field(default_factory=dict)
    """fields of `Reading` that differ from its defaults"""


def luma(colour: Colour) -> int:
    return round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


LUMA = [luma(colour) for colour in QUADRANTS]
GREYS: list[Colour | None] = [(grey, grey, grey) for grey in LUMA]


def textured() -> Image.Image:
    """Quadrants with fine noise, so that no part of the file is much smaller than another."""
    noise = np.random.default_rng(0).integers(-5, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.asarray(quadrants()) + noise).astype(np.uint8))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    # A copy: Pillow leaves settings of one save behind for the next.
    picture.copy().save(file, kind, **options)
    return file.getvalue()


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    return saved(picture, "JPEG", quality=92, **options)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour_type: int, rows: bytes, before: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int) -> bytes:
    """A TIFF that claims this size of 8-bit grey, with one byte of it."""
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IIH", 12, 0, len(tags)) + entries + bytes(4)


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG before its first scan's data."""
    start = 2
    while start < len(data):
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield data[start + 1], start, end
        if data[start + 1] == 0xDA:
            return
        start = end


def segment(data: bytes, marker: int) -> tuple[int, int]:
    return next((start, end) for found, start, end in segments(data) if found == marker)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera with this EXIF orientation stores it."""
    turn = Image.Transpose
    back = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
    }
    back |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    return picture.transpose(back[orientation]) if orientation in back else picture


def inked(picture: Image.Image) -> Image.Image:
    """To CMYK with as much black ink as there can be."""
    ink = 255 - np.asarray(picture).astype(float)
    red, green, blue = np.moveaxis(ink, 2, 0)
    black = np.minimum(np.minimum(red, green), blue)[:, :, None]
    colours = (ink - black) * 255 / np.maximum(255 - black, 1)
    return Image.fromarray(np.concatenate([colours, black], 2).round().astype(np.uint8), "CMYK")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# Columns: the red, green and blue primaries of sRGB and of Display P3 in XYZ under D50, as in
# their ICC profiles.
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC profile, version 2."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    head = bytes(4) + b"\2\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)  # D50 in 1/65536
    return struct.pack(">I", 128 + len(table + body)) + head + table + body


def xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def linear(levels: Any) -> Any:
    """sRGB levels 0..255 to light 0..1."""
    levels = np.asarray(levels, float) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def packed(levels: np.ndarray, bits: int, order: str, kind: str = "u") -> bytes:
    """Rows of levels [H, N] as a TIFF stores them: bytes in the file's order, or packed bits."""
    if bits in (8, 16, 32, 64):
        return levels.astype(f"{order}{kind}{bits // 8}").tobytes()
    each = (levels.astype(np.int64)[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(levels), -1).astype(np.uint8), axis=1).tobytes()


def tiff_of(
    levels: np.ndarray,
    bits: int,
    photometric: int,
    order: str = "<",
    big: bool = False,
    kind: str = "u",
    deflated: bool = False,
    planar: bool = False,
    tile: int = 0,
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A TIFF of `levels` [H, W, C], in one strip for each plane or in tiles, written by hand."""
    height, width, samples = levels.shape
    planes = [levels[:, :, [each]] for each in range(samples)] if planar else [levels]
    parts = planes
    if tile:
        padding = ((0, -height % tile), (0, -width % tile), (0, 0))
        parts = [
            np.pad(plane, padding)[top : top + tile, left : left + tile]
            for plane in planes
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    bodies = [packed(part.reshape(len(part), -1), bits, order, kind) for part in parts]
    bodies = [zlib.compress(body) for body in bodies] if deflated else bodies
    start = 16 if big else 8
    offsets = tuple(
        start + sum(len(body) for body in bodies[:place]) for place in range(len(bodies))
    )
    fields = {256: (width,), 257: (height,), 258: (bits,) * samples, 259: (8 if deflated else 1,)}
    fields |= {262: (photometric,), 277: (samples,), 284: (2 if planar else 1,)}
    fields |= {339: ({"u": 1, "i": 2, "f": 3}[kind],) * samples}
    where = {322: (tile,), 323: (tile,), 324: offsets} if tile else {273: offsets, 278: (height,)}
    fields |= where | {325 if tile else 279: tuple(len(body) for body in bodies)} | (tags or {})
    end = start + sum(len(body) for body in bodies)
    size, count, offset = (20, "Q", "Q") if big else (12, "H", "I")
    after = end + struct.calcsize("<" + count) + size * len(fields) + struct.calcsize("<" + offset)
    directory, values = struct.pack(order + count, len(fields)), b""
    for tag, numbers in sorted(fields.items()):
        letter = {256: 4, 257: 4, 273: 4, 279: 4, 324: 4, 325: 4, 700: 1}.get(tag, 3)
        value = struct.pack(f"{order}{len(numbers)}{' BHHI'[letter]}", *numbers)
        room = 8 if big else 4
        if len(value) > room:
            values, value = values + value, struct.pack(order + offset, after + len(values))
        directory += struct.pack(f"{order}HH{offset}", tag, letter, len(numbers)) + value.ljust(
            room, b"\0"
        )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, end) if big else struct.pack(order + "I", end)
    return b"".join([head, *bodies, directory, struct.pack(order + offset, 0), values])
