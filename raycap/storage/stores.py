"""Files and folders of any store, by their literal names.

fsspec takes `*`, `?` and `[` in many paths for a pattern and `::` for a chain of protocols: its `rm("b/run[12]")`
deletes b/run1 and b/run2. What raycap reads, copies or deletes by name goes through here, where that is a name.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from raycap.uris import filesystem_of

REMOVED_AT_ONCE = 16


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem that a path or URI belongs to, and the path in it.

    Raises ValueError or ImportError where there is no such filesystem.
    """
    filesystem, path = filesystem_of(uri)
    return filesystem, path.rstrip("/")


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
