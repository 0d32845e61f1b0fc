"""Reads text files line by line in bounded memory, compressed or not, however long a line is.

Example: `for line in Lines(file)` reads a plain, gzip, bzip2, xz or zstd file. A line that is too
long raises `LongLine`; `for line in Lines(file).or_faults()` yields that and goes on.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from raycap.errors import UserError

if TYPE_CHECKING:
    from raycap.storage.location import Location

# Characters of one line of a table. Pictures in base64 fit; a JSON value of that length takes up
# to 400 MB.
LONGEST_LINE = 16_000_000
# Characters of one line of a list of URLs. Browsers and servers accept far less.
LONGEST_URL = 1 << 16
_SKIPPED_AT_A_TIME = 1 << 16
_BLOCK = 1 << 16
# Memory that an xz file may ask for. Its highest level, `xz -9e`, needs 65 MB.
_XZ_MEMORY = 256 << 20

PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# "BZh" alone may begin a text; the first block, or the end of an empty file, follows it.
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")


class Span(NamedTuple):
    """Bytes of a file without compression. Its lines are those that begin there."""

    start: int
    stop: int


class LongLine(UserError):
    """A line that is longer than the limit. It was skipped in bounded memory."""

    def __init__(self, uri: str, number: int, longest: int) -> None:
        self.number = number
        self.reason = f"longer than {longest:,} characters"
        super().__init__(f"{uri} line {number} is {self.reason}")


class Lines:
    """Iterates over the lines of a file, with their ends, as the csv module wants them.

    Byte-order marks are understood, and bytes that are no text become U+FFFD. For a line of more
    than `longest` characters `next` raises LongLine; the next call goes on after that line.

    With a span, only its lines are read, and counted from its first one.
    """

    def __init__(
        self, file: "Location", longest: int = LONGEST_LINE, span: Span | None = None
    ) -> None:
        self.number = 0  # of the last line read, from 1
        self._items = self._read(file, longest, span)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = next(self._items)
        if isinstance(item, LongLine):
            raise item
        return item

    def or_faults(self) -> "Iterator[str | LongLine]":
        """Iterates over the lines, with a LongLine instead of each that is too long."""
        return self._items

    def _read(
        self, file: "Location", longest: int, span: Span | None
    ) -> "Iterator[str | LongLine]":
        opened = opened_text(file) if span is None else _opened_span(file, span)
        with opened as text:
            cut = False  # whether the piece before may have ended between "\r" and "\n"
            while line := text.readline(longest):
                if cut and line == "\n":
                    cut = False
                    continue
                self.number += 1
                if len(line) < longest:
                    cut = False
                    yield line
                    continue
                piece, size = line, longest
                while len(piece) == size and piece[-1] not in "\r\n":
                    piece, size = text.readline(_SKIPPED_AT_A_TIME), _SKIPPED_AT_A_TIME
                cut = len(piece) == size and piece[-1] == "\r"
                yield line if line[-1] in "\r\n" else LongLine(file.uri, self.number, longest)


def first_line(file: "Location") -> str:
    """Returns the first line that is not blank, without its end, up to the limit; "" for none."""
    with opened_text(file) as text:
        while line := text.readline(LONGEST_LINE):
            if line.strip():
                return line.rstrip("\r\n")
    return ""


def head(file: "Location", size: int = 1 << 16) -> bytes:
    """Returns the first bytes of a file, decompressed."""
    with opened_unpacked(file) as stream:
        return stream.read(size)


def name_unpacked(name: str) -> str:
    """Returns a file name in lower case, without .gz and such: "a.csv" for "A.CSV.gz"."""
    lower = name.lower()
    for ending in PACKED_ENDINGS:
        if lower.endswith(ending):
            return lower.removesuffix(ending)
    return lower


@contextmanager
def opened_text(file: "Location") -> Iterator[io.TextIOWrapper]:
    """Opens a file as text, decompressed."""
    with opened_unpacked(file) as stream:
        marked = stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if marked else "utf-8-sig"
        yield io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")


def can_be_cut(file: "Location") -> bool:
    """Whether the lines of a text file can be read from its middle on: it is neither compressed
    nor UTF-16."""
    with file.open() as raw:
        start = raw.read(10)
    return not (
        _compression(start) or start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    )


@contextmanager
def _opened_span(file: "Location", span: Span) -> Iterator[io.TextIOWrapper]:
    with file.open() as raw:
        try:
            start, stop = (_start_of_line(raw, at) for at in span)
            raw.seek(start)
            stream = io.BufferedReader(_Part(raw, stop - start), _BLOCK)
            encoding = "utf-8" if span.start else "utf-8-sig"
            yield io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
        except OSError as error:
            raise UserError(f"cannot read {file.uri}: {error.strerror or error}") from error


def _start_of_line(raw: IO[bytes], at: int) -> int:
    """The first byte from `at` on with which a line begins; the end of the file if there is none.

    Lines end with "\\n", "\\r\\n" or "\\r", as a text stream has them.
    """
    if at == 0:
        return 0
    position = at - 1
    raw.seek(position)
    while block := raw.read(_BLOCK):
        ends = [end for end in (block.find(b"\n"), block.find(b"\r")) if end >= 0]
        if ends:
            end = min(ends)
            behind = block[end + 1 : end + 2] or raw.read(1)
            is_pair = block[end : end + 1] == b"\r" and behind == b"\n"
            return position + end + (2 if is_pair else 1)
        position += len(block)
    return position


class _Part(io.RawIOBase):
    """The next bytes of a file, so many at most."""

    def __init__(self, raw: IO[bytes], size: int) -> None:
        self._raw, self._left = raw, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


@contextmanager
def opened_unpacked(file: "Location") -> Iterator[io.BufferedReader]:
    """Opens a file, decompressed if its first bytes say that it is compressed.

    Raises UserError if it is damaged.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(file.open())
        kind = _compression(raw.read(10))
        raw.seek(0)
        try:
            stream = stack.enter_context(_unpacked(raw, kind))
            yield stack.enter_context(io.BufferedReader(stream, _BLOCK))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _Damaged) as error:
            raise UserError(
                f"{file.uri} is a damaged {kind} file ({error}): fetch it again"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {file.uri}: {error.strerror or error}") from error


def _compression(start: bytes) -> str:
    if start.startswith(b"BZh") and start[4:] in _BZIP2_BLOCKS:
        return "bzip2"
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def _unpacked(raw: IO[bytes], kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return _Unpacked(raw, bz2.BZ2Decompressor)
    if kind == "xz":
        return _Unpacked(raw, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
    if kind == "zstd":
        return _Zstd(raw)
    return raw


class _Damaged(Exception):
    """A fault of the compressed data, as opposed to one of the file itself."""


class _Unpacked(io.RawIOBase):
    """Decompresses bz2 or xz.

    The classes of the standard library let an xz file use any amount of memory, and take a damaged
    second stream for the end of the file.
    """

    def __init__(self, packed: IO[bytes], make: Callable[[], Any]) -> None:
        self._packed = packed
        self._make = make
        self._decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:
                block = self._next_stream()
                if not block:
                    return 0
                self._decompressor = self._make()
            else:
                block = self._packed.read(_BLOCK) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not block:
                    raise EOFError("it ends too early")
            try:
                data = self._decompressor.decompress(block, len(buffer))
            except OSError as error:  # bz2's
                raise _Damaged(str(error)) from error
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bytes:
        """The first bytes of the next stream, after zeros between the two; b"" at the end."""
        block: bytes = self._decompressor.unused_data
        while not block.lstrip(b"\0"):
            block = self._packed.read(_BLOCK)
            if not block:
                return b""
        return block.lstrip(b"\0")


class _Zstd(io.RawIOBase):
    """Decompresses zstd with Arrow, which takes windows of up to 128 MB."""

    def __init__(self, packed: IO[bytes]) -> None:
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        self._stream = pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # of the file itself
                raise
            raise _Damaged(str(error)) from error
        buffer[: len(data)] = data
        return len(data)
