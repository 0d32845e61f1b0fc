"""Cuts files of rows into units: lines and CSV by bytes, Parquet by row groups.

Example: a list of 6 GB becomes 700 units of 8 MB. A unit begins with the first line that begins
in its bytes. Small files are put together to one unit; a source that is no larger than a unit or
two is not cut.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from raycap.sources.lines import Span, can_be_cut
from raycap.sources.notes import CHANGED_FILE, Notes
from raycap.sources.parquet import row_groups, unpacked_share
from raycap.storage.location import Location, locate

# Bytes of a unit without compression: some 150,000 URLs. A very large source has so many units.
UNIT_BYTES = 8 << 20
MOST_UNITS = 1000
_READ_AT_ONCE = 1 << 20
_THREADS = 16

# Cuts a file of so many bytes into parts of about so many.
Cut = Callable[[Location, int, int], list[Span]]


class Piece(NamedTuple):
    """A file, or a part of one: bytes of text, or row groups of Parquet."""

    uri: str
    part: Span | None
    stamp: str  # by which a change of the file is seen

    @property
    def file(self) -> Location:
        return locate(self.uri)


class Unit(NamedTuple):
    first: str  # the source's first file, which decides the columns of all
    pieces: list[Piece]

    def __str__(self) -> str:
        return json.dumps(self)

    @classmethod
    def parse(cls, name: str) -> "Unit":
        first, pieces = json.loads(name)
        parsed = [
            Piece(uri, Span(*part) if part is not None else None, stamp)
            for uri, part, stamp in pieces
        ]
        return cls(first, parsed)


def units_of_files(files: Sequence[Location], cut: Sequence[Cut]) -> tuple[str, ...]:
    """The units of files, each with what cuts it; ("",) if they are not cut."""
    with ThreadPoolExecutor(_THREADS) as pool:
        known = list(pool.map(_size_and_stamp, files))
        if cut[0] is cut_row_groups:  # Parquet is compressed
            weight = unpacked_share(files[0], known[0][0])
            known = [(round(size * weight), stamp) for size, stamp in known]
        total = sum(size for size, _ in known)
        target = max(UNIT_BYTES, total // MOST_UNITS)
        if total < 2 * target:
            return ("",)

        def parts_of(index: int) -> list[Span]:
            size = known[index][0]
            return cut[index](files[index], size, target) if size >= 2 * target else []

        parts = list(pool.map(parts_of, range(len(files))))
    units: list[list[Piece]] = []
    small: list[Piece] = []  # files that make a unit together
    small_bytes = 0
    for file, (size, stamp), spans in zip(files, known, parts, strict=True):
        is_cut = len(spans) > 1
        if small and (is_cut or small_bytes + size > target):
            units.append(small)
            small, small_bytes = [], 0
        if is_cut:
            units += [[Piece(file.uri, span, stamp)] for span in spans]
        else:
            small.append(Piece(file.uri, None, stamp))
            small_bytes += size
    units += [small] if small else []
    if len(units) < 2:
        return ("",)
    return tuple(str(Unit(files[0].uri, pieces)) for pieces in units)


def tell_changes(units: Sequence[str]) -> bool:
    """Whether these units of files name a version of each file. Not all stores have one."""
    stamps = [piece.stamp for unit in units if unit for piece in Unit.parse(unit).pieces]
    return bool(stamps) and all(stamp.partition(" ")[2] for stamp in stamps)


def lines_before(units: Sequence[str], lines: Sequence[int], number: int) -> int:
    """How many lines its file has before a unit, of which `lines` has those of each unit."""
    pieces = Unit.parse(units[number]).pieces if units[number] else []
    if not pieces or pieces[0].part is None:
        return 0
    before = 0
    for earlier in range(number - 1, -1, -1):  # units of a file follow each other
        if Unit.parse(units[earlier]).pieces[0].uri != pieces[0].uri:
            break
        before += lines[earlier]
    return before


def unchanged(pieces: Sequence[Piece], notes: Notes) -> Iterator[Piece]:
    """Yields the pieces; notes those of files that have changed since they were cut. Their rows
    are new ones for the next run."""
    for piece in pieces:
        if _stamp_of(piece.file) != piece.stamp:
            notes.add(CHANGED_FILE, piece.uri)
            continue
        yield piece
        if _stamp_of(piece.file) != piece.stamp:
            notes.add(CHANGED_FILE, piece.uri)


def _stamp_of(file: Location) -> str:
    try:
        return _size_and_stamp(file)[1]
    except OSError:
        return "not there"


def _size_and_stamp(file: Location) -> tuple[int, str]:
    if file.filesystem is None:
        facts = os.stat(file.path)  # noqa: PTH116 - names need not be UTF-8
        return facts.st_size, f"{facts.st_size} {facts.st_mtime_ns}"
    if file.uri.startswith("hf://"):  # it would ask for the whole repository again
        info: dict[str, Any] = file.filesystem.info(file.path)
    else:
        file.filesystem.invalidate_cache(file.parent.path)
        info = file.filesystem.info(file.path)
    marks = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified")
    mark = next((info[name] for name in marks if info.get(name)), "")
    return int(info["size"] or 0), f"{info['size']} {mark}"


# How files are cut.


def cut_nothing(file: Location, size: int, target: int) -> list[Span]:
    return []


def cut_lines(file: Location, size: int, target: int) -> list[Span]:
    """Lines of text that is neither compressed nor UTF-16."""
    if not can_be_cut(file):
        return []
    count = size // target
    cuts = [size * number // count for number in range(count + 1)]
    return [Span(*pair) for pair in itertools.pairwise(cuts)]


def cut_delimited(file: Location, size: int, target: int) -> list[Span]:
    """Text in which no value is quoted: line breaks in quotes are no ends of rows, and from the
    middle of a file it is not known which ones are in quotes."""
    spans = cut_lines(file, size, target)
    return [] if not spans or _has_quotes(file, size) else spans


def cut_row_groups(file: Location, size: int, target: int) -> list[Span]:
    spans: list[Span] = []
    start = gathered = 0
    sizes = row_groups(file)
    for group, group_size in enumerate(sizes):
        gathered += group_size
        if gathered >= target or group == len(sizes) - 1:
            spans.append(Span(start, group + 1))
            start, gathered = group + 1, 0
    return spans


def _has_quotes(file: Location, size: int) -> bool:
    is_found = threading.Event()

    def look(span: tuple[int, int]) -> None:
        start, stop = span
        with file.open() as raw:
            raw.seek(start)
            while start < stop and not is_found.is_set():
                block = raw.read(min(_READ_AT_ONCE, stop - start))
                if not block:
                    return
                if b'"' in block:
                    is_found.set()
                start += len(block)

    look((0, _READ_AT_ONCE))  # most files with quotes have them there
    cuts = [size * number // _THREADS for number in range(_THREADS + 1)]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(look, itertools.pairwise(cuts)))
    return is_found.is_set()
