"""Decides which files and stores a row may name.

A URI that the user typed may name anything. A list or table may come from somebody else: its rows
may name what lies in its own folder or bucket, and what --fetch.trust adds.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from raycap.errors import UserError
from raycap.fetch.errors import FetchError
from raycap.uris import LOCAL, STORES, WEB, WRAPPERS, links_of, local_path, scheme_of

_REMEDY = "--fetch.trust"


@dataclass(frozen=True)
class Trust:
    """What the rows of one source may name; it is sent to the workers.

    http(s) URLs need no trust: their address is checked when a connection is opened. Everything
    else must lie below one of the prefixes: local folders (after all links are followed), or URIs
    such as s3://bucket. Of a chain such as simplecache::s3://bucket/x each link must.
    """

    prefixes: tuple[str, ...] = ()
    anything: bool = False
    """For URIs that the user typed."""

    @classmethod
    def below(cls, *roots: str) -> "Trust":
        """Trusts what lies below these folders; of an object store, the whole bucket."""
        return cls(tuple(_bucket(root) for root in roots if root and scheme_of(root) not in WEB))

    def also(self, *others: "Trust") -> "Trust":
        """Returns the trust that permits what any of these permit."""
        prefixes = dict.fromkeys(prefix for trust in (self, *others) for prefix in trust.prefixes)
        return Trust(tuple(prefixes), any(trust.anything for trust in (self, *others)))

    def check(self, uri: str) -> None:
        """Raises FetchError if the URI is not permitted or nothing can be fetched from it."""
        if not uri or uri.isspace():
            raise FetchError("an empty URI")
        scheme = scheme_of(uri)
        if scheme == "data":
            raise FetchError("refused: a data: URI (pictures inside URIs are not read)")
        if self.anything or scheme in WEB:
            return
        trusted = [link for prefix in self.prefixes for link in links_of(prefix)]
        links = links_of(uri)
        for link in links:
            if scheme_of(link) in LOCAL:
                _check_local(link, [prefix for prefix in trusted if scheme_of(prefix) in LOCAL])
            elif not any(_is_below(link, prefix) for prefix in trusted):
                raise FetchError(_reason(link, len(links) > 1))


ONLY_WEB = Trust()
ANYTHING = Trust(anything=True)
# For programs that call raycap, whose strings often come from data: paths, stores and http(s), but
# no chains and no other protocols (ftp, ssh, webhdfs, ...).
PROGRAM = Trust(("/", *(f"{scheme}://" for scheme in STORES)))


def of_prefixes(prefixes: Iterable[str], name: str) -> Trust:
    """The trust in these prefixes, which a user gave; `name` is the option's name."""
    prefixes = tuple(prefixes)
    for prefix in prefixes:
        for link in links_of(prefix) or [prefix]:
            if scheme_of(link) == "" and not link.startswith("/"):
                raise UserError(
                    f"{name} is {prefix!r}: give an absolute path such as /data/pictures, "
                    "or the beginning of a URI such as s3://bucket"
                )
    return Trust(prefixes)


def _bucket(root: str) -> str:
    """s3://bucket for s3://bucket/folder; hf://datasets/OWNER/NAME; other roots as they are."""
    scheme, colon, rest = root.partition("://")
    if scheme_of(root) in (*LOCAL, *WRAPPERS):
        return root
    steps = rest.split("/")[: 3 if scheme.lower() == "hf" else 1]
    return scheme + colon + "/".join(steps)


def _is_below(link: str, prefix: str) -> bool:
    scheme = scheme_of(prefix)
    if scheme != scheme_of(link):
        return False
    below, above = link[len(scheme) :], prefix[len(scheme) :].rstrip("/")
    if above == ":":  # s3://, every bucket
        return True
    # Stores do not resolve '..', but a proxy before one may.
    return ".." not in below.split("/") and (
        below.rstrip("/") == above or below.startswith(f"{above}/")
    )


def _check_local(link: str, prefixes: list[str]) -> None:
    path = local_path(link) or ""
    folders = [local_path(prefix) or "/" for prefix in prefixes]
    if "/" in folders:
        return
    if not path.startswith("/"):
        raise FetchError(
            "refused: a relative path (--source.local takes the paths of a list from its folder)"
        )
    try:
        real = os.path.realpath(path)
    except ValueError as error:
        raise FetchError("refused: a path with a null byte") from error
    if any(_is_inside(real, os.path.realpath(folder)) for folder in folders):
        return
    if any(_is_inside(os.path.normpath(path), folder) for folder in folders):
        raise FetchError(
            f"refused: a link that leads out of the source's folder ({_REMEDY} FOLDER permits it)"
        )
    raise FetchError(
        f"refused: a local path outside of the source's folder ({_REMEDY} FOLDER permits it)"
    )


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _reason(link: str, in_a_chain: bool) -> str:
    scheme = scheme_of(link)[:20]
    if in_a_chain:
        return (
            f"refused: a chain of protocols, and {scheme}:// is not trusted "
            f"({_REMEDY} for each link permits it)"
        )
    if scheme in STORES:
        bucket = _bucket(link)[:100]
        return f"refused: {bucket} is not where this source is ({_REMEDY} {bucket} permits it)"
    return f"refused: the scheme {scheme} ({_REMEDY} {scheme}://... permits it)"
