"""Walks through all files of a folder, in memory that does not grow with the folder."""

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from raycap.sources.notes import UNLISTED_FOLDER, Notes
from raycap.storage.location import Location
from raycap.uris import uri_of

# Names sorted at a time: an ordinary folder is sorted, a huge one comes in the order of the disk.
SORTED_NAMES = 4096
# Seconds before each retry to list a folder, and the most seconds that one walk waits: on a dead
# disk every folder fails.
PAUSES = (0.1, 0.5, 2.0)
MOST_SECONDS_WAITED = 60.0
# Not retried. Other faults (EIO, ESTALE, a lost connection) may pass.
_PERMANENT = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}


class FolderEntry(NamedTuple):
    """One entry of a walk: a file, or something that cannot be read as one."""

    path: str  # relative to the root, with '/'
    error: str = ""  # why it cannot be read as a file: "a directory, not a file"; "" for a file
    is_folder: bool = False  # a folder, or a link to one
    is_link: bool = False


def walk(
    root: Location, notes: Notes, below: str = "", deep: bool = True
) -> Iterator[FolderEntry]:
    """Yields the files below the root, and what is no file: folders, pipes, links not followed.

    Hidden entries are left out. A folder that cannot be listed is noted, after a few retries.
    With `below`, only that folder below the root is walked; without `deep`, only what lies in it
    and not in the folders there.
    """
    if root.filesystem is None:
        return _walk_local(root.path, notes, below, deep)
    if hasattr(root.filesystem, "call_s3"):
        return _walk_s3(root, notes, below, deep)
    return _walk_remote(root, notes, below, deep)


def top_folders(root: Location, most: int) -> list[str]:
    """The folders right below the root, each with '/' behind; none if there are more than `most`
    entries, or if they cannot be listed."""
    try:
        if root.filesystem is None:
            with os.scandir(root.path) as listing:
                entries = list(itertools.islice(listing, most + 1))
            count = len(entries)
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        elif hasattr(root.filesystem, "call_s3"):
            bucket, _, prefix = root.path.partition("/")
            prefix = prefix and prefix + "/"
            page = root.filesystem.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/"
            )
            names = [item["Prefix"][len(prefix) : -1] for item in page.get("CommonPrefixes", ())]
            count = len(names) + len(page.get("Contents", ()))
            count += most if page.get("IsTruncated") else 0
        else:
            found = _remote_entries(root, "", Notes(), ListingRetries())
            names, count = [name for name, is_folder in found if is_folder], len(found)
    except Exception:  # noqa: BLE001 - the walk itself says what is wrong
        return []
    if count > most:
        return []
    return sorted(f"{name}/" for name in names if name and not is_hidden(name))


class ListingRetries:
    """Decides how often a folder is listed again after a fault, within one walk."""

    def __init__(self) -> None:
        self._seconds_left = MOST_SECONDS_WAITED

    def waits(self, error: Exception, tries: int) -> bool:
        """Whether to try once more after so many tries; waits before it returns True."""
        permanent = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
        permanent |= isinstance(error, OSError) and error.errno in _PERMANENT
        if permanent or tries > len(PAUSES) or PAUSES[tries - 1] > self._seconds_left:
            return False
        self._seconds_left -= PAUSES[tries - 1]
        time.sleep(PAUSES[tries - 1])
        return True


def _walk_local(root: str, notes: Notes, below: str, deep: bool) -> Iterator[FolderEntry]:
    """Depth first. Links are followed only to files inside the root: so there are no cycles."""
    true_root = os.path.realpath(root)
    cut = len(root.rstrip("/")) + 1
    patience = ListingRetries()
    start = f"{root.rstrip('/')}/{below}".rstrip("/") or "/"
    levels = [_entries(start, notes, patience)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        path = entry.path[cut:]
        try:
            if entry.is_symlink():
                yield _link(path, entry.path, true_root)
            elif entry.is_dir():
                yield FolderEntry(path, "a directory, not a file", is_folder=True)
                if deep:
                    levels.append(_entries(entry.path, notes, patience))
            elif entry.is_file():
                yield FolderEntry(path)
            else:
                yield FolderEntry(path, "not a regular file")
        except OSError as error:  # some file systems do not give the type with the listing
            yield FolderEntry(path, _reason(error))


def _link(path: str, whole: str, true_root: str) -> FolderEntry:
    target = os.path.realpath(whole)
    try:
        mode = os.stat(target).st_mode  # noqa: PTH116 - pathlib raises for odd names
    except FileNotFoundError:
        return FolderEntry(path, "a link to a missing file", is_link=True)
    except OSError as error:
        return FolderEntry(
            path, f"a link that cannot be followed ({_reason(error)})", is_link=True
        )
    if stat.S_ISDIR(mode):
        return FolderEntry(
            path, "a link to a directory, not to a file", is_folder=True, is_link=True
        )
    if os.path.commonpath([true_root, target]) != true_root:
        return FolderEntry(
            path,
            "a link that leads out of the folder (not followed: copy the picture itself)",
            is_link=True,
        )
    return FolderEntry(
        path, "" if stat.S_ISREG(mode) else "a link to what is not a regular file", is_link=True
    )


def _entries(folder: str, notes: Notes, patience: ListingRetries) -> "Iterator[os.DirEntry[str]]":
    """Yields the entries of one folder that are not hidden.

    After a fault it is listed again, unless some entries were yielded: the order may change.
    """
    given, tries = 0, 0
    while True:
        try:
            with os.scandir(folder) as listing:
                while names := list(itertools.islice(listing, SORTED_NAMES)):
                    given += len(names)
                    shown = [entry for entry in names if not entry.name.startswith(".")]
                    yield from sorted(shown, key=lambda entry: entry.name)
            return
        except OSError as error:
            tries += 1
            if given or not patience.waits(error, tries):
                notes.add(UNLISTED_FOLDER, f"{uri_of(folder)}: {_reason(error)}{_after(given)}")
                return


def _walk_s3(root: Location, notes: Notes, below: str, deep: bool) -> Iterator[FolderEntry]:
    """Page by page: fsspec's own listing would hold the whole bucket in memory."""
    bucket, _, prefix = root.path.partition("/")
    prefix = prefix and prefix + "/"
    token: dict[str, str] = {} if deep else {"Delimiter": "/"}
    patience, given, tries = ListingRetries(), 0, 0
    while True:
        try:
            page = root.filesystem.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix + below, **token
            )
        except Exception as error:  # noqa: BLE001 - the client has errors of its own besides OSError
            tries += 1
            if patience.waits(error, tries):
                continue
            notes.add(UNLISTED_FOLDER, f"{root.uri}: {_reason(error)}{_after(given)}")
            return
        tries = 0
        for item in page.get("Contents", ()):
            given += 1
            name = item["Key"][len(prefix) :]
            if name and not name.endswith("/") and not is_hidden(name):
                yield FolderEntry(name)
        if not page.get("IsTruncated"):
            return
        token["ContinuationToken"] = page["NextContinuationToken"]


def _walk_remote(root: Location, notes: Notes, start: str, deep: bool) -> Iterator[FolderEntry]:
    """Folder by folder, which is all that fsspec offers for every kind of store."""
    waiting, patience = [start.rstrip("/")], ListingRetries()
    while waiting:
        folder = waiting.pop()
        below = []
        for name, is_folder in _remote_entries(root, folder, notes, patience):
            relative = f"{folder}/{name}" if folder else name
            if not is_folder:
                yield FolderEntry(relative)
            elif deep:
                below.append(relative)
        waiting.extend(reversed(below))


def _remote_entries(
    root: Location, below: str, notes: Notes, patience: ListingRetries
) -> list[tuple[str, bool]]:
    folder, tries = f"{root.path}/{below}".rstrip("/"), 0
    while True:
        try:
            listing = root.filesystem.ls(folder, detail=True)
            break
        except Exception as error:  # noqa: BLE001 - every kind of store has errors of its own
            tries += 1
            if not patience.waits(error, tries):
                uri = (root / below if below else root).uri
                notes.add(UNLISTED_FOLDER, f"{uri}: {_reason(error)}")
                return []
    named = [(item["name"].rstrip("/"), item["type"] == "directory") for item in listing]
    root.filesystem.invalidate_cache(folder)  # fsspec would keep every listing for ever
    entries = [(name.rpartition("/")[2], is_folder) for name, is_folder in named if name != folder]
    return sorted(entry for entry in entries if not entry[0].startswith("."))


def _reason(error: Any) -> str:
    """What went wrong, without the path, which the caller names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _after(given: int) -> str:
    return f", after {given:,} names" if given else ""


def is_hidden(relative: str) -> bool:
    """Whether the file, or a folder on the way to it, is hidden."""
    return relative.startswith(".") or "/." in relative
