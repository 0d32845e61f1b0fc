"""Files and folders of any store, by their literal names.

fsspec takes `*`, `?` and `[` in many paths for a pattern and `::` for a chain of protocols: its `rm("b/run[12]")`
deletes b/run1 and b/run2. What raycap reads, copies or deletes by name goes through here, where that is a name.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# simplecache::s3://bucket/x or zip://a.txt::s3://bucket/x.zip; s3://bucket/a::b is a name
_CHAIN = re.compile(r"::[A-Za-z][A-Za-z0-9+.-]*://")
REMOVED_AT_ONCE = 16


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem that a path or URI belongs to, and the path in it.

    Raises ValueError or ImportError where there is no such filesystem.
    """
    scheme = _SCHEME.match(uri)
    if _CHAIN.search(uri):
        filesystem, path = fsspec.url_to_fs(uri)
        return filesystem, path.rstrip("/")
    if scheme is None:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    kind = fsspec.get_filesystem_class(scheme[1].lower())
    if issubclass(kind, LocalFileSystem):
        return fsspec.filesystem("file"), os.path.abspath(uri[scheme.end() :])  # noqa: PTH100
    filesystem = fsspec.filesystem(scheme[1].lower(), **kind._get_kwargs_from_urls(uri))
    return filesystem, kind._strip_protocol(uri).rstrip("/")


def open_file(uri: str) -> Any:
    """The file at a path or URI, to read its bytes."""
    filesystem, path = open_store(uri)
    return filesystem.open(path, "rb")


def remove(filesystem: Any, path: str) -> None:
    """The file at `path`, or the folder with all that is below it; nothing happens where there is none."""
    if isinstance(filesystem, LocalFileSystem):
        _remove_local(path)
        return
    filesystem.invalidate_cache()
    names: list[str] = filesystem.find(path)
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        for _ in pool.map(lambda name: _if_there(filesystem.rm_file, name), names):
            pass
    filesystem.invalidate_cache()
    if filesystem.exists(path):  # a store with real folders, which are empty now
        folders = filesystem.find(path, withdirs=True)
        for folder in sorted({*folders, path}, key=len, reverse=True):
            _if_there(filesystem.rmdir, folder)


def _remove_local(path: str) -> None:
    while os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):  # something else removes the same: look again
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - names are text here
                shutil.rmtree(path)
            else:
                Path(path).unlink()


def _if_there(act: Callable[[str], object], name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        act(name)
