"""Other forms of a table of captions, made part by part: text beside pictures, JSON lines, WebDataset, imagefolder.

A sink is a function of one whole part of the table; to add one, write it and its line in SINKS. What it writes
follows from the part alone and appears whole, so a run that is repeated or resumed writes the same.
"""

import hashlib
import io
import json
import tarfile
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Literal

import pyarrow.parquet as pq

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.schema import SUCCESS
from raycap.storage import RunFolder, output_folder
from raycap.storage.retry import with_retries
from raycap.uris import is_web, local_path, name_of

SinkName = Literal["txt", "jsonl", "webdataset", "imagefolder"]
TextMode = Literal["skip", "overwrite", "append", "prepend"]
# File systems take names of 255 bytes; some room for endings.
LONGEST_NAME = 200
# Numbers and texts that a line of JSON holds well; attention maps stay in Parquet.
LEFT_OUT = ("attention",)


@dataclass(frozen=True)
class Sinks:
    """How the other forms are written."""

    folder: RunFolder
    text_mode: TextMode
    beside: bool  # sidecars go next to the pictures, not under the run's folder
    fetch: Fetch
    trust: Trust


def write(name: SinkName, part: str, sinks: Sinks) -> int:
    """Runs in a task: one part in one other form. The answer counts what was there already and differs."""
    return with_retries(lambda: SINKS[name](part, sinks), f"write {name} of {part}")


def _target(name: str, part: str, ending: str) -> str:
    return f"{name}/{PurePosixPath(part).stem}{ending}"


def files_of(part: str) -> list[str]:
    """What is written of a part by all sinks: to be removed before the part changes."""
    return [_target(name, part, ending) for name, ending in ENDINGS.items()]


def is_written(name: SinkName, part: str, folder: RunFolder) -> bool:
    return folder.exists(_target(name, part, ENDINGS[name]))


def jsonl(part: str, sinks: Sinks) -> int:
    """A line for each row."""
    lines = [
        json.dumps({k: v for k, v in row.items() if k not in LEFT_OUT}, ensure_ascii=False)
        for row in _rows(part, sinks)
    ]
    sinks.folder.write(
        _target("jsonl", part, ENDINGS["jsonl"]), "".join(f"{line}\n" for line in lines).encode()
    )
    return 0


def imagefolder(part: str, sinks: Sinks) -> int:
    """Lines of a metadata.jsonl as `datasets` reads it, which `join` puts together."""
    lines = [{"file_name": row["key"], "text": row["caption"]} for row in _good(part, sinks)]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    sinks.folder.write(_target("imagefolder", part, ENDINGS["imagefolder"]), content.encode())
    return 0


def txt(part: str, sinks: Sinks) -> int:
    """A text file for each picture that has a caption, of the picture's name. A file of other words stays as it is,
    unless the mode says otherwise."""
    differing = 0
    for row in _good(part, sinks):
        folder, name = _sidecar(row, sinks)
        there = folder.read(name)
        new = _words(there, row["caption"], sinks.text_mode)
        differing += (
            there is not None
            and new is None
            and there.decode(errors="replace").strip() != row["caption"]
        )
        if new is not None:
            folder.write(name, new.encode())
    sinks.folder.write(_target("txt", part, ENDINGS["txt"]), b"")
    return differing


def webdataset(part: str, sinks: Sinks) -> int:
    """A tar of pictures as they are at their source, captions and rows, for rows with a caption, in their order.

    Pictures are fetched many at a time and arrive in any order. One that arrives before its turn waits on disc.
    """
    rows = list(_good(part, sinks))
    scratch = sinks.folder.scratch()
    early: dict[
        int, tuple[int, int]
    ] = {}  # where pictures wait: start and size, size 0 for one that failed
    next_row = 0
    with (
        tempfile.TemporaryDirectory(dir=scratch) as place,
        tempfile.TemporaryFile(dir=scratch) as waiting,
    ):
        file = f"{place}/tar"
        with tarfile.open(file, mode="w") as tar, Fetcher(sinks.fetch, sinks.trust) as fetcher:
            for number, picture in fetcher.fetch_each([row["uri"] for row in rows]):
                if number == next_row:
                    _add_sample(
                        tar, number, rows[number], io.BytesIO(picture.data), len(picture.data)
                    )
                    next_row += 1
                else:
                    early[number] = (waiting.seek(0, io.SEEK_END), len(picture.data))
                    waiting.write(picture.data)
                del picture  # the next one is on its way
                while next_row in early:
                    start, size = early.pop(next_row)
                    waiting.seek(start)
                    _add_sample(tar, next_row, rows[next_row], waiting, size)
                    next_row += 1
                if not early:
                    waiting.truncate(0)
        sinks.folder.put(_target("webdataset", part, ENDINGS["webdataset"]), file)
    return 0


def _add_sample(
    tar: tarfile.TarFile, number: int, row: dict[str, Any], picture: IO[bytes], size: int
) -> None:
    """A row, its caption, and its picture if there is one."""
    _add(tar, f"{number:06d}.json", io.BytesIO(content := _line(row).encode()), len(content))
    _add(tar, f"{number:06d}.txt", io.BytesIO(content := row["caption"].encode()), len(content))
    if size:
        ending = PurePosixPath(name_of(row["uri"])).suffix.lower() or ".jpg"
        _add(tar, f"{number:06d}{ending}", picture, size)


SINKS: dict[SinkName, Callable[[str, Sinks], int]] = {
    "txt": txt,
    "jsonl": jsonl,
    "webdataset": webdataset,
    "imagefolder": imagefolder,
}
# Of the file that each part becomes; for txt a mark that the part's sidecars are written.
ENDINGS: dict[SinkName, str] = {
    "txt": ".written",
    "jsonl": ".jsonl",
    "webdataset": ".tar",
    "imagefolder": ".jsonl",
}


def join(folder: RunFolder) -> None:
    """metadata.jsonl of all parts, to be put into the folder of the pictures."""
    pieces = [folder.read(name) or b"" for name in folder.names("imagefolder")]
    folder.write("metadata.jsonl", b"".join(pieces))


def safe_name(key: str) -> str:
    """A key as a path below a folder, whatever the key: no way up, no root, no name that a disc cannot hold."""
    steps = [urllib.parse.quote(step, safe=" ") for step in key.split("/") if step]
    steps = [step.replace(".", "%2E") if not step.strip(".") else step for step in steps]
    return (
        "/".join(step if len(step) <= LONGEST_NAME else _shortened(step) for step in steps) or "%"
    )


def _shortened(step: str) -> str:
    return f"{step[:100]}-{hashlib.sha256(step.encode()).hexdigest()[:16]}{PurePosixPath(step).suffix[:10]}"


def _sidecar(row: dict[str, Any], sinks: Sinks) -> tuple[RunFolder, str]:
    """The folder and the name of a row's text file."""
    if not sinks.beside:
        return sinks.folder / "txt", str(PurePosixPath(safe_name(row["key"])).with_suffix(".txt"))
    if is_web(row["uri"]):
        raise UserError(f"no text file can be put beside {row['uri']}: leave --txt-beside out")
    path = local_path(row["uri"])
    parent, _, name = (row["uri"] if path is None else path).rpartition("/")
    return output_folder(parent or "/"), str(PurePosixPath(name).with_suffix(".txt"))


def _words(there: bytes | None, caption: str, mode: TextMode) -> str | None:
    """What the file is to hold; None to leave it alone. Doing it twice is as doing it once."""
    if there is None:
        return f"{caption}\n"
    lines = there.decode(errors="replace").splitlines()
    if mode == "skip" or caption in lines:
        return None if mode != "overwrite" or lines == [caption] else f"{caption}\n"
    if mode == "overwrite":
        return f"{caption}\n"
    joined = [*lines, caption] if mode == "append" else [caption, *lines]
    return "".join(f"{line}\n" for line in joined)


def _rows(part: str, sinks: Sinks) -> Iterator[dict[str, Any]]:
    with sinks.folder.open(part) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _good(part: str, sinks: Sinks) -> Iterator[dict[str, Any]]:
    return (row for row in _rows(part, sinks) if row["status"] == SUCCESS)


def _line(row: dict[str, Any]) -> str:
    fields = {name: value for name, value in row.items() if name not in LEFT_OUT}
    return json.dumps(fields, ensure_ascii=False, default=str)  # carried columns may hold dates


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """No clock and no owner in it: the same rows make the same tar."""
    about = tarfile.TarInfo(name)
    about.size = size
    tar.addfile(about, content)
