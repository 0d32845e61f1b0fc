"""Where things lie: a local path or an fsspec URI, looked at in one way. Knows no rows and no formats."""

import difflib
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from raycap.errors import UserError
from raycap.uris import EXTRAS, filesystem_of, local_path, scheme_of, uri_of

_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
_HEIF = (".avif", ".heic", ".heif", ".hif")
PICTURE_ENDINGS = (
    *_JPEG,
    *_HEIF,
    ".apng",
    ".bmp",
    ".dib",
    ".gif",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
PICTURE_NAME = re.compile(
    f".*({'|'.join(map(re.escape, PICTURE_ENDINGS))})", re.IGNORECASE | re.DOTALL
)
# Enough to recognise a dataset by its files; a folder with a million entries must not be read for it.
_GLANCE = 100_000
_FOLDERS_SEARCHED = 64


@dataclass(frozen=True)
class Location:
    """A file or folder, there or not."""

    uri: str  # as a stranger opens it; a plain absolute path where it is local
    path: str  # as its filesystem names it
    filesystem: Any  # fsspec's; None for local, where the operating system is asked

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        path = self.path.rpartition("/")[0] or "/"
        if self.filesystem is None:
            return Location(uri_of(path), path, None)
        return Location(self.uri.rpartition("/")[0] or "/", path, self.filesystem)

    def __truediv__(self, name: str) -> "Location":
        path = f"{self.path.rstrip('/')}/{name}"
        if self.filesystem is None:
            return Location(uri_of(path), path, None)
        return Location(f"{self.uri.rstrip('/')}/{name}", path, self.filesystem)

    def is_folder(self) -> bool:
        return self._ask(os.path.isdir, "isdir")

    def is_file(self) -> bool:
        return self._ask(os.path.isfile, "isfile")

    def exists(self) -> bool:
        return self._ask(os.path.exists, "exists")

    def _ask(self, local: Callable[[str], bool], remote: str) -> bool:
        # os.path, for it says no where pathlib raises: names too long, folders that may not be entered.
        return (
            local(self.path)
            if self.filesystem is None
            else bool(getattr(self.filesystem, remote)(self.path))
        )

    def open(self) -> IO[bytes]:
        """Its bytes; a refusal where the system will not give them."""
        try:
            if self.filesystem is None:
                return _open_regular(self)
            opened: IO[bytes] = self.filesystem.open(self.path, "rb")
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot read {self.uri}: {getattr(error, 'strerror', None) or error}"
            ) from error
        return opened

    def entries(self, limit: int = _GLANCE) -> list[tuple[str, bool]]:
        """Names in this folder, hidden ones left out, and whether each is a folder; sorted, at most `limit`."""
        found: list[tuple[str, bool]] = []
        try:
            if hasattr(self.filesystem, "call_s3"):
                found = _first_page_of_s3(self)
            elif self.filesystem is not None:
                listing = self.filesystem.ls(self.path, detail=True)
                typed = (
                    (item["name"].rstrip("/"), item["type"] == "directory") for item in listing
                )
                found = [
                    (name.rpartition("/")[2], folder)
                    for name, folder in typed
                    if name != self.path.rstrip("/")
                ]
            else:
                with os.scandir(self.path) as listing:
                    # Pipes, devices and dead links are no files: nothing is read from them.
                    named = ((entry.name, entry.is_dir(), entry.is_file()) for entry in listing)
                    some = itertools.islice(named, limit)
                    found = [
                        (name, is_folder)
                        for name, is_folder, is_file in some
                        if is_folder or is_file
                    ]
        except OSError:
            return []  # a folder that may not be listed is no reason to stop looking elsewhere
        return sorted(
            (name, folder)
            for name, folder in found[:limit]
            if not name.startswith((".", "__MACOSX"))
        )

    def glance(self, depth: int = 2) -> "Iterator[tuple[Location, list[tuple[str, bool]]]]":
        """This folder and those below it with their entries, nearer ones first, down to `depth`; a bounded look."""
        if self.filesystem is not None:
            depth = min(depth, 1)  # each listing of a bucket is a request
        level = [self]
        for _ in range(depth + 1):
            below: list[Location] = []
            for folder in level:
                entries = folder.entries()
                yield folder, entries
                below.extend(folder / name for name, is_folder in entries if is_folder)
            level = below[:_FOLDERS_SEARCHED]

    def search(self, pattern: re.Pattern[str]) -> Iterator["Location"]:
        """Files in this folder and up to two folders down whose name matches, nearer ones first."""
        for folder, entries in self.glance():
            for name, is_folder in entries:
                if not is_folder and pattern.fullmatch(name):
                    yield folder / name


def _open_regular(place: Location) -> IO[bytes]:
    """A local file. The opening of a pipe would wait for somebody to write to it, and a device may have no end."""
    file = open(place.path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"cannot read {place.uri}: it is not a regular file")


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _first_page_of_s3(folder: Location) -> list[tuple[str, bool]]:
    """A thousand names: fsspec would list all, and there may be millions."""
    bucket, _, prefix = folder.path.partition("/")
    prefix = prefix and prefix + "/"
    page = folder.filesystem.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/"
    )
    folders = [(item["Prefix"][len(prefix) : -1], True) for item in page.get("CommonPrefixes", ())]
    return folders + [
        (item["Key"][len(prefix) :], False)
        for item in page.get("Contents", ())
        if item["Key"] != prefix
    ]


def locate(path: str) -> Location:
    """The place that a user's words mean; a refusal where its kind of storage is unknown or not installed."""
    local = local_path(path)
    if local is not None:
        absolute = os.path.abspath(os.path.expanduser(local))  # noqa: PTH100, PTH111 - names need not be UTF-8
        return Location(uri_of(absolute), absolute, None)
    try:
        filesystem, inner = filesystem_of(path)
    except ImportError as error:
        scheme = scheme_of(path)
        remedy = f"pip install 'raycap[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        raise UserError(f"{scheme}:// needs a package that is missing: {remedy}") from error
    except ValueError as error:
        raise UserError(f"cannot open {path}: {error}") from error
    return Location(path.rstrip("/"), inner.rstrip("/"), filesystem)


def existing(path: str) -> Location:
    """As `locate`, and it must be there; the refusal names the nearest thing that is."""
    place = locate(path)
    try:
        if place.exists():
            return place
    except _store_errors() as error:
        raise UserError(f"cannot reach {place.uri}: {error}") from error
    parent, child = place.parent, place.name
    while parent.path != "/" and not parent.exists():
        parent, child = parent.parent, parent.name
    if (
        place.filesystem is not None and parent.path == "/"
    ):  # above all buckets, where there is nothing to list
        raise UserError(f"no such file or folder: {place.uri}")
    close = difflib.get_close_matches(child, [name for name, _ in parent.entries(10_000)], n=1)
    hint = (
        f"did you mean {(parent / close[0]).uri}?"
        if close
        else f"the nearest that exists is {parent.uri}"
    )
    raise UserError(f"no such file or folder: {place.uri}; {hint}")


def _store_errors() -> tuple[type[Exception], ...]:
    """What stores raise for lack of credentials or network; S3's client has errors of its own for that."""
    client = sys.modules.get("botocore.exceptions")
    return (OSError, client.BotoCoreError) if client else (OSError,)
