"""Reads tars and parts of them: on this machine, in stores and on web servers."""

import contextlib
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from raycap.errors import UserError
from raycap.fetch.errors import FetchError, scrubbed
from raycap.fetch.options import Fetch
from raycap.storage.location import locate
from raycap.storage.retry import with_retries
from raycap.uris import is_web

# Bytes that one request asks for while a tar is listed.
_PART = 4 << 20
# Pictures that lie so near in a tar are read together, up to that many bytes.
_NEAR, _TOGETHER = 1 << 18, 32 << 20


class Unreadable(Exception):
    """Why a tar cannot be read, or not further."""


class Wanted(NamedTuple):
    """A picture to be read from a tar."""

    offset: int
    size: int
    row: int
    sha256: str


@contextlib.contextmanager
def opened(uri: str, allow_private: bool, buffered: bool = True) -> Iterator[IO[bytes]]:
    """Opens a tar; whatever goes wrong while it is read raises Unreadable."""
    try:
        if _is_remote(uri):
            try:
                parts = _Parts(*_parts_of(uri, allow_private))
            except Exception as error:  # every kind of store has errors of its own
                raise Unreadable(_reason(error)) from error
            yield io.BufferedReader(parts, _PART) if buffered else parts  # type: ignore[misc]
        else:
            with locate(uri).open() as file:
                yield file
    except (UserError, OSError) as error:
        raise Unreadable(_reason(error)) from error


def _parts_of(uri: str, allow_private: bool) -> "tuple[Callable[[int, int], bytes], int]":
    """What reads parts of a file elsewhere, and the file's size."""
    if is_web(uri):
        client = _client(allow_private)
        size = client.read(uri, 0, 1)[1]

        def part_of_url(start: int, stop: int) -> bytes:
            data: bytes
            data, whole = client.read(uri, start, stop)
            if whole != size:
                raise FetchError("the file has changed while it was read")
            return data

        return part_of_url, size
    location = locate(uri)
    store, path = location.filesystem, location.path

    def part(start: int, stop: int) -> bytes:
        data: bytes = store.cat_file(path, start=start, end=stop)
        return data

    return (
        lambda start, stop: with_retries(lambda: part(start, stop), f"read {uri}"),
        int(with_retries(lambda: store.info(path), f"read {uri}")["size"]),
    )


class _Parts(io.RawIOBase):
    """A file that is read part by part, each with a request of its own."""

    def __init__(self, read_part: "Callable[[int, int], bytes]", size: int) -> None:
        self._read_part, self._size, self._position = read_part, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        try:
            data = self._read_part(self._position, stop)
        except Exception as error:
            raise Unreadable(_reason(error)) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _reason(error: Exception) -> str:
    if isinstance(error, FetchError):
        # Options of --fetch have no effect on tars.
        reason = re.sub(r" \(--fetch\.(?!allow-private)[^)]*\)", "", error.reason)
        return reason.replace("--fetch.", "--source.")
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return scrubbed(str(getattr(error, "strerror", None) or error)) or type(error).__name__


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """All of the bytes; the tar has changed if it has fewer."""
    data = stream.read(size) if size else b""
    if len(data) < size:
        raise Unreadable("the file has changed while it was read")
    return data


def _near(wanted: list[Wanted], is_local: bool) -> Iterator[list[Wanted]]:
    """Pictures that are read together; of a local file each alone."""
    group: list[Wanted] = []
    end = 0
    for each in wanted:
        is_far = each.offset - end > _NEAR
        if group and (is_local or is_far or each.offset + each.size - group[0].offset > _TOGETHER):
            yield group
            group = []
        group.append(each)
        end = max(end, each.offset + each.size)
    if group:
        yield group


def _is_remote(uri: str) -> bool:
    return is_web(uri) or locate(uri).filesystem is not None


def read_pictures(
    uri: str, allow_private: bool, wanted: Iterable[Wanted]
) -> Iterator[tuple[int, bytes]]:
    """Yields the bytes of those pictures of one tar that are still there, with their rows.
    Other parts of the tar are not read."""
    with contextlib.suppress(Unreadable), opened(uri, allow_private, buffered=False) as stream:
        for group in _near(sorted(wanted), is_local=not _is_remote(uri)):
            start = group[0].offset
            stream.seek(start)
            part = stream.read(max(each.offset + each.size for each in group) - start)
            for each in group:
                data = part[each.offset - start :][: each.size]
                if hashlib.sha256(data).hexdigest() == each.sha256:
                    yield each.row, data


@functools.cache
def _client(allow_private: bool) -> Any:
    """One for each process, so that connections outlive a task."""
    from raycap.fetch.parts import PartClient  # urllib3 takes 50 ms

    return PartClient(Fetch(allow_private=allow_private, deadline=120.0))
