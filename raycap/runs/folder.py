"""The folder of a run, on a disc or in an object store: files come whole under their names, or not at all."""

import contextlib
import errno
import functools
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raycap.refusal import Refusal
from raycap.runs.files import check_stays

# What is on its way waits here; readers of Parquet folders leave out names that begin so.
STAGED = "_staged"


@dataclass(frozen=True)
class RunFolder:
    """Names are relative to the folder, with '/'. It holds a URI only, so it travels to other processes."""

    uri: str

    def __post_init__(self) -> None:
        if not self.uri:
            raise Refusal("where to? Give --out FOLDER (a path, or a URI such as s3://bucket/captions)")
        if self.uri.startswith("memory://"):
            raise Refusal(f"{self.uri} is the memory of one process, and several write: give a folder, or s3://...")
        _place(self.uri)

    def __truediv__(self, name: str) -> "RunFolder":
        return RunFolder(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return isinstance(_place(self.uri)[0], LocalFileSystem)

    def path(self, name: str = "") -> str:
        """As its filesystem names it."""
        return f"{_place(self.uri)[1]}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, None where there is none."""
        with _said(self.uri, "read"):
            try:
                content: bytes = _place(self.uri)[0].cat_file(self.path(name))
            except FileNotFoundError:
                return None
            return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        content = self.read(name)
        try:
            data = None if content is None else json.loads(content)
        except ValueError as error:
            raise Refusal(f"{self.uri}/{name} is not whole JSON: {error}") from error
        if not isinstance(data, dict | None):
            raise Refusal(f"{self.uri}/{name} is not what raycap writes there")
        return data

    def write(self, name: str, content: bytes) -> None:
        """A reader sees the old file or the new one, whole."""
        if self.is_local:
            place = PurePosixPath(name)
            beside = str(place.with_name(f".{uuid.uuid4().hex}.part"))
            self.stage(beside, content)
            self.rename(beside, name)
        else:  # what an object store takes in is seen whole
            self.stage(name, content)

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())

    def stage(self, name: str, content: bytes) -> None:
        """Write a file that nobody reads before it is renamed; when this returns, it outlives a power cut."""
        filesystem = _place(self.uri)[0]
        with _said(self.uri, "write"):
            filesystem.makedirs(self.path(str(PurePosixPath(name).parent)), exist_ok=True)
            with filesystem.open(self.path(name), "wb") as file:
                file.write(content)
                if self.is_local:
                    file.flush()
                    os.fsync(file.fileno())

    def rename(self, old: str, new: str) -> None:
        """On a disc one step; in an object store a copy, which appears whole, and then a removal."""
        filesystem = _place(self.uri)[0]
        with _said(self.uri, "write"):
            filesystem.makedirs(self.path(str(PurePosixPath(new).parent)), exist_ok=True)
            if self.is_local:
                os.replace(self.path(old), self.path(new))  # noqa: PTH105 - names are text here
            else:
                filesystem.copy(self.path(old), self.path(new))
                filesystem.rm_file(self.path(old))

    def remove(self, name: str) -> None:
        """A file or a folder; nothing happens where there is none."""
        filesystem = _place(self.uri)[0]
        with _said(self.uri, "write"), contextlib.suppress(FileNotFoundError):
            filesystem.rm(self.path(name), recursive=True)

    def exists(self, name: str = "") -> bool:
        filesystem = _place(self.uri)[0]
        with _said(self.uri, "read"):
            filesystem.invalidate_cache()
            return bool(filesystem.exists(self.path(name)))

    def names(self, under: str = "") -> list[str]:
        """Files right in the folder `under`, sorted, without those whose names begin with '_' or '.'."""
        filesystem = _place(self.uri)[0]
        with _said(self.uri, "read"):
            filesystem.invalidate_cache()
            try:
                found = filesystem.ls(self.path(under), detail=True)
            except FileNotFoundError:
                return []
        names = sorted(PurePosixPath(item["name"]).name for item in found if item["type"] == "file")
        return [f"{under}/{name}" if under else name for name in names if name[0] not in "_."]

    def open(self, name: str) -> Any:
        """A file to read from, anywhere in it."""
        return _place(self.uri)[0].open(self.path(name), "rb")


def output_folder(uri: str) -> RunFolder:
    """The folder that a command writes its output to. Refused where Ray would delete the output: a folder that is
    only read, such as a captioner, may lie there."""
    folder = RunFolder(uri)
    if folder.is_local:
        check_stays(folder.path(), "an absolute path, or a URI such as s3://bucket/folder")
    return folder


@functools.cache
def _place(uri: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise Refusal(f"cannot write to {uri}: {error}") from error
    return filesystem, path.rstrip("/")


@contextlib.contextmanager
def _said(uri: str, what: str) -> Iterator[None]:
    """A full disc or a folder that may not be written ends the run in words; what is there stays."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        remedy = "; free some space and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise Refusal(f"cannot {what} {uri}: {error.strerror or error}{remedy}") from error
