"""Opens, reads and removes files at any path or URI: local ones, and in all stores of fsspec.

Names are literal here. In fsspec, `*`, `?` and `[` in a path often mean a pattern, and `::` a
chain of protocols: its `rm("b/run[12]")` deletes b/run1 and b/run2.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from raycap.errors import UserError
from raycap.uris import WRAPPERS, local_path, scheme_of

# The extras of raycap that install the package for a scheme.
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "hf": "hf",
}
REMOVED_AT_ONCE = 16


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Returns fsspec's filesystem for a path or URI, and the path in it.

    Raises UserError if the scheme is unknown or its package is not installed.
    """
    import fsspec  # takes 50 ms

    path = local_path(uri)
    if path is not None:
        return fsspec.filesystem("file"), absolute(path).rstrip("/")
    scheme = scheme_of(uri)
    try:
        if scheme in WRAPPERS:
            filesystem, path = fsspec.core.url_to_fs(uri)
        else:
            uri = scheme + uri[len(scheme) :]
            kind = fsspec.get_filesystem_class(scheme)
            filesystem, path = kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
    except ImportError as error:
        remedy = f"pip install 'raycap[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        raise UserError(f"{scheme}:// needs a package that is missing: {remedy}") from error
    except ValueError as error:
        raise UserError(f"cannot open {uri}: {error}") from error
    return filesystem, path.rstrip("/")


def absolute(path: str) -> str:
    """An absolute local path. Names need not be UTF-8."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def open_uri(uri: str) -> IO[bytes]:
    """Opens a regular file or an object for reading.

    Raises OSError if it cannot be read, UserError if its kind of store is unknown.
    """
    path = local_path(uri)
    if path is not None:
        return open_local(absolute(path))
    filesystem, path = filesystem_of(uri)
    file: IO[bytes] = filesystem.open(path, "rb")
    # An archive is closed when nothing refers to its filesystem any more.
    with contextlib.suppress(AttributeError):
        file.opened_by = filesystem  # type: ignore[attr-defined]
    return file


def open_local(path: str) -> IO[bytes]:
    """Opens a regular local file for reading; raises OSError for pipes and devices at once."""
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "not a regular file")


def _open_without_waiting(name: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe without a writer would block.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def read_uri(
    uri: str, most: int, start: int = 0, length: int | None = None, inside: str = ""
) -> bytes:
    """Returns the bytes of a regular file or object, or `length` of them from `start` on.

    Raises OSError if it cannot be read or has more than `most` bytes, or if it is local and, with
    all links followed, lies outside of the folder `inside`.
    """
    end = most + 1 if length is None else start + length
    path = local_path(uri)
    if path is None:
        filesystem, path = filesystem_of(uri)
        data: bytes = filesystem.cat_file(path, start=start, end=end)
    else:
        path = absolute(path)
        folder = local_path(inside) if inside else None
        if folder is not None:
            real_folder = os.path.realpath(absolute(folder)).rstrip("/")
            if not f"{os.path.realpath(path)}/".startswith(f"{real_folder}/"):
                raise OSError(errno.EPERM, "a link that leads out of its folder")
        with open_local(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
            file.seek(start)
            data = file.read(min(end, size + 1) - start)
    if length is None and start + len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
    return data


def remove(filesystem: Any, path: str) -> None:
    """Removes the file or folder at `path`, if it exists."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(filesystem, LocalFileSystem):
        while os.path.lexists(path):
            # FileNotFoundError: another process is removing the same folder, so look again.
            with contextlib.suppress(FileNotFoundError):
                if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                    shutil.rmtree(path)
                else:
                    Path(path).unlink()
        return
    filesystem.invalidate_cache()
    names: list[str] = filesystem.find(path)
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        for _ in pool.map(lambda name: _unless_gone(filesystem.rm_file, name), names):
            pass
    filesystem.invalidate_cache()
    if filesystem.exists(path):  # in a store with real folders, the empty folders are left
        folders = filesystem.find(path, withdirs=True)
        for folder in sorted({*folders, path}, key=len, reverse=True):
            _unless_gone(filesystem.rmdir, folder)


def _unless_gone(function: Callable[[str], object], name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        function(name)
