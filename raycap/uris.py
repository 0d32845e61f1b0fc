"""Tells what a string names: a local path, an http(s) URL, or a URI that fsspec opens.

Only the beginning of a string can be a scheme. So `d/file:b.jpg`, `a::b.jpg` and `./http://x` are
paths. fsspec's own parser reads `a::b.jpg` as a chain of protocols and splits it in two.
"""

import os
import re
import urllib.parse

WEB = ("http", "https")
LOCAL = ("", "file", "local")
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oci", "oss")
# Filesystems of fsspec that read through a second URI. Elsewhere '::' is a part of the name.
WRAPPERS = frozenset(
    ("asyncwrapper", "blockcache", "cached", "dask", "dir", "filecache", "generic", "libarchive")
)
WRAPPERS |= {"reference", "simplecache", "tar", "zip"}
# Of those, where the first link names the file.
ARCHIVES = ("tar", "zip")

_WORD = "[A-Za-z][A-Za-z0-9+.-]+"  # two letters or more: C://pictures is a path
_SCHEME = re.compile(rf"({_WORD})(?:(?:::{_WORD})*::{_WORD})?://|(file|local):/", re.IGNORECASE)
_DATA = re.compile(r"data:[\w.+-]*(/[\w.+-]+)?(;[^,]*)?,", re.IGNORECASE)
_FILE = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_BARE = re.compile(_WORD)


def scheme_of(text: str) -> str:
    """Returns the scheme in lower case, "" for a local path. Of a chain it is the first one."""
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
    """Returns the path that a plain path or a file: URI names; None for every other kind of URI.

    Percent signs of a file: URI are decoded, unless only a file of the undecoded name exists.
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
        # Names need not be UTF-8.
        decoded = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(path)))
    except UnicodeEncodeError:
        return path
    return path if os.path.lexists(path) and not os.path.lexists(decoded) else decoded


def uri_of(path: str) -> str:
    """Returns a local path as a table can hold it; `local_path` reverses this.

    It is the path itself or, if its bytes are not UTF-8, a percent-encoded file:// URI.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote_from_bytes(os.fsencode(path))
    return path


def links_of(uri: str) -> list[str]:
    """Returns the links of a chain, which are simplecache:// and s3://b/x of simplecache::s3://b/x.

    A URI that is no chain is one link.
    """
    if scheme_of(uri) not in WRAPPERS:
        return [uri]
    links = [link for link in uri.split("::") if link]
    return [f"{link}://" if _BARE.fullmatch(link) else link for link in links]


def name_of(uri: str) -> str:
    """Returns the file name: the last step, of an http(s) URL without query and fragment, of
    tar://a/b.jpg::c.tar that in the archive."""
    if is_web(uri):
        try:
            return urllib.parse.unquote(urllib.parse.urlsplit(uri).path).rpartition("/")[2]
        except ValueError:  # http://[
            return ""
    if scheme_of(uri) in ARCHIVES:
        uri = links_of(uri)[0]
    return (local_path(uri) or uri).rstrip("/").rpartition("/")[2]
