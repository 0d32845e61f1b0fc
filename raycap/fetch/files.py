"""Local files and object stores: a path or fsspec URI to bytes, or what went wrong."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from raycap.fetch.errors import FetchError, scrubbed, too_large, too_late
from raycap.fetch.options import Fetch
from raycap.fetch.timeouts import call_with_timeout
from raycap.uris import EXTRAS, filesystem_of, local_path, scheme_of

# Asks for memory of so many bytes in all; returns the seconds that this waited.
GrowTo = Callable[[int], float]
# Bytes of an object that are asked for at first: most pictures are smaller.
_FIRST_PIECE = 2 * 2**20


def read(uri: str, options: Fetch, seconds: float, grow_to: GrowTo | None = None) -> bytes:
    """All bytes of a file or object; raises FetchError. `grow_to` is called before memory is taken, and may wait.

    The size of an object is not asked for first, which would double the requests. The system's calls for local
    files cannot be given a deadline.
    """
    path = local_path(uri)
    try:
        if path is not None:
            data = _read_local(path, options.max_bytes)
        else:
            data = _read_store(uri, options.max_bytes, seconds, grow_to)
    except TimeoutError as error:
        raise too_late(options.deadline) from error
    except OSError as error:
        raise _explained(error, path if path is not None else scrubbed(uri)) from error
    if len(data) > options.max_bytes:
        raise too_large(options.max_bytes)
    if not data:
        raise FetchError("an empty file")
    return data


def _read_local(path: str, max_bytes: int) -> bytes:
    # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=open_at_once) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise FetchError(f"not a regular file: {path}")
        if facts.st_size > max_bytes:
            raise too_large(max_bytes)
        return file.read(
            facts.st_size + 1
        )  # + 1: room to see that it grew beyond the cap meanwhile


def _read_store(uri: str, max_bytes: int, seconds: float, grow_to: GrowTo | None) -> bytes:
    """An object, in one request where it is small. Else its size is asked for, and memory of that size, before the
    rest is read."""
    if grow_to is None:
        return call_with_timeout(seconds, lambda: _read_piece(uri, 0, max_bytes + 1))
    end = time.monotonic() + seconds
    first = min(_FIRST_PIECE, max_bytes + 1)
    end += grow_to(first)
    data = call_with_timeout(end - time.monotonic(), lambda: _read_piece(uri, 0, first))
    if len(data) < first:
        return data
    size = call_with_timeout(end - time.monotonic(), lambda: _size(uri))
    if size > max_bytes:
        raise too_large(max_bytes)
    if size <= first:
        return data
    end += grow_to(size)
    return data + call_with_timeout(end - time.monotonic(), lambda: _read_piece(uri, first, size))


def _size(uri: str) -> int:
    filesystem, path = filesystem_of(uri)
    return int(filesystem.size(path))


def _read_piece(uri: str, start: int, end: int) -> bytes:
    try:
        filesystem, path = filesystem_of(uri)
    except ImportError as error:
        scheme = scheme_of(uri)
        remedy = (
            f"pip install 'raycap[{EXTRAS[scheme]}]'" if scheme in EXTRAS else scrubbed(str(error))
        )
        raise FetchError(
            f"reading {scheme}:// needs a package that is missing: {remedy}"
        ) from error
    data: bytes = filesystem.cat_file(path, start=start, end=end)
    return data


def _explained(error: OSError, name: str) -> FetchError:
    if isinstance(error, FileNotFoundError) and Path(name).is_symlink():
        return FetchError(f"a link to a missing file: {name}")
    if isinstance(error, FileNotFoundError):
        return FetchError(f"no such file: {name}")
    if isinstance(error, IsADirectoryError):
        return FetchError(f"a directory, not a file: {name}")
    if isinstance(error, PermissionError):
        return FetchError(f"no permission to read: {name}")
    return FetchError(f"{error.strerror or scrubbed(str(error)) or type(error).__name__}: {name}")
