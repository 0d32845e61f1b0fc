"""The folder of a run, on a disc or in an object store: files come whole under their names, or not at all."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from raycap.errors import UserError
from raycap.storage import stores
from raycap.storage.files import check_stays
from raycap.storage.retry import is_of_a_store, with_retries

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")

# What is on its way waits here; readers of Parquet folders leave out names that begin so.
STAGED = "_staged"


@dataclass(frozen=True)
class RunFolder:
    """Names are relative to the folder, with '/', and mean one file: `*` or `[1]` in them are no patterns.

    It holds a URI only, so it travels to other processes.
    Faults that may pass (see `retry`) are waited for; one that stays becomes a UserError.
    """

    uri: str

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError(
                "where to? Give --out FOLDER (a path, or a URI such as s3://bucket/captions)"
            )
        if self.uri.startswith("memory://"):
            raise UserError(
                f"{self.uri} is the memory of one process, and several write: give a folder, or s3://..."
            )
        if "?versionId=" in self.uri and "://" in self.uri:  # s3fs leaves that out of every name
            raise UserError(
                f"{self.uri} names a version of an object, and a folder has none: leave out ?versionId="
            )
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

        def act() -> bytes | None:
            try:
                content: bytes = _place(self.uri)[0].cat_file(self.path(name))
            except FileNotFoundError:
                return None
            return content

        return self._try("read", act)

    def read_json(self, name: str) -> dict[str, Any] | None:
        content = self.read(name)
        try:
            data = None if content is None else json.loads(content)
        except ValueError as error:
            raise UserError(f"{self.uri}/{name} is not whole JSON: {error}") from error
        if not isinstance(data, dict | None):
            raise UserError(f"{self.uri}/{name} is not what raycap writes there")
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

    def stage(self, name: str, content: "bytes | pa.Buffer") -> None:
        """Write a file that nobody reads before it is renamed; when this returns, it outlives a power cut."""

        def act() -> None:
            filesystem = _place(self.uri)[0]
            filesystem.makedirs(self.path(str(PurePosixPath(name).parent)), exist_ok=True)
            if not self.is_local:
                filesystem.pipe_file(
                    self.path(name), bytes(content)
                )  # clients of stores take nothing else
                return
            with Path(self.path(name)).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(
                    file.fileno()
                )  # when it fails, all is written again: a second fsync would find nothing to do

        self._try("write", act)

    def put(self, name: str, path: str) -> None:
        """Write what the file at the local `path` holds, however large. A reader sees all of it or nothing."""

        def act() -> None:
            filesystem = _place(self.uri)[0]
            filesystem.makedirs(self.path(str(PurePosixPath(name).parent)), exist_ok=True)
            if not self.is_local:
                filesystem.put_file(path, self.path(name))
                return
            with Path(path).open("rb") as file:
                os.fsync(file.fileno())
            Path(path).replace(self.path(name))  # it is on the same disc: see `scratch`

        self._try("write", act)

    def scratch(self) -> str | None:
        """Where temporary files lie that are as large as the run's own; None for the place that the system has."""
        if not self.is_local:
            return None
        Path(self.path(STAGED)).mkdir(parents=True, exist_ok=True)
        return self.path(STAGED)

    def rename(self, old: str, new: str) -> None:
        """On a disc one step; in an object store a copy, which appears whole, and then a removal."""
        filesystem, source, target = _place(self.uri)[0], self.path(old), self.path(new)
        if self.is_local:
            moving: list[tuple[int, int]] = []

            def move() -> None:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                try:
                    moving[:] = [_identity(source)]
                    os.replace(source, target)  # noqa: PTH105 - names are text here
                except FileNotFoundError:
                    # An earlier try may have moved it, with only the answer lost: then the target is what moved.
                    if not moving or _identity(target) != moving[0]:
                        raise

            self._try("write", move)
            return

        def copy() -> None:
            filesystem.makedirs(self.path(str(PurePosixPath(new).parent)), exist_ok=True)
            filesystem.cp_file(source, target)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(source)

        self._try("write", copy)
        self._try("write", remove)

    def remove(self, name: str) -> None:
        """A file or a folder; nothing happens where there is none."""
        self._try("write", lambda: stores.remove(_place(self.uri)[0], self.path(name)))

    def exists(self, name: str = "") -> bool:
        def act() -> bool:
            filesystem = _place(self.uri)[0]
            filesystem.invalidate_cache()
            return bool(filesystem.exists(self.path(name)))

        return self._try("read", act)

    def names(self, under: str = "") -> list[str]:
        """Files right in the folder `under`, sorted, without those whose names begin with '_' or '.'."""

        def act() -> list[dict[str, Any]]:
            filesystem = _place(self.uri)[0]
            filesystem.invalidate_cache()
            try:
                found: list[dict[str, Any]] = filesystem.ls(self.path(under), detail=True)
            except FileNotFoundError:
                return []
            return found

        names = sorted(
            PurePosixPath(item["name"]).name
            for item in self._try("read", act)
            if item["type"] == "file"
        )
        return [f"{under}/{name}" if under else name for name in names if name[0] not in "_."]

    def open(self, name: str) -> Any:
        """A file to read from, anywhere in it. A fault while it is read is the caller's: see `reading`."""
        return _place(self.uri)[0].open(self.path(name), "rb")

    def reading(self, name: str, act: Callable[[Any], Result]) -> Result:
        """What `act` makes of the open file; begun again when reading fails with a fault that may pass."""

        def attempt() -> Result:
            with self.open(name) as file:
                return act(file)

        return self._try("read", attempt)

    def _try(self, what: str, act: Callable[[], Result]) -> Result:
        """`act`, tried again where that may help. A full disc or a folder that may not be written ends the run in
        words; what is there stays."""
        try:
            return with_retries(act, f"{what} {self.uri}")
        except Exception as error:
            if not is_of_a_store(error):
                raise
            number = error.errno if isinstance(error, OSError) else None
            said = (
                (error.strerror if isinstance(error, OSError) else "")
                or str(error)
                or type(error).__name__
            )
            remedy = (
                "; free some space and run it again"
                if number in (errno.ENOSPC, errno.EDQUOT)
                else ""
            )
            raise UserError(f"cannot {what} {self.uri}: {said}{remedy}") from error


def output_folder(uri: str) -> RunFolder:
    """The folder that a command writes its output to.

    Refused where Ray would delete the output: a folder that is only read, such as a captioner, may lie there.
    """
    folder = RunFolder(uri)
    if folder.is_local:
        check_stays(folder.path(), "an absolute path, or a URI such as s3://bucket/folder")
    return folder


def _place(uri: str) -> tuple[Any, str]:
    try:
        return stores.open_store(uri)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot write to {uri}: {error}") from error


def _identity(path: str) -> tuple[int, int]:
    """What stays the same when a file or folder is renamed."""
    facts = os.stat(path)  # noqa: PTH116 - names are text here
    return facts.st_dev, facts.st_ino
