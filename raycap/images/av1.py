"""What AVIF and HEIF files state of the pictures inside: the sizes of AV1 frames, and the colours.

An AVIF may state a small size and hold a huge frame, which the decoder makes first and scales down after.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raycap.images.picture_file import PictureError

Box = tuple[bytes, int, int]
_MOST_ITEMS = 10_000
_SEQUENCE_HEADER = 1


@dataclass
class Frames:
    """The coded frames of a file: one, or one for each tile of a grid, and one for each alpha."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    deep: bool = False
    """whether any has more than 8 bits a channel"""


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Each box between `start` and `end`: its kind, and where its content starts and ends."""
    while start + 8 <= end:
        length, kind, content = (
            int.from_bytes(data[start : start + 4], "big"),
            data[start + 4 : start + 8],
            start + 8,
        )
        if length == 1:
            length, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        if length == 0:
            length = end - start
        if length < content - start:
            return
        yield kind, content, min(end, start + length)
        start += length


def inside(data: bytes, box: Box, *path: bytes) -> Iterator[Box]:
    """The boxes at the end of a path of kinds."""
    for found in boxes(data, box[1], box[2]):
        if found[0] == path[0]:
            if len(path) == 1:
                yield found
            else:
                yield from inside(data, found, *path[1:])


def coded_colours(data: bytes) -> tuple[int, int] | None:
    """The first primaries and transfer that a picture states as numbers of ITU-T H.273."""
    for meta in inside(data, (b"", 0, len(data)), b"meta"):
        for _, start, end in inside(
            data, (b"meta", meta[1] + 4, meta[2]), b"iprp", b"ipco", b"colr"
        ):
            if data[start : start + 4] == b"nclx" and end - start >= 8:
                return int.from_bytes(data[start + 4 : start + 6], "big"), int.from_bytes(
                    data[start + 6 : start + 8], "big"
                )
    return None


def frames_of_avif(data: bytes) -> Frames:
    frames = Frames()
    for at in _starts(data):
        header = _sequence_header(data, at)
        if header:
            try:
                width, height, deep = _parse_sequence_header(header)
            except IndexError:
                continue
            frames.sizes.append((width, height))
            frames.deep = frames.deep or deep
    return frames


def _starts(data: bytes) -> Iterator[int]:
    """Where the bytes of each item and of each track begin."""
    everything = b"", 0, len(data)
    for meta in inside(data, everything, b"meta"):
        content = b"meta", meta[1] + 4, meta[2]
        own = next((start for _, start, _ in inside(data, content, b"idat")), 0)
        for _, start, end in inside(data, content, b"iloc"):
            yield from _item_starts(data[start:end], own)
    for kind, size in ((b"stco", 4), (b"co64", 8)):
        for _, start, _ in inside(
            data, everything, b"moov", b"trak", b"mdia", b"minf", b"stbl", kind
        ):
            yield int.from_bytes(data[start + 8 : start + 8 + size], "big")


def _item_starts(table: bytes, own: int) -> Iterator[int]:
    """Of an item location box; `own` is where the box for small items begins."""
    position = 6

    def number(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(table[position - size : position], "big")

    if len(table) < 8:
        return
    version = table[0]
    offset_size, length_size, base_size = table[4] >> 4, table[4] & 15, table[5] >> 4
    index_size = table[5] & 15 if version in (1, 2) else 0
    id_size = 2 if version < 2 else 4
    count = number(id_size)
    if count > _MOST_ITEMS:
        raise PictureError(f"broken avif: {count} items")
    for _ in range(count):
        number(id_size)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base, extents = number(base_size), number(2)
        if position > len(table):
            return
        for extent in range(extents):
            number(index_size)
            start = number(offset_size)
            number(length_size)
            if position > len(table):
                return
            if extent == 0:
                yield base + start + (own if method == 1 else 0)


def _sequence_header(data: bytes, at: int) -> bytes:
    """The content of the first sequence header among the units that begin there, b"" where there is none."""
    for _ in range(16):
        if at >= len(data) or not data[at] & 2:  # a unit without a length is the last
            return b""
        kind, at = data[at] >> 3 & 15, at + (2 if data[at] & 4 else 1)
        length = 0
        for place in range(8):
            byte = data[at] if at < len(data) else 0
            at += 1
            length |= (byte & 127) << (7 * place)
            if byte < 128:
                break
        if kind == _SEQUENCE_HEADER:
            return data[at : at + min(length, 1024)]
        at += length
    return b""


class _Bits:
    """Numbers from bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._all, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("end of the header")
        return self._all >> self._left & ((1 << count) - 1)


def _parse_sequence_header(header: bytes) -> tuple[int, int, bool]:
    """Largest width and height of a frame, and whether it has more than 8 bits (AV1 specification, 5.5)."""
    take = _Bits(header).take
    take(4)  # profile, still picture
    reduced = take(1)
    if reduced:
        take(5)
    else:
        _skip_operating_points(take)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    width, height = take(width_bits) + 1, take(height_bits) + 1
    if not reduced and take(1):  # frame numbers
        take(7)
    take(3)
    if not reduced:
        take(4)
        order = take(1)
        if order:
            take(2)
        screen = 2 if take(1) else take(1)
        if screen and not take(1):
            take(1)
        if order:
            take(3)
    take(3)
    return width, height, bool(take(1))


def _skip_operating_points(take: Callable[[int], int]) -> None:
    model, delay_bits = 0, 0
    if take(1):  # timing
        take(64)
        if take(1):
            zeros = 0
            while not take(1):
                zeros += 1
            take(zeros)
        model = take(1)
        if model:
            delay_bits = take(5) + 1
            take(42)
    delays = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if model and take(1):
            take(2 * delay_bits + 1)
        if delays and take(1):
            take(4)
