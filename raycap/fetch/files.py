"""Local files and object stores: a path or fsspec URI to bytes, or what went wrong."""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from raycap.fetch.aside import within
from raycap.fetch.fault import FetchError, scrubbed, too_large, too_late
from raycap.fetch.options import Fetch

WEB = ("http", "https")
# What a list of URLs, which may come from anyone, can name beside http(s). Never this machine's own files, nor the
# schemes that reach other machines by other roads (ftp, ssh, smb, github) or wrap a second URI (zip://...::file://...).
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oci", "oss")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}  # of raycap
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)(?:://|::)|(data|file|local):", re.IGNORECASE)
_FILE = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?", re.IGNORECASE)


def scheme_of(uri: str) -> str:
    """The scheme in lower case, "" for a local path."""
    match = _SCHEME.match(uri)
    scheme = (match[1] or match[2]).lower() if match else ""
    return "" if len(scheme) == 1 else scheme  # C://pictures is a path


def check_permitted(uri: str, trusted: bool, allow_file: bool) -> None:
    """Raise FetchError for a URI that is no place to fetch from, or not for a list that anyone may have written."""
    if not uri or uri.isspace():
        raise FetchError("an empty URI")
    scheme = scheme_of(uri)
    if scheme == "data":
        raise FetchError("refused: a data: URI (pictures inside URIs are not read)")
    if trusted or scheme in WEB or (scheme in _STORES and "::" not in uri):
        return
    if scheme not in ("", "file", "local"):
        raise FetchError(f"refused: a list of URLs may not use the scheme {scheme[:20]}")
    if not allow_file:
        raise FetchError("refused: a local path in a list of URLs (--fetch.allow-file permits it)")


def read(uri: str, options: Fetch, seconds: float) -> bytes:
    """All bytes of a file or object; raises FetchError.

    An object store is asked once, for at most one byte more than the cap: its size is never asked for first, which
    would double the requests. The system's calls for local files cannot be given a deadline.
    """
    local = scheme_of(uri) in ("", "file", "local")
    path = _local_path(uri) if local else uri
    try:
        if local:
            data = _read_local(path, options.max_bytes)
        else:
            data = within(seconds, lambda: _read_store(uri, options.max_bytes))
    except TimeoutError as error:
        raise too_late(options.deadline) from error
    except OSError as error:
        raise _explained(error, path if local else scrubbed(uri)) from error
    if len(data) > options.max_bytes:
        raise too_large(options.max_bytes)
    if not data:
        raise FetchError("an empty file")
    return data


def _local_path(uri: str) -> str:
    path = _FILE.sub("", uri, count=1)
    # file:///a%20b.jpg means "a b.jpg", unless there is a file of that very name.
    if path == uri or "%" not in path or os.path.lexists(path):
        return path
    return os.fsdecode(unquote_to_bytes(path))  # names need not be UTF-8


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
        return file.read(facts.st_size + 1)  # + 1: room to see that it grew beyond the cap meanwhile


def _read_store(uri: str, max_bytes: int) -> bytes:
    import fsspec  # 50 ms, which local files and URLs never pay

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        scheme = scheme_of(uri)
        remedy = f"pip install 'raycap[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else scrubbed(str(error))
        raise FetchError(f"reading {scheme}:// needs a package that is missing: {remedy}") from error
    data: bytes = filesystem.cat_file(path, start=0, end=max_bytes + 1)
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
