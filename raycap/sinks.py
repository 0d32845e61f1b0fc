"""Other forms of a caption table: text files, JSON lines, WebDataset, imagefolder.

A new sink is one class and one line in ALL_SINKS. What it writes depends on one part of the table
alone, its files appear whole, and writing twice is as once. `bulk.exports` knows which parts are
to be written, and which ones are not in the table any more.
"""

import base64
import contextlib
import datetime
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.schema import SUCCESS
from raycap.sources import Source
from raycap.sources.folder import PICTURE_ENDINGS
from raycap.storage import RunFolder, output_folder
from raycap.storage.retry import with_retries
from raycap.uris import WEB, WRAPPERS, local_path, name_of, scheme_of

TextMode = Literal["skip", "overwrite"]
# File systems take names of 255 bytes and paths of 4096; some room for endings and folders.
LONGEST_NAME, LONGEST_PATH = 200, 1000
LONGEST_NAME_OF_A_DISK = 255
# A line of JSON has numbers and texts; attention maps stay in Parquet.
LEFT_OUT = ("attention",)
# Text files that are read or written at a time, each of which waits for its disk or store.
FILES_AT_ONCE = 16
# Bodies that a tar holds in memory at a time, and one body more; they are fetched many at once.
BODIES_IN_MEMORY = 32 * 2**20
# Pictures that are asked of the source at a time, if it holds them itself.
EMBEDDED_AT_ONCE = 16
# What is kept of a waiting picture, to tell its format.
FIRST_BYTES = 1024
# Of a picture whose name does not tell its format.
ENDINGS = {"jpeg": ".jpg", "tiff": ".tif", "heif": ".heic", "jpeg2000": ".jp2", "jpeg-xl": ".jxl"}

Row = dict[str, Any]


@dataclass(frozen=True)
class SinkSettings:
    """Where and how the other forms are written."""

    folder: RunFolder
    text_mode: TextMode
    beside: bool  # text files go beside the pictures, not into the run's folder
    fetch: Fetch
    trust: Trust
    source: Source | None = None  # what has the pictures that it holds itself
    # The rows of the plan that a part is made of, in its order. They say which pictures the source
    # holds itself. None: none.
    planned: Callable[[RunFolder, str], Iterator[pa.Table]] | None = None


class Sink:
    """One other form. `write` turns one part of the table into the file `target(part)`, or into
    files of other names."""

    name: ClassVar[str]  # of its folder in the run's folder
    ending: ClassVar[str] = ""  # of the file that is written for each part, if there is one
    joined: ClassVar[str] = ""  # a file that `finish` makes of all parts

    def target(self, part: str) -> str:
        """The file in the run's folder that holds a part."""
        return f"{self.name}/{PurePosixPath(part).stem}{self.ending}"

    def marks(self, settings: SinkSettings) -> str:
        """The folder of the files that say which parts are written."""
        return f"{self.name}/_written"

    def mark(self, part: str, settings: SinkSettings) -> str:
        """The file that says that a part is written, and what is to be said about it."""
        return f"{self.marks(settings)}/{PurePosixPath(part).stem}.json"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int] | None:
        """Returns counts of what `remarks` tells."""
        raise NotImplementedError

    def is_final(self, counts: Mapping[str, int], settings: SinkSettings) -> bool:
        """Whether a part that has been written with these counts stays as it is."""
        return True

    def forget(self, part: str, settings: SinkSettings) -> None:
        """Remove what was written of a part that is not in the table any more."""
        if self.ending:
            settings.folder.remove(self.target(part))
        settings.folder.remove(self.mark(part, settings))

    def finish(self, folder: RunFolder) -> None:
        """Called after all parts."""

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        """What a person should know, from the counts of all parts."""
        return []


class TextFiles(Sink):
    """A text file for each picture that has a caption. A file with another text stays as it is,
    unless the mode is overwrite.

    A journal beside each mark lists the files that are written, before they are. So they can be
    removed with the rows that they came from, and files that the user has made or changed stay.
    """

    name = "txt"

    def marks(self, settings: SinkSettings) -> str:
        return f"{self.name}/{'_beside' if settings.beside else '_written'}"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        rows = (self._beside if settings.beside else self._below)(part, settings, counts)
        captions = list(rows)
        todo: dict[_Place, bytes] = {}
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            found = pool.map(lambda item: item[0].folder(settings).read(item[0].name), captions)
            for (place, caption), existing in zip(captions, found, strict=True):
                text = None if existing is None else _text(existing)
                if existing is not None and text is None:
                    counts["no_text"] += 1
                elif text is None or (text != caption.strip() and self._replaces(settings)):
                    todo[place] = f"{caption}\n".encode()
                elif text != caption.strip():
                    counts["left_alone"] += 1
            digests = {place: _digest(content) for place, content in todo.items()}
            self._write_journal(part, settings, self._read_journal(part, settings) | digests)
            writes = pool.map(
                lambda item: item[0].folder(settings).write(item[0].name, item[1]), todo.items()
            )
            list(writes)  # raises what went wrong
        return counts

    def is_final(self, counts: Mapping[str, int], settings: SinkSettings) -> bool:
        return not (counts.get("left_alone") and self._replaces(settings))

    def forget(self, part: str, settings: SinkSettings) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            own = self._read_journal(part, settings).items()
            list(pool.map(lambda item: _remove_unchanged(item[0], item[1], settings), own))
        super().forget(part, settings)
        settings.folder.remove(self._journal(part, settings))

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        lines = []
        if number := counts.get("left_alone"):
            lines.append(
                f"{number:,} text file(s) existed already with another text and were left alone "
                "(--txt-mode overwrite replaces them)"
            )
        if number := counts.get("no_text"):
            lines.append(
                f"{number:,} picture(s) have no text file: a file of that name holds no text, and "
                "stays (without --txt-beside, texts go to a folder of their own)"
            )
        if number := counts.get("neighbours"):
            lines.append(
                f"{number:,} picture(s) lie beside another one that differs in the ending alone "
                "(a.jpg, a.png): their text files have the whole name (a.jpg.txt, a.png.txt)"
            )
        return lines

    def _replaces(self, settings: SinkSettings) -> bool:
        return settings.text_mode == "overwrite"

    def _below(
        self, part: str, settings: SinkSettings, counts: Counter[str]
    ) -> "Iterator[tuple[_Place, str]]":
        """Each caption with the place of its file in the run's folder."""
        for row in captioned_rows(part, settings.folder):
            yield _Place("", f"{self.name}/{text_name(row['key'])}"), row["caption"]

    def _beside(
        self, part: str, settings: SinkSettings, counts: Counter[str]
    ) -> "Iterator[tuple[_Place, str]]":
        """Each caption with the place of its file beside the picture."""
        planned = _planned(part, settings)
        embedded = None if planned is None else planned["embedded"].to_pylist()
        there = _Neighbours()
        for number, row in enumerate(rows_of(part, settings.folder)):
            if row["status"] != SUCCESS:
                continue
            uri = row["uri"]
            is_inside = embedded is not None and embedded[number]
            if is_inside or scheme_of(uri) in (*WEB, "hf", *WRAPPERS):
                raise UserError(
                    f"no text file can be put beside {uri}, which is no file in a folder: omit "
                    f"--txt-beside, and texts go to {settings.folder / self.name}"
                )
            path = local_path(uri)
            parent, slash, name = (uri if path is None else path).rpartition("/")
            folder = parent or slash or "."
            text, has_neighbour = name_beside(name, functools.partial(there.has, folder))
            counts["neighbours"] += has_neighbour
            yield _Place(folder, text), row["caption"]

    def _journal(self, part: str, settings: SinkSettings) -> str:
        return f"{self.marks(settings)}/{PurePosixPath(part).stem}.files"

    def _read_journal(self, part: str, settings: SinkSettings) -> "dict[_Place, str]":
        content = settings.folder.read(self._journal(part, settings)) or b""
        lines = [json.loads(line) for line in content.splitlines()]
        return {_Place(folder, name): digest for folder, name, digest in lines}

    def _write_journal(
        self, part: str, settings: SinkSettings, digests: "Mapping[_Place, str]"
    ) -> None:
        lines = (f"{json.dumps([*place, digest])}\n" for place, digest in digests.items())
        settings.folder.write(self._journal(part, settings), "".join(lines).encode())


class _Place(NamedTuple):
    """Where a text file is."""

    uri: str  # of its folder; "" for the run's
    name: str

    def folder(self, settings: SinkSettings) -> RunFolder:
        return output_folder(self.uri) if self.uri else settings.folder


def _remove_unchanged(place: _Place, digest: str, settings: SinkSettings) -> None:
    folder = place.folder(settings)
    content = folder.read(place.name)
    if content is not None and _digest(content) == digest:
        folder.remove(place.name)


class _Neighbours:
    """Which files lie beside a picture."""

    def __init__(self) -> None:
        self._names: tuple[str, set[str]] = ("", set())  # of the last folder in a store

    def has(self, parent: str, name: str) -> bool:
        folder = output_folder(parent)
        if folder.is_local:
            return os.path.lexists(folder.path(name))
        if self._names[0] != parent:
            self._names = (parent, set(folder.names(hidden=True)))
        return name in self._names[1]


def _text(content: bytes) -> str | None:
    """What a text file says; None for a file of another kind."""
    try:
        return None if b"\0" in content else content.decode().strip()
    except UnicodeDecodeError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class JsonLines(Sink):
    """A line of JSON for each row."""

    name, ending = "jsonl", ".jsonl"

    def write(self, part: str, settings: SinkSettings) -> None:
        rows = rows_of(part, settings.folder)
        write_lines(settings.folder, self.target(part), (json_line(row) for row in rows))


class WebDataset(Sink):
    """A tar of pictures as they are at their source, captions and rows, for the rows that have a
    caption, in their order. A picture that is not the captioned one any more is left out."""

    name, ending = "webdataset", ".tar"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int]:
        table = settings.folder.reading(
            part, lambda file: pq.read_table(file, columns=["uri", "sha256", "status"])
        )
        is_captioned = pc.equal(table["status"], SUCCESS)
        planned = _planned(part, settings)
        uris, digests = (
            table[name].filter(is_captioned).to_pylist() for name in ("uri", "sha256")
        )
        counts: Counter[str] = Counter()
        scratch = settings.folder.scratch()
        with (
            tempfile.TemporaryDirectory(dir=scratch) as place,
            tempfile.TemporaryFile(dir=scratch) as waiting,
        ):
            file = f"{place}/tar"
            with (
                tarfile.open(file, mode="w") as tar,
                Fetcher(settings.fetch, settings.trust) as fetcher,
            ):
                samples = _SamplesInOrder(tar, captioned_rows(part, settings.folder), waiting)
                known = None if planned is None else planned.filter(is_captioned)
                for number, data in _pictures(uris, known, settings.source, fetcher):
                    if data is None:
                        counts["gone"] += 1
                    # A digest is missing in tables that raycap has not made itself.
                    elif digests[number] and _digest(data) != digests[number]:
                        counts["changed"] += 1
                        data = None
                    samples.add(number, data)
                    del data  # free its bytes before the next one comes
            settings.folder.put(self.target(part), file)
        return counts

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        gone, changed = counts.get("gone", 0), counts.get("changed", 0)
        if not gone + changed:
            return []
        tars = settings.folder / self.name
        reasons = [f"{gone:,} cannot be fetched any more"] if gone else []
        reasons += [f"{changed:,} changed since they were captioned"] if changed else []
        return [
            f"{gone + changed:,} captioned picture(s) are not in {tars}: {', '.join(reasons)}. "
            f"When they are back, remove {tars} and give the same command again; --overwrite "
            "makes new captions for pictures that changed"
        ]


def _pictures(
    uris: Sequence[str], planned: pa.Table | None, source: Source | None, fetcher: Fetcher
) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each picture, in the order in which they arrive; None for one that is
    gone."""
    embedded = np.zeros(len(uris), bool)
    if planned is not None and source is not None:
        embedded = planned["embedded"].to_numpy()
        yield from _embedded_pictures(np.flatnonzero(embedded), planned, source)
    elsewhere = np.flatnonzero(~embedded).tolist()
    wanted = [uris[number] for number in elsewhere]
    for place, fetched in fetcher.fetch_each(wanted, BODIES_IN_MEMORY):
        yield elsewhere[place], None if fetched.error else fetched.data
        del fetched


def _embedded_pictures(
    numbers: NDArray[np.int64], planned: pa.Table, source: Source
) -> Iterator[tuple[int, bytes | None]]:
    for start in range(0, len(numbers), EMBEDDED_AT_ONCE):
        some = numbers[start : start + EMBEDDED_AT_ONCE]
        rows = planned.take(pa.array(some))
        try:
            found = source.embedded_pictures(rows)
        except (UserError, OSError):  # a file is gone, which not all of them need
            found = [_embedded_picture(rows.slice(row, 1), source) for row in range(len(rows))]
        yield from zip(some.tolist(), found, strict=True)


def _embedded_picture(row: pa.Table, source: Source) -> bytes | None:
    with contextlib.suppress(UserError, OSError):
        return source.embedded_pictures(row)[0]
    return None


class _SamplesInOrder:
    """Adds samples to a tar in the order of their rows. A picture that arrives early waits on
    disk."""

    def __init__(self, tar: tarfile.TarFile, rows: Iterator[Row], waiting: IO[bytes]) -> None:
        self._tar, self._rows, self._waiting = tar, rows, waiting
        self._places: dict[int, tuple[int, bytes, int] | None] = {}  # start, first bytes, size
        self._next = 0

    def add(self, number: int, picture: bytes | None) -> None:
        """None leaves the row out."""
        if picture is None:
            self._places[number] = None
        elif number == self._next:
            self._write(picture[:FIRST_BYTES], io.BytesIO(picture), len(picture))
        else:
            start = self._waiting.seek(0, io.SEEK_END)
            self._places[number] = (start, picture[:FIRST_BYTES], len(picture))
            self._waiting.write(picture)
        while self._next in self._places:
            place = self._places.pop(self._next)
            if place is None:
                next(self._rows)
                self._next += 1
            else:
                self._waiting.seek(place[0])
                self._write(place[1], self._waiting, place[2])
        if not self._places:
            self._waiting.truncate(0)

    def _write(self, first: bytes, picture: IO[bytes], size: int) -> None:
        row, name = next(self._rows), f"{self._next:06d}"
        for suffix, text in ((".json", json_line(row)), (".txt", row["caption"])):
            content = text.encode()
            _add_file(self._tar, name + suffix, io.BytesIO(content), len(content))
        _add_file(self._tar, name + picture_ending(row["uri"], first), picture, size)
        self._next += 1


def picture_ending(uri: str, first: bytes) -> str:
    """The ending of a picture's name if it is a usual one, otherwise that of its format."""
    from raycap.images.formats import picture_format  # Pillow, which --help does not need

    ending = PurePosixPath(name_of(uri)).suffix.lower()
    if ending in PICTURE_ENDINGS:
        return ending
    name = picture_format(first)
    return ENDINGS.get(name, f".{name or 'picture'}")


def _add_file(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """Without time and owner: the same rows make the same tar."""
    about = tarfile.TarInfo(name)
    about.size = size
    tar.addfile(about, content)


class ImageFolder(Sink):
    """metadata.jsonl as the `datasets` library reads it, to be put into the folder of the
    pictures."""

    name, ending, joined = "imagefolder", ".jsonl", "metadata.jsonl"

    def write(self, part: str, settings: SinkSettings) -> None:
        rows = captioned_rows(part, settings.folder)
        lines = ({"file_name": row["key"], "text": row["caption"]} for row in rows)
        write_lines(
            settings.folder,
            self.target(part),
            (json.dumps(line, ensure_ascii=False) for line in lines),
        )

    def finish(self, folder: RunFolder) -> None:
        join_files(folder, folder.names(self.name), self.joined)


ALL_SINKS: tuple[Sink, ...] = (
    TextFiles(),
    JsonLines(),
    WebDataset(),
    ImageFolder(),
)
SINKS: dict[str, Sink] = {sink.name: sink for sink in ALL_SINKS}
if TYPE_CHECKING:
    SinkName = str
else:
    SinkName = Literal[tuple(SINKS)]


def write_part(sink: Sink, part: str, settings: SinkSettings) -> dict[str, int]:
    """Write one part in one other form, and the mark that it is written; may run in a task.
    Returns the counts that are in the mark."""

    def write() -> dict[str, int]:
        counts = dict(sink.write(part, settings) or {})
        settings.folder.write_json(sink.mark(part, settings), counts)
        return counts

    return with_retries(write, f"write {sink.name} of {part}")


def write_lines(folder: RunFolder, name: str, lines: Iterable[str]) -> None:
    """Write a file of lines, however many they are; it appears whole."""
    with tempfile.TemporaryDirectory(dir=folder.scratch()) as place:
        path = f"{place}/lines"
        with open(path, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123
            file.writelines(f"{line}\n" for line in lines)
        folder.put(name, path)


def join_files(folder: RunFolder, names: Sequence[str], name: str) -> None:
    """Write the contents of these files into one, however large; it appears whole."""
    with tempfile.TemporaryDirectory(dir=folder.scratch()) as place:
        path = f"{place}/joined"
        with open(path, "wb") as joined:  # noqa: PTH123
            for each in names:
                start = joined.tell()

                def copy(file: IO[bytes], start: int = start) -> None:
                    joined.seek(start)  # an earlier try may have copied a piece
                    joined.truncate()
                    shutil.copyfileobj(file, joined)

                folder.reading(each, copy)
        folder.put(name, path)


# --- names of text files
#
# A name never depends on other rows of the table, so rows that are added later change no name. All
# names end in .txt, and no folder does.

# As listings have them; in another case, an ending counts as a part of the name.
_CASED = frozenset(case for ending in PICTURE_ENDINGS for case in (ending, ending.upper()))
_DIGESTED = re.compile(r".*-[0-9a-f]{20}", re.DOTALL)


def text_name(key: str) -> str:
    """The path of a key's text file below a folder: KEY.txt, with odd characters percent-encoded.
    A key that is no plain path (a URL, or one with empty steps, '..' or long names) has a digest
    in its last name."""
    steps = [urllib.parse.quote(step, safe=" ", errors="surrogatepass") for step in key.split("/")]
    *folders, last = steps
    is_plain = all(step.strip(".") and len(step) <= LONGEST_NAME for step in steps)
    is_plain = is_plain and not any(step.lower().endswith(".txt") for step in folders)
    path = "/".join(steps)
    if is_plain and len(path) <= LONGEST_PATH and not _DIGESTED.fullmatch(last):
        return f"{path}.txt"
    *folders, last = [_shown(step) for step in steps if step] or ["%"]
    if len("/".join(folders)) > LONGEST_PATH:
        folders = []
    digest = _digest(key.encode(errors="surrogatepass"))[:20]
    return "/".join([*folders, f"{last}-{digest}.txt"])


def _shown(step: str) -> str:
    """A step of a path, short, that leads nowhere else and is no name of a text file."""
    step = step[:100]
    if not step.strip("."):
        return step.replace(".", "%2E")
    return f"{step[:-4]}%2E{step[-3:]}" if step.lower().endswith(".txt") else step


def name_beside(name: str, is_there: Callable[[str], bool]) -> tuple[str, bool]:
    """The name of a text file beside the picture `name`, and whether it differs from the usual one
    because of a neighbour. `is_there` tells whether a file is in the picture's folder.

    a.txt for a.jpg; a.jpg.txt if there is an a.png too; a name without a picture's ending has a
    digest behind it.
    """
    stem, dot, ending = name.rpartition(".")
    has_neighbour = False
    if stem and dot + ending in _CASED:
        of_other = any(stem.endswith(other) for other in _CASED) or _DIGESTED.fullmatch(stem)
        others = _CASED - {dot + ending}
        has_neighbour = not of_other and any(is_there(stem + other) for other in sorted(others))
        if not of_other and not has_neighbour:
            return f"{stem}.txt", False
        if len(os.fsencode(f"{name}.txt")) <= LONGEST_NAME_OF_A_DISK:
            return f"{name}.txt", has_neighbour
    encoded = os.fsencode(name)
    shown = os.fsdecode(encoded[:LONGEST_NAME])
    if len(encoded) > LONGEST_NAME:  # a character may be cut in two
        shown = encoded[:LONGEST_NAME].decode(errors="ignore")
    return f"{shown}-{_digest(encoded)[:20]}.txt", has_neighbour


# --- rows


def rows_of(part: str, folder: RunFolder) -> Iterator[Row]:
    """The rows of a part, without the columns that stay in Parquet."""
    with folder.open(part) as file, pq.ParquetFile(file) as parquet:
        columns = [name for name in parquet.schema_arrow.names if name not in LEFT_OUT]
        for batch in parquet.iter_batches(batch_size=1000, columns=columns):
            values_of_columns = [_python_values(column) for column in batch.columns]
            for values in zip(*values_of_columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def captioned_rows(part: str, folder: RunFolder) -> Iterator[Row]:
    """The rows of a part that have a caption."""
    return (row for row in rows_of(part, folder) if row["status"] == SUCCESS)


def _planned(part: str, settings: SinkSettings) -> pa.Table | None:
    """The rows of the plan that a part is made of."""
    if settings.planned is None:
        return None
    return pa.concat_tables(settings.planned(settings.folder, part), promote_options="default")


def _python_values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, ArithmeticError):  # a date beyond those that Python knows
        return list(column.cast(pa.string()).to_pylist())


def json_line(row: Row) -> str:
    """A row as JSON, whatever the types of its carried columns."""
    fields = {name: as_json(value) for name, value in row.items()}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def as_json(value: Any) -> Any:
    """A value of any Arrow type as JSON has it: dates in ISO format, decimals as text so that they
    stay exact, durations in seconds, bytes in base64; NaN and infinity are null."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)  # a decimal, a UUID
