"""Every file of a folder, one after the other, in memory that does not grow with the folder."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raycap.refusal import Refusal
from raycap.sources.place import Place
from raycap.sources.rows import Tally

# Names sorted at a time: an ordinary folder comes in order of name, a huge one streams in the order of the disc.
SORTED_NAMES = 4096


@dataclass
class Oddities:
    """What a walk left out, besides hidden files."""

    links: Tally = field(default_factory=Tally)  # to folders, to nowhere, or out of the root
    locked: Tally = field(default_factory=Tally)  # folders that may not be listed


def walk(root: Place, odd: Oddities) -> Iterator[str]:
    """Paths of files relative to the root, with '/'; hidden files and folders are left out."""
    if root.filesystem is None:
        return _walk_local(root.path, odd)
    if hasattr(root.filesystem, "call_s3"):
        return _walk_s3(root)
    return _walk_remote(root)


def _walk_local(root: str, odd: Oddities) -> Iterator[str]:
    """Depth first. Links are followed to files inside the root only: so no cycle, and no way out."""
    true_root = os.path.realpath(root)
    cut = len(root.rstrip("/")) + 1
    levels = [_entries(root, odd)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.isfile(target) and os.path.commonpath([true_root, target]) == true_root:  # noqa: PTH113
                yield entry.path[cut:]
            else:
                odd.links.add(entry.path)
        elif entry.is_dir():
            levels.append(_entries(entry.path, odd))
        elif entry.is_file():
            yield entry.path[cut:]


def _entries(folder: str, odd: Oddities) -> "Iterator[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as listing:
            while names := list(itertools.islice(listing, SORTED_NAMES)):
                yield from sorted((e for e in names if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        odd.locked.add(f"{folder}: {error.strerror}")


def _walk_s3(root: Place) -> Iterator[str]:
    """Page by page, straight from S3: fsspec's own listing would hold the whole bucket."""
    bucket, _, prefix = root.path.partition("/")
    prefix = prefix and prefix + "/"
    token: dict[str, str] = {}
    while True:
        page = root.filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        for item in page.get("Contents", ()):
            name = item["Key"][len(prefix) :]
            if name and not name.endswith("/") and not is_hidden(name):
                yield name
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _walk_remote(root: Place) -> Iterator[str]:
    """One folder's listing in memory at a time, which is all that fsspec offers for every kind of storage."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        below = []
        for name, is_folder in _remote_entries(root.filesystem, f"{root.path}/{folder}".rstrip("/")):
            relative = f"{folder}/{name}" if folder else name
            if is_folder:
                below.append(relative)
            else:
                yield relative
        waiting.extend(reversed(below))


def _remote_entries(filesystem: Any, folder: str) -> list[tuple[str, bool]]:
    try:
        listing = filesystem.ls(folder, detail=True)
    except OSError as error:
        raise Refusal(f"cannot list {folder}: {error}") from error
    named = [(item["name"].rstrip("/"), item["type"] == "directory") for item in listing]
    filesystem.invalidate_cache(folder)  # fsspec would keep every listing for ever
    entries = [(name.rpartition("/")[2], is_folder) for name, is_folder in named if name != folder]
    return sorted(entry for entry in entries if not entry[0].startswith("."))


def is_hidden(relative: str) -> bool:
    """Whether the file, or a folder on the way to it, is hidden."""
    return relative.startswith(".") or "/." in relative
