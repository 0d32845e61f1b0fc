"""Other forms of a caption table: text files beside pictures, JSON lines, WebDataset, imagefolder.

A new sink is one class and one line in ALL_SINKS. Its files depend on one part of the table alone
and appear whole, so a run that is repeated or resumed writes the same.
"""

import base64
import datetime
import hashlib
import io
import json
import math
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.schema import SUCCESS
from raycap.storage import RunFolder, output_folder
from raycap.storage.retry import with_retries
from raycap.uris import is_web, local_path, name_of

TextMode = Literal["skip", "overwrite"]
# File systems take names of 255 bytes; some room for endings.
LONGEST_NAME = 200
# A line of JSON has numbers and texts; attention maps stay in Parquet.
LEFT_OUT = ("attention",)

Row = dict[str, Any]


@dataclass(frozen=True)
class SinkSettings:
    """Where and how the other forms are written."""

    folder: RunFolder
    text_mode: TextMode
    beside: bool  # text files go beside the pictures, not into the run's folder
    fetch: Fetch
    trust: Trust


class Sink:
    """One other form. `write` turns one part of the table into the file `target(part)`."""

    name: ClassVar[str]  # of its folder in the run's folder
    ending: ClassVar[str]  # of the file that is written for each part
    joined: ClassVar[str] = ""  # a file that `finish` makes of all parts

    def target(self, part: str) -> str:
        """The file in the run's folder that says that a part is written."""
        return f"{self.name}/{PurePosixPath(part).stem}{self.ending}"

    def write(self, part: str, settings: SinkSettings) -> int:
        """Returns how many files were there already with another content and stay."""
        raise NotImplementedError

    def finish(self, folder: RunFolder) -> None:
        """Called after all parts."""


class TextFiles(Sink):
    """A text file for each picture that has a caption, with the name of the picture. A file with
    another text stays as it is, unless the mode is overwrite."""

    name, ending = "txt", ".written"

    def write(self, part: str, settings: SinkSettings) -> int:
        differing = 0
        for row in captioned_rows(part, settings.folder):
            folder, name = self._file(row, settings)
            existing = folder.read(name)
            text = None if existing is None else existing.decode(errors="replace").strip()
            if text is None or (text != row["caption"] and settings.text_mode == "overwrite"):
                folder.write(name, f"{row['caption']}\n".encode())
            elif text != row["caption"]:
                differing += 1
        settings.folder.write(self.target(part), b"")
        return differing

    def _file(self, row: Row, settings: SinkSettings) -> tuple[RunFolder, str]:
        if not settings.beside:
            file = PurePosixPath(safe_name(row["key"])).with_suffix(".txt")
            return settings.folder / self.name, str(file)
        if is_web(row["uri"]):
            raise UserError(f"no text file can be put beside {row['uri']}: omit --txt-beside")
        path = local_path(row["uri"])
        parent, _, name = (row["uri"] if path is None else path).rpartition("/")
        return output_folder(parent or "/"), str(PurePosixPath(name).with_suffix(".txt"))


class JsonLines(Sink):
    """A line of JSON for each row."""

    name, ending = "jsonl", ".jsonl"

    def write(self, part: str, settings: SinkSettings) -> int:
        lines = "".join(f"{json_line(row)}\n" for row in rows_of(part, settings.folder))
        settings.folder.write(self.target(part), lines.encode())
        return 0


class WebDataset(Sink):
    """A tar of pictures as they are at their source, captions and rows, for the rows that have a
    caption, in their order."""

    name, ending = "webdataset", ".tar"

    def write(self, part: str, settings: SinkSettings) -> int:
        # Pictures are fetched many at a time and arrive in any order. One that arrives before its
        # turn waits on disk.
        rows = list(captioned_rows(part, settings.folder))
        scratch = settings.folder.scratch()
        # Where pictures wait: start and size; size 0 for one that failed.
        waiting: dict[int, tuple[int, int]] = {}
        next_row = 0
        with (
            tempfile.TemporaryDirectory(dir=scratch) as place,
            tempfile.TemporaryFile(dir=scratch) as waiting_bytes,
        ):
            file = f"{place}/tar"
            with (
                tarfile.open(file, mode="w") as tar,
                Fetcher(settings.fetch, settings.trust) as fetcher,
            ):
                for number, picture in fetcher.fetch_each([row["uri"] for row in rows]):
                    size = len(picture.data)
                    if number == next_row:
                        _add_sample(tar, number, rows[number], io.BytesIO(picture.data), size)
                        next_row += 1
                    else:
                        waiting[number] = (waiting_bytes.seek(0, io.SEEK_END), size)
                        waiting_bytes.write(picture.data)
                    del picture  # free its bytes before the next one comes
                    while next_row in waiting:
                        start, size = waiting.pop(next_row)
                        waiting_bytes.seek(start)
                        _add_sample(tar, next_row, rows[next_row], waiting_bytes, size)
                        next_row += 1
                    if not waiting:
                        waiting_bytes.truncate(0)
            settings.folder.put(self.target(part), file)
        return 0


def _add_sample(
    tar: tarfile.TarFile, number: int, row: Row, picture: IO[bytes], size: int
) -> None:
    """Add a row, its caption, and its picture if there is one."""
    ending = PurePosixPath(name_of(row["uri"])).suffix.lower() or ".jpg"
    for suffix, text in ((".json", json_line(row)), (".txt", row["caption"])):
        content = text.encode()
        _add_file(tar, f"{number:06d}{suffix}", io.BytesIO(content), len(content))
    if size:
        _add_file(tar, f"{number:06d}{ending}", picture, size)


def _add_file(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """Without time and owner: the same rows make the same tar."""
    about = tarfile.TarInfo(name)
    about.size = size
    tar.addfile(about, content)


class ImageFolder(Sink):
    """metadata.jsonl as the `datasets` library reads it, to be put into the folder of the
    pictures."""

    name, ending, joined = "imagefolder", ".jsonl", "metadata.jsonl"

    def write(self, part: str, settings: SinkSettings) -> int:
        content = ""
        for row in captioned_rows(part, settings.folder):
            line = {"file_name": row["key"], "text": row["caption"]}
            content += json.dumps(line, ensure_ascii=False) + "\n"
        settings.folder.write(self.target(part), content.encode())
        return 0

    def finish(self, folder: RunFolder) -> None:
        lines = [folder.read(name) or b"" for name in folder.names(self.name)]
        folder.write(self.joined, b"".join(lines))


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


def write_part(sink: Sink, part: str, settings: SinkSettings) -> int:
    """Write one part in one other form; runs in a Ray task. Returns how many files were there
    already with another content and stay."""
    return with_retries(lambda: sink.write(part, settings), f"write {sink.name} of {part}")


def files_of(part: str) -> list[str]:
    """The files that sinks wrote for a part, to be removed before the part changes."""
    return [sink.target(part) for sink in SINKS.values()]


def sink_outputs() -> list[str]:
    """Everything that sinks write into the run's folder, to be removed with the table."""
    folders = list(SINKS)
    return folders + [sink.joined for sink in SINKS.values() if sink.joined]


def safe_name(key: str) -> str:
    """A key as a path below a folder: no way up, no root, no name that a file system refuses."""
    names = []
    for step in key.split("/"):
        if not step:
            continue
        name = urllib.parse.quote(step, safe=" ")
        if not name.strip("."):
            name = name.replace(".", "%2E")
        if len(name) > LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            name = f"{name[:100]}-{digest}{PurePosixPath(name).suffix[:10]}"
        names.append(name)
    return "/".join(names) or "%"


def rows_of(part: str, folder: RunFolder) -> Iterator[Row]:
    """The rows of a part."""
    with folder.open(part) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=1000):
            columns = [_python_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def captioned_rows(part: str, folder: RunFolder) -> Iterator[Row]:
    """The rows of a part that have a caption."""
    return (row for row in rows_of(part, folder) if row["status"] == SUCCESS)


def _python_values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, ArithmeticError):  # a date beyond those that Python knows
        return list(column.cast(pa.string()).to_pylist())


def json_line(row: Row) -> str:
    """A row as JSON, whatever the types of its carried columns."""
    fields = {name: as_json(value) for name, value in row.items() if name not in LEFT_OUT}
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
