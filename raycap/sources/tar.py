"""Reads the members of a tar one after the other, in memory that does not grow with the tar.

The classes of the standard library take damage after the first member for the end of the tar, and
read a header of any size that a damaged field names.
"""

import re
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

BLOCK = 512
# Bytes of a long name or of the PAX fields of one member; systems take paths of 4,096 bytes.
LONGEST_FIELDS = 1 << 20
_ZEROS = bytes(BLOCK)
# Links, devices, directories and pipes: a size in their header means nothing.
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_LINKS = (b"1", b"2")
_FILES = (b"\0", b"0", b"7")
_PAX = (b"x", b"X")
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_PAX_RECORD = re.compile(rb"(\d{1,7}) ")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class DamagedTar(Exception):
    """Nothing more can be read of a tar: it is cut, damaged, or no tar."""


class Member(NamedTuple):
    """One file in a tar."""

    name: str
    kind: Literal["file", "link", "sparse"]  # links and sparse files have no bytes of their own
    offset: int
    size: int


def members(stream: IO[bytes]) -> Iterator[Member]:
    """Yields the files of a tar in their order, those of joined tars too. Directories and devices
    are left out.

    The caller may read the stream wherever it likes meanwhile. Raises DamagedTar where the tar is
    damaged or ends without its end mark; a member that is cut is not yielded.
    """
    total = stream.seek(0, 2)
    position, is_ended = 0, False
    name, sparse, pax_size = "", False, -1  # what headers before a member say of it
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if is_ended and not block.strip(b"\0"):
            if len(block) < BLOCK:
                return
            position += BLOCK
            continue
        if position == 0:
            _check_unpacked(block)
        if len(block) < BLOCK:
            raise DamagedTar("it ends too early: its end mark is missing")
        position += BLOCK
        if block == _ZEROS:
            is_ended = True
            continue
        is_ended = False
        size, kind = _checked_size(block, position - BLOCK), block[156:157]
        if kind == b"S":
            position = _after_sparse_headers(stream, block, position)
        if kind in _WITHOUT_DATA:
            size = 0
        elif pax_size >= 0 and kind not in (b"L", b"K", b"g", *_PAX):
            size = pax_size
        start, position = position, position + -(-size // BLOCK) * BLOCK
        if start + size > total:
            raise DamagedTar(f"it ends too early: in the bytes of {_name_of(block)!r}")

        if kind in (b"L", *_PAX):
            if size > LONGEST_FIELDS:
                raise DamagedTar(f"a name of {size:,} bytes")
            stream.seek(start)
            fields = stream.read(size)
            if len(fields) < size:
                raise DamagedTar("it ends too early: in a long name")
            if kind == b"L":
                name = _text(fields.split(b"\0")[0])
                continue
            for key, value in _pax_fields(fields):
                if key in (b"path", b"GNU.sparse.name"):
                    name = _text(value)
                elif key == b"size":
                    pax_size = _pax_number(value)
                sparse |= key.startswith(b"GNU.sparse.")
            continue
        if kind in (b"K", b"g"):
            continue
        found, is_sparse = name or _name_of(block), sparse or kind == b"S"
        name, sparse, pax_size = "", False, -1
        if found.endswith("/"):
            continue
        if kind in _LINKS:
            yield Member(found, "link", start, 0)
        elif is_sparse:
            yield Member(found, "sparse", start, size)
        elif kind in _FILES:
            yield Member(found, "file", start, size)


def _check_unpacked(start: bytes) -> None:
    for magic, packed in _PACKED.items():
        if start.startswith(magic):
            raise DamagedTar(
                f"it is compressed ({packed}), so single pictures cannot be read from it: unpack "
                "it to a plain .tar first"
            )


def _checked_size(block: bytes, position: int) -> int:
    """The size in a header; raises DamagedTar unless its checksum is right."""
    try:
        checksum, size = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        checksum = size = -1
    # The field of the checksum counts as eight blanks. Some old programs summed signed bytes.
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    if checksum != unsigned and checksum != unsigned - 256 * _high_bytes(block):
        where = "it is no tar" if position == 0 else f"no member begins at byte {position:,}"
        raise DamagedTar(f"{where} (the checksum is wrong)")
    if size < 0:
        raise DamagedTar(f"a member at byte {position:,} without a size")
    return size


def _high_bytes(block: bytes) -> int:
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _number(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):  # binary, for what octal digits cannot hold
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    found = _OCTAL.match(field)
    if not found or (found.end() < len(field) and field[found.end() - 1] not in b" \0"):
        raise ValueError(field)
    return int(found[1] or b"0", 8)


def _name_of(block: bytes) -> str:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0]
    is_posix = block[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if is_posix and prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _after_sparse_headers(stream: IO[bytes], block: bytes, position: int) -> int:
    """Where the bytes of an old GNU sparse file begin: its map may go on in further blocks."""
    goes_on = block[482] != 0
    stream.seek(position)
    while goes_on:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise DamagedTar("it ends too early: in the map of a sparse file")
        goes_on, position = block[504] != 0, position + BLOCK
    return position


def _pax_fields(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records such as "25 path=a/b.jpg\\n"; the number is the length of the whole record."""
    start = 0
    while start < len(data) and data[start] != 0:
        found = _PAX_RECORD.match(data, start)
        end = start + int(found[1]) if found else 0
        if not found or end <= found.end() or end > len(data):
            raise DamagedTar("a damaged extended header")
        key, equals, value = data[found.end() : end - 1].partition(b"=")
        if not equals:
            raise DamagedTar("a damaged extended header")
        yield key, value
        start = end


def _pax_number(value: bytes) -> int:
    if not re.fullmatch(rb"\d{1,18}", value):
        raise DamagedTar("a damaged extended header")
    return int(value)
