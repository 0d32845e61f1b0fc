"""What a string names: a local path, a web address, or a place that fsspec opens; the same rules everywhere.

Only the beginning of a string can be a scheme. So `d/file:b.jpg`, `a::b.jpg` and `./http://x` are paths, and taken
as they are. fsspec's own parser only sees chains (`simplecache::s3://...`): it splits `a::b.jpg` in two.
"""

import errno
import os
import re
import stat
import urllib.parse
from typing import Any

WEB = ("http", "https")
LOCAL = ("", "file", "local")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oci", "oss")
# The extras of raycap that bring the package for a scheme.
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
}
# Filesystems of fsspec that read through a second URI. In all other URIs '::' is a part of the name.
WRAPPERS = frozenset(
    ("asyncwrapper", "blockcache", "cached", "dask", "dir", "filecache", "generic", "libarchive")
)
WRAPPERS |= {"reference", "simplecache", "tar", "zip"}

_WORD = "[A-Za-z][A-Za-z0-9+.-]+"  # two letters or more: C://pictures is a path
_SCHEME = re.compile(rf"({_WORD})(?:(?:::{_WORD})*::{_WORD})?://|(file|local):/", re.IGNORECASE)
_DATA = re.compile(r"data:[\w.+-]*(/[\w.+-]+)?(;[^,]*)?,", re.IGNORECASE)
_FILE = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_BARE = re.compile(_WORD)


def scheme_of(text: str) -> str:
    """The scheme in lower case, "" for a local path. Of a chain it is the first one."""
    if found := _SCHEME.match(text):
        return (found[1] or found[2]).lower()
    return "data" if _DATA.match(text) else ""


def has_scheme(text: str) -> bool:
    """Whether it is a URI or URL rather than a path."""
    return scheme_of(text) != ""


def is_web(text: str) -> bool:
    """Whether it is an http(s) URL."""
    return scheme_of(text) in WEB


def is_local(text: str) -> bool:
    """Whether it is a path or a file: URI."""
    return scheme_of(text) in LOCAL


def local_path(uri: str) -> str | None:
    """The path that a plain path or a file: URI names; None for every other kind of URI.

    Percent signs of a file: URI are decoded. A URI that somebody wrote without encoding is understood too: where
    only a file of the undecoded name exists, that one is meant.
    """
    scheme = scheme_of(uri)
    if not scheme:
        return uri
    if scheme not in LOCAL:
        return None
    path = _FILE.sub("", uri, count=1)  # the match is at the start, see scheme_of
    if "%" not in path:
        return path
    try:
        decoded = os.fsdecode(
            urllib.parse.unquote_to_bytes(os.fsencode(path))
        )  # names need not be UTF-8
    except UnicodeEncodeError:
        return path
    return path if os.path.lexists(path) and not os.path.lexists(decoded) else decoded


def uri_of(path: str) -> str:
    """A local path as tables can hold it: the path itself or, where its bytes are not UTF-8, a file:// URI with
    these bytes percent-encoded. `local_path` turns it back."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote_from_bytes(os.fsencode(path))
    return path


def links_of(uri: str) -> list[str]:
    """The links of a chain: simplecache:// and s3://b/x of simplecache::s3://b/x. All else is one link."""
    if scheme_of(uri) not in WRAPPERS:
        return [uri]
    links = [link for link in uri.split("::") if link]
    return [f"{link}://" if _BARE.fullmatch(link) else link for link in links]


def name_of(uri: str) -> str:
    """The last step: the name of a file. Only http(s) URLs have a query and a fragment, which are no part of it."""
    if is_web(uri):
        try:
            return urllib.parse.unquote(urllib.parse.urlsplit(uri).path).rpartition("/")[2]
        except ValueError:  # http://[
            return ""
    return (local_path(uri) or uri).rstrip("/").rpartition("/")[2]


def filesystem_of(uri: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URI or path, and how that filesystem names it.

    Local paths become absolute, so that fsspec removes nothing from them. ImportError or ValueError: the scheme is
    unknown, or its package is missing.
    """
    import fsspec  # 50 ms, which local files and URLs never pay

    path = local_path(uri)
    if path is not None:
        absolute = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - names need not be UTF-8
        return fsspec.filesystem("file"), absolute
    scheme = scheme_of(uri)
    if scheme in WRAPPERS:
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, path
    uri = scheme + uri[len(scheme) :]
    kind = fsspec.get_filesystem_class(scheme)
    return kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)


def read_regular(
    uri: str, most: int, start: int = 0, length: int | None = None, inside: str = ""
) -> bytes:
    """The bytes of a regular file or object, or `length` of them from `start` on; OSError where that cannot be.

    Nothing waits (a pipe without a writer) and nothing is endless (a device). A file of more than `most` bytes is
    refused, and so is a local file outside of the folder `inside` after all links are followed.
    """
    end = most + 1 if length is None else start + length
    path = local_path(uri)
    if path is None:
        filesystem, path = filesystem_of(uri)
        data: bytes = filesystem.cat_file(path, start=start, end=end)
    else:
        path = os.path.expanduser(path)  # noqa: PTH111 - names need not be UTF-8
        folder = local_path(inside) if inside else None
        if folder is not None:
            real = os.path.realpath(os.path.expanduser(folder))  # noqa: PTH111
            if not f"{os.path.realpath(path)}/".startswith(f"{real.rstrip('/')}/"):
                raise OSError(errno.EPERM, "a link that leads out of its folder")
        with open(path, "rb", opener=_open_at_once) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if facts.st_size > most:
                raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
            file.seek(start)
            data = file.read(min(end, facts.st_size + 1) - start)
    if length is None and start + len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
    return data


def _open_at_once(name: str, flags: int) -> int:
    """Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever."""
    return os.open(name, flags | os.O_NONBLOCK)
