"""A folder of pictures, local or in a bucket, or one picture: each file is a row."""

import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from raycap.fetch.trust import Trust
from raycap.refusal import Refusal
from raycap.sources.listing import Oddities, walk
from raycap.sources.place import PICTURE_ENDINGS, PICTURE_NAME, Place, existing, locate
from raycap.sources.rows import Row, tables
from raycap.uris import uri_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Folder:
    """Every picture in a folder and the folders below it, in a bucket alike; or one picture.

    The key is the path below the folder. Where a file's name is not UTF-8, the key is './' and that path with its
    odd bytes percent-encoded ('./caf%E9.jpg'): no other key begins so. Hidden files and links to folders are left
    out; a link to a file is followed unless it leads out of the folder.
    """

    path: str
    """The folder, or one picture: a path or any fsspec URI (s3://, gs://, memory://, ...)."""
    glob: str = ""
    """Take files of these names only, in any case: '*.png' at any depth, 'holiday/**/*.jpg' below the folder, '*'
    for every file whatever its ending. Empty: the usual endings of pictures."""

    def __post_init__(self) -> None:
        if self.glob.startswith("/"):
            raise Refusal(
                f"the glob {self.glob!r} begins with '/': it is matched below the folder, so leave that out"
            )

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.path).uri)

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        place = existing(self.path)
        if place.filesystem is None and place.is_folder() and not os.access(place.path, os.R_OK | os.X_OK):
            raise Refusal(f"may not list the folder {place.uri}: give yourself the right to read it")

    def tables(self) -> "Iterator[pa.Table]":
        left_out: Counter[str] = Counter()
        return tables(self._rows(left_out), lambda: self._nothing(left_out))

    def notes(self) -> Sequence[str]:
        """From a second walk where the folder is local: about a second for a million files."""
        place = existing(self.path)
        if place.filesystem is not None or not place.is_folder():
            return ()
        odd = Oddities()
        for _ in walk(place, odd):
            pass
        return [
            *odd.links.note(
                "link left out: it leads to a folder, nowhere or out of the root",
                "links left out: they lead to folders, nowhere or out of the root",
            ),
            *odd.locked.note("folder could not be listed", "folders could not be listed"),
        ]

    def _rows(self, left_out: Counter[str]) -> Iterator[Row]:
        place = existing(self.path)
        if place.is_file():
            yield Row(key_of(place.name), place.uri)
            return
        wanted = pattern_of(self.glob)
        for relative in walk(place, Oddities()):
            if wanted.fullmatch(relative):
                yield Row(key_of(relative), _uri(place, relative))
            elif len(left_out) < 1000:
                left_out[PurePosixPath(relative).suffix.lower() or "no ending"] += 1

    def _nothing(self, left_out: Counter[str]) -> str:
        wanted = f"named {self.glob}" if self.glob else f"that ends in {' '.join(PICTURE_ENDINGS)}"
        others = ", ".join(f"{count} with {ending}" for ending, count in left_out.most_common(3))
        seen = (
            f"; other files are there: {others} (--source.glob '*' takes every file)" if others else "; it is empty"
        )
        return f"no file {wanted} in {existing(self.path).uri} or below{seen}"


def key_of(relative: str) -> str:
    """The path below the root as a key; see `Folder` for names that are not UTF-8."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "./" + urllib.parse.quote_from_bytes(os.fsencode(relative))
    return relative


def _uri(root: Place, relative: str) -> str:
    return uri_of(f"{root.path.rstrip('/')}/{relative}") if root.filesystem is None else f"{root.uri}/{relative}"


def pattern_of(glob: str) -> re.Pattern[str]:
    """What a relative path must look like to be wanted; `glob` as in `Folder.glob`."""
    if not glob:
        return PICTURE_NAME
    from fsspec.utils import glob_translate  # here, so that `raycap --help` stays quick

    return re.compile(glob_translate(glob if "/" in glob else f"**/{glob}"), re.IGNORECASE)
