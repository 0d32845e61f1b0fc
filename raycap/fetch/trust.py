"""Which places a row may name. That depends on who gave the string: the user, or a file that somebody else may have
written."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from raycap.errors import UserError
from raycap.fetch.errors import FetchError
from raycap.uris import LOCAL, STORES, WEB, WRAPPERS, links_of, local_path, scheme_of

_REMEDY = "--fetch.trust"


@dataclass(frozen=True)
class Trust:
    """The places that the rows of one source may name. It travels to the workers.

    http(s) URLs need no trust: the address that is connected to is checked when it is connected to. Everything else
    has to lie below one of the prefixes: local folders (after all links are followed), or URIs such as s3://bucket.
    Of a chain such as simplecache::s3://bucket/x each link has to.
    """

    prefixes: tuple[str, ...] = ()
    anything: bool = False
    """For strings that the user gave: they are opened whatever they name."""

    @classmethod
    def below(cls, *roots: str) -> "Trust":
        """What lies below these folders; of an object store, all of its bucket."""
        return cls(tuple(_bucket(root) for root in roots if root and scheme_of(root) not in WEB))

    def also(self, *others: "Trust") -> "Trust":
        """What this one or one of the others permits."""
        prefixes = dict.fromkeys(prefix for trust in (self, *others) for prefix in trust.prefixes)
        return Trust(tuple(prefixes), any(trust.anything for trust in (self, *others)))

    def check(self, uri: str) -> None:
        """Raise FetchError where the URI is not permitted, or is no place to fetch from."""
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
                raise FetchError(_refusal(link, len(links) > 1))


ONLY_WEB = Trust()
ANYTHING = Trust(anything=True)
# For a program that calls raycap: its strings often come from data. Paths, stores and http(s), but nothing that
# wraps another URI or reaches other machines by other roads (ftp, ssh, webhdfs, ...).
PROGRAM = Trust(("/", *(f"{scheme}://" for scheme in STORES)))


def of_prefixes(prefixes: Iterable[str], name: str) -> Trust:
    """The trust that a user grants with these prefixes; `name` is what a refusal calls them."""
    prefixes = tuple(prefixes)
    for prefix in prefixes:
        for link in links_of(prefix) or [prefix]:
            if scheme_of(link) == "" and not link.startswith("/"):
                raise UserError(
                    f"{name} is {prefix!r}: give an absolute path such as /data/pictures, or the beginning of a "
                    "URI such as s3://bucket"
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
    # Stores do not resolve '..', but what stands before one may.
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


def _refusal(link: str, in_a_chain: bool) -> str:
    scheme = scheme_of(link)[:20]
    if in_a_chain:
        return f"refused: a chain of protocols, and {scheme}:// is not trusted ({_REMEDY} for each link permits it)"
    if scheme in STORES:
        bucket = _bucket(link)[:100]
        return f"refused: {bucket} is not where this source is ({_REMEDY} {bucket} permits it)"
    return f"refused: the scheme {scheme} ({_REMEDY} {scheme}://... permits it)"
