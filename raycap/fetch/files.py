"""Reads the picture at a path or fsspec URI, or raises FetchError with the reason."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from raycap.errors import UserError
from raycap.fetch.errors import FetchError, scrubbed, too_large, too_late
from raycap.fetch.options import Fetch
from raycap.fetch.timeouts import call_with_timeout
from raycap.storage.filesystem import filesystem_of, open_local
from raycap.uris import local_path

# Asks for memory of so many bytes in all; returns the seconds that this waited.
GrowTo = Callable[[int], float]
# Bytes of an object that are requested at first: most pictures are smaller.
_FIRST_PIECE = 2 * 2**20


def read(uri: str, options: Fetch, seconds: float, grow_to: GrowTo | None = None) -> bytes:
    """Returns all bytes of a file or object; raises FetchError.

    `grow_to` is called before memory is taken, and may wait. `seconds` limits the requests to a
    store; the system's calls for local files take no deadline.
    """
    path = local_path(uri)
    try:
        if path is not None:
            data = _read_local(path, options.max_bytes)
        else:
            data = _read_object(uri, options.max_bytes, seconds, grow_to)
    except TimeoutError as error:
        raise too_late(options.deadline) from error
    except UserError as error:
        raise FetchError(scrubbed(str(error))) from error
    except OSError as error:
        raise _explained(error, path if path is not None else scrubbed(uri)) from error
    if len(data) > options.max_bytes:
        raise too_large(options.max_bytes)
    if not data:
        raise FetchError("an empty file")
    return data


def _read_local(path: str, max_bytes: int) -> bytes:
    with open_local(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise too_large(max_bytes)
        return file.read(size + 1)  # one more, to see that the file grew beyond the limit


def _read_object(uri: str, max_bytes: int, seconds: float, grow_to: GrowTo | None) -> bytes:
    """Small objects take one request. For larger ones, memory of their size is asked for first."""

    def read_piece(start: int, stop: int) -> bytes:
        filesystem, path = filesystem_of(uri)
        data: bytes = filesystem.cat_file(path, start=start, end=stop)
        return data

    def size_of() -> int:
        filesystem, path = filesystem_of(uri)
        return int(filesystem.size(path))

    if grow_to is None:
        return call_with_timeout(seconds, lambda: read_piece(0, max_bytes + 1))
    end = time.monotonic() + seconds
    first = min(_FIRST_PIECE, max_bytes + 1)
    end += grow_to(first)
    data = call_with_timeout(end - time.monotonic(), lambda: read_piece(0, first))
    if len(data) < first:
        return data
    size = call_with_timeout(end - time.monotonic(), size_of)
    if size > max_bytes:
        raise too_large(max_bytes)
    if size <= first:
        return data
    end += grow_to(size)
    return data + call_with_timeout(end - time.monotonic(), lambda: read_piece(first, size))


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
