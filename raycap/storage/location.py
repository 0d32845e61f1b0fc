"""A file or folder at a path or URI, with one interface for local files and stores."""

import difflib
import itertools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from raycap.errors import UserError
from raycap.storage.filesystem import absolute, filesystem_of, open_local
from raycap.uris import local_path, uri_of

# Limits for recognising a dataset by its files: a folder may have a million entries.
MOST_ENTRIES = 100_000
MOST_FOLDERS = 64


@dataclass(frozen=True)
class Location:
    """A file or folder, which may or may not exist."""

    uri: str  # how it is opened; a plain absolute path if it is local
    path: str  # in its filesystem
    filesystem: Any  # of fsspec; None for local files, for which `os` is used

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

    # os.path returns False where pathlib raises: names too long, folders that may not be entered.

    def is_folder(self) -> bool:
        if self.filesystem is None:
            return os.path.isdir(self.path)  # noqa: PTH112
        return bool(self.filesystem.isdir(self.path))

    def is_file(self) -> bool:
        if self.filesystem is None:
            return os.path.isfile(self.path)  # noqa: PTH113
        return bool(self.filesystem.isfile(self.path))

    def exists(self) -> bool:
        if self.filesystem is None:
            return os.path.exists(self.path)  # noqa: PTH110
        return bool(self.filesystem.exists(self.path))

    def open(self) -> IO[bytes]:
        """Opens the file for reading; raises UserError if that is not possible."""
        try:
            if self.filesystem is None:
                return open_local(self.path)
            opened: IO[bytes] = self.filesystem.open(self.path, "rb")
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {self.uri}: {reason}") from error
        return opened

    def entries(self, limit: int = MOST_ENTRIES) -> list[tuple[str, bool]]:
        """Returns the names in this folder, and whether each is a folder; sorted, at most `limit`.

        Hidden entries are left out. A folder that cannot be listed has no entries.
        """
        try:
            if hasattr(self.filesystem, "call_s3"):
                found = self._first_page_of_s3()
            elif self.filesystem is not None:
                found = []
                for item in self.filesystem.ls(self.path, detail=True):
                    path = item["name"].rstrip("/")
                    if path != self.path.rstrip("/"):
                        found.append((path.rpartition("/")[2], item["type"] == "directory"))
            else:
                with os.scandir(self.path) as listing:
                    # Pipes, devices and broken links are left out.
                    found = [
                        (entry.name, entry.is_dir())
                        for entry in itertools.islice(listing, limit)
                        if entry.is_dir() or entry.is_file()
                    ]
        except OSError:
            return []
        visible = (entry for entry in found[:limit] if not entry[0].startswith((".", "__MACOSX")))
        return sorted(visible)

    def _first_page_of_s3(self) -> list[tuple[str, bool]]:
        """The first thousand names. fsspec would list all of them, and there may be millions."""
        bucket, _, prefix = self.path.partition("/")
        prefix = prefix and prefix + "/"
        page = self.filesystem.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/"
        )
        folders = [item["Prefix"][:-1] for item in page.get("CommonPrefixes", ())]
        files = [item["Key"] for item in page.get("Contents", ()) if item["Key"] != prefix]
        start = len(prefix)
        return [(path[start:], True) for path in folders] + [(key[start:], False) for key in files]

    def folders_below(self, depth: int = 2) -> "Iterator[tuple[Location, list[tuple[str, bool]]]]":
        """This folder and its subfolders down to `depth`, with their entries, breadth first."""
        if self.filesystem is not None:
            depth = min(depth, 1)  # each listing of a bucket is a request
        level = [self]
        for _ in range(depth + 1):
            next_level: list[Location] = []
            for folder in level:
                entries = folder.entries()
                yield folder, entries
                next_level.extend(folder / name for name, is_folder in entries if is_folder)
            level = next_level[:MOST_FOLDERS]

    def search(self, pattern: re.Pattern[str]) -> Iterator["Location"]:
        """Files in this folder and up to two folders down whose name matches, nearest first."""
        for folder, entries in self.folders_below():
            for name, is_folder in entries:
                if not is_folder and pattern.fullmatch(name):
                    yield folder / name


def locate(path: str) -> Location:
    """Returns the location that a path or URI names.

    Raises UserError if its kind of store is unknown or its package is not installed.
    """
    local = local_path(path)
    if local is not None:
        local = absolute(local)
        return Location(uri_of(local), local, None)
    filesystem, inner = filesystem_of(path)
    return Location(path.rstrip("/"), inner, filesystem)


def existing(path: str) -> Location:
    """Like `locate`; raises UserError, with the nearest thing that exists, if nothing is there."""
    location = locate(path)
    try:
        if location.exists():
            return location
    except _store_errors() as error:
        raise UserError(f"cannot reach {location.uri}: {error}") from error
    parent, child = location.parent, location.name
    while parent.path != "/" and not parent.exists():
        parent, child = parent.parent, parent.name
    if location.filesystem is not None and parent.path == "/":
        # The root of a store cannot be listed.
        raise UserError(f"no such file or folder: {location.uri}")
    close = difflib.get_close_matches(child, [name for name, _ in parent.entries(10_000)], n=1)
    hint = f"the nearest that exists is {parent.uri}"
    if close:
        hint = f"did you mean {(parent / close[0]).uri}?"
    raise UserError(f"no such file or folder: {location.uri}; {hint}")


def _store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of stores without credentials or network. The S3 client has its own class."""
    client = sys.modules.get("botocore.exceptions")
    return (OSError, client.BotoCoreError) if client else (OSError,)
