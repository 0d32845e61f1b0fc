"""The output folder of a run, on a disk or in an object store. Files appear when they are
complete."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from raycap.errors import UserError
from raycap.storage.files import check_stays
from raycap.storage.filesystem import filesystem_of, remove
from raycap.storage.retry import is_of_a_store, with_retries
from raycap.uris import STORES, is_local, scheme_of

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")

# Folder for files that are not published yet. Readers of Parquet folders skip names with '_'
# first.
STAGED = "_staged"
# How the names of files begin with which a store is tried.
PROBE = "_probe-"


@dataclass(frozen=True)
class RunFolder:
    """A folder at a path or URI. The object has only the URI, so it can be sent to other
    processes.

    Names of files are relative to the folder, with '/'. They are literal: `*` and `[1]` are not
    patterns. Transient faults are retried (see `retry`); permanent ones raise UserError.
    """

    uri: str
    # The store cannot write a file on the condition that it is not there, and the user says that
    # one process writes at a time: see --commit.
    has_one_writer: bool = False

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError("give --out FOLDER (a path, or a URI such as s3://bucket/captions)")
        if self.uri.startswith("memory://"):
            raise UserError(
                f"{self.uri} is the memory of one process, and several processes write: "
                "give a folder, or s3://..."
            )
        if "?versionId=" in self.uri and "://" in self.uri:  # s3fs leaves that out of every name
            raise UserError(
                f"{self.uri} names a version of an object, and a folder has none: "
                "leave out ?versionId="
            )
        _ = self._filesystem  # raises UserError if there is none

    def __truediv__(self, name: str) -> "RunFolder":
        return RunFolder(f"{self.uri.rstrip('/')}/{name}", self.has_one_writer)

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return is_local(self.uri)

    @property
    def _filesystem(self) -> Any:
        return filesystem_of(self.uri)[0]

    def path(self, name: str = "") -> str:
        """Returns the path of a file as its filesystem names it."""
        return f"{filesystem_of(self.uri)[1]}/{name}".rstrip("/")

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Returns the bytes of a file, or those from `start` to `stop`; None if it does not
        exist."""

        def read() -> bytes | None:
            try:
                path = self.path(name)
                content: bytes = self._filesystem.cat_file(path, start=start, end=stop)
            except FileNotFoundError:
                return None
            return content

        return self._retry("read", read)

    def read_json(self, name: str) -> dict[str, Any] | None:
        content = self.read(name)
        try:
            data = None if content is None else json.loads(content)
        except ValueError as error:
            raise UserError(f"{self.uri}/{name} is not whole JSON: {error}") from error
        if not isinstance(data, dict | None):
            raise UserError(f"{self.uri}/{name} is not what raycap writes there")
        return data

    def write(self, name: str, content: "bytes | pa.Buffer") -> None:
        """Writes a file atomically: a reader sees the complete old file or the complete new
        one."""
        if self.is_local:
            part = str(PurePosixPath(name).with_name(f".{uuid.uuid4().hex}.part"))
            self.stage(part, content)
            self.rename(part, name)
        else:  # an object appears when its upload is complete
            self.stage(name, content)

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())

    def stage(self, name: str, content: "bytes | pa.Buffer") -> None:
        """Writes a file that is renamed later. It is on the disk (fsync) when this returns."""

        def write() -> None:
            self._make_parent(name)
            if not self.is_local:  # clients of stores take bytes only
                self._filesystem.pipe_file(self.path(name), bytes(content))
                return
            with Path(self.path(name)).open("wb") as file:
                file.write(content)
                file.flush()
                # If fsync fails, the whole file is written again. A second fsync alone could
                # succeed without writing the lost data.
                os.fsync(file.fileno())

        self._retry("write", write)

    def put(self, name: str, path: str) -> None:
        """Moves or uploads the local file `path`, which may be large. It appears when it is
        complete."""

        def put() -> None:
            self._make_parent(name)
            if not self.is_local:
                self._filesystem.put_file(path, self.path(name))
                return
            with Path(path).open("rb") as file:
                os.fsync(file.fileno())
            Path(path).replace(self.path(name))  # on the same disk, see `scratch`

        self._retry("write", put)

    def scratch(self) -> str | None:
        """Returns a folder for large temporary files; None means the default of the system."""
        if not self.is_local:
            return None
        Path(self.path(STAGED)).mkdir(parents=True, exist_ok=True)
        return self.path(STAGED)

    def rename(self, old: str, new: str) -> None:
        """Renames a file: on a disk in one step, in an object store by a copy and a removal."""
        source, target = self.path(old), self.path(new)
        moved: list[tuple[int, int]] = []

        def move() -> None:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            try:
                moved[:] = [_device_and_inode(source)]
                os.replace(source, target)  # noqa: PTH105 - names are text here
            except FileNotFoundError:
                # An earlier try may have moved it, and only its answer was lost.
                if not moved or _device_and_inode(target) != moved[0]:
                    raise

        def copy() -> None:
            self._make_parent(new)
            self._filesystem.cp_file(source, target)

        def remove_source() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(source)

        for step in (move,) if self.is_local else (copy, remove_source):
            self._retry("write", step)

    def remove(self, name: str) -> None:
        """Removes a file or a folder, if there is one."""
        self._retry("write", lambda: remove(self._filesystem, self.path(name)))

    def remove_empty(self, name: str) -> None:
        """Removes a folder if nothing is in it. Object stores have no empty folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self.path(name)).rmdir()

    def remove_file(self, name: str) -> None:
        """Removes a file, if it exists, with one call of the store. `name` must not be a
        folder."""

        def remove_file() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self.path(name))

        self._retry("write", remove_file)

    def exists(self, name: str = "") -> bool:
        def exists() -> bool:
            self._filesystem.invalidate_cache()
            return bool(self._filesystem.exists(self.path(name)))

        return self._retry("read", exists)

    def create(self, name: str, content: "bytes | pa.Buffer") -> bool:
        """Writes a file if it does not exist. Returns whether it has this content now: if several
        processes try it with different contents, one of them gets True; unless the folder
        `has_one_writer`."""
        if not self.is_local:  # clients of stores take bytes only
            content = bytes(content)
        if self.has_one_writer and not self.is_local:
            found = self.read(name)
            if found is None:
                self.write(name, content)
            return found is None or found == content
        part = Path(self.path(name)).with_name(f".{uuid.uuid4().hex}.part")

        def create() -> bool:
            self._make_parent(name)
            try:
                if self.is_local:
                    _create_local(self.path(name), part, content)
                else:
                    self._filesystem.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                # An earlier try may have written it, and only its answer was lost.
                return self.read(name) == content
            return True

        return self._retry("write", create)

    def check_creates(self) -> None:
        """Raises UserError if this store cannot `create` files safely."""
        if self.is_local:
            return
        # Another run that cleans up may remove the first file, so one answer is not enough.
        if self._replaces() and self._replaces() and not self.has_one_writer:
            raise UserError(
                f"the store of {self} cannot write a file on the condition that it is not there, "
                "which keeps two runs from mixing their rows: give a folder that all machines "
                "share, or a store that can (Amazon S3, Google Cloud Storage, Azure). If never "
                "more than one run writes there, give --commit unsafe-single-driver"
            )

    def _replaces(self) -> bool:
        """Whether this store replaces a file that was to be created. Raises UserError if it
        refuses such requests."""
        name = f"{PROBE}{uuid.uuid4().hex}"
        self.write(name, b"first")  # raises UserError if nothing can be written
        try:
            return RunFolder(self.uri).create(name, b"second")
        except (NotImplementedError, UserError) as error:  # tables cannot do without it
            raise UserError(
                f"the store of {self} refuses to write a file on the condition that it is not "
                f"there, which tables need ({error}): give a folder that all machines share, or "
                "another store"
            ) from error
        except (TypeError, ValueError):  # clients without this mode
            return True
        finally:
            self.remove_file(name)

    def folders(self, under: str = "") -> list[str]:
        """Returns the names of the folders in the folder `under`, sorted."""
        found = [each for each in self._entries(under) if each["type"] == "directory"]
        return sorted(PurePosixPath(each["name"]).name for each in found)

    def names(self, under: str = "", hidden: bool = False) -> list[str]:
        """Returns the files in the folder `under`, sorted. Names with '_' or '.' first are
        hidden."""
        files = [each for each in self._entries(under) if each["type"] == "file"]
        names = sorted(PurePosixPath(each["name"]).name for each in files)
        shown = [name for name in names if hidden or name[0] not in "_."]
        return [f"{under}/{name}" if under else name for name in shown]

    def _entries(self, under: str) -> list[dict[str, Any]]:
        def entries() -> list[dict[str, Any]]:
            self._filesystem.invalidate_cache()
            try:
                found: list[dict[str, Any]] = self._filesystem.ls(self.path(under), detail=True)
            except FileNotFoundError:
                return []
            return found

        return self._retry("read", entries)

    def open(self, name: str) -> Any:
        """Opens a file for reading. Faults while it is read are not retried: see `reading`."""
        return self._filesystem.open(self.path(name), "rb")

    def reading(self, name: str, act: Callable[[Any], Result]) -> Result:
        """Returns `act(open file)`. After a transient fault the file is opened and read again."""

        def read() -> Result:
            with self.open(name) as file:
                return act(file)

        return self._retry("read", read)

    def _make_parent(self, name: str) -> None:
        if scheme_of(self.uri) in STORES:  # they have no folders
            return
        self._filesystem.makedirs(self.path(str(PurePosixPath(name).parent)), exist_ok=True)

    def _retry(self, what: str, act: Callable[[], Result]) -> Result:
        """Returns `act()`, with retries. Raises UserError for permanent faults, such as a full
        disk."""
        try:
            return with_retries(act, f"{what} {self.uri}")
        except Exception as error:
            if not is_of_a_store(error):
                raise
            reason, remedy = str(error) or type(error).__name__, ""
            if isinstance(error, OSError):
                reason = error.strerror or reason
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    remedy = "; free some space and run it again"
            raise UserError(f"cannot {what} {self.uri}: {reason}{remedy}") from error


def _create_local(path: str, part: Path, content: "bytes | pa.Buffer") -> None:
    """Writes a new file atomically. Raises FileExistsError if it exists."""
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def output_folder(uri: str, has_one_writer: bool = False) -> RunFolder:
    """The output folder of a command. Raises UserError for a folder that Ray would delete."""
    folder = RunFolder(uri, has_one_writer)
    if folder.is_local:
        check_stays(folder.path(), "an absolute path, or a URI such as s3://bucket/folder")
    return folder


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Compares the identities of two runs. Returns a line for each option that differs."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        dotted = f"{prefix}{name}"
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += differences(before, now, f"{dotted}.")
        elif before != now:
            lines.append(f"{dotted} was {before!r}, now {now!r}")
    return lines


def _device_and_inode(path: str) -> tuple[int, int]:
    """Identifies a file, also after it was renamed."""
    facts = os.stat(path)  # noqa: PTH116 - names are text here
    return facts.st_dev, facts.st_ino
