"""A folder of pictures, local or in a bucket, or one picture: each file is a row."""

import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.listing import walk
from raycap.sources.notes import LINK, Notes, nothing
from raycap.sources.rows import Row, tables
from raycap.storage.location import PICTURE_ENDINGS, PICTURE_NAME, existing, locate
from raycap.uris import uri_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Folder:
    """Every picture in a folder and the folders below it, in a bucket alike; or one picture.

    The key is the path below the folder. Where a file's name is not UTF-8, the key is './' and that path with its
    odd bytes percent-encoded ('./caf%E9.jpg'): no other key begins so. Hidden files and links to folders are left
    out; a link to a file is followed unless it leads out of the folder. What has the name of a picture and is no
    file (a link that leads out or nowhere, a pipe, a directory named x.jpg) is a row that fails with its reason.
    """

    path: str
    """The folder, or one picture: a path or any fsspec URI (s3://, gs://, memory://, ...)."""
    glob: str = ""
    """Take files of these names only, in any case: '*.png' at any depth, 'holiday/**/*.jpg' below the folder, '*'
    for every file whatever its ending. Empty: the usual endings of pictures."""

    def __post_init__(self) -> None:
        if self.glob.startswith("/"):
            raise UserError(
                f"the glob {self.glob!r} begins with '/': it is matched below the folder, so leave that out"
            )
        pattern_of(self.glob)

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
        if (
            place.filesystem is None
            and place.is_folder()
            and not os.access(place.path, os.R_OK | os.X_OK)
        ):
            raise UserError(
                f"may not list the folder {place.uri}: give yourself the right to read it"
            )

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes, other_files = notes or Notes(), Counter[str]()
        return tables(
            self._rows(notes, other_files), lambda: nothing(self._nothing(other_files), notes)
        )

    def _rows(self, notes: Notes, other_files: Counter[str]) -> Iterator[Row]:
        place = existing(self.path)
        if place.is_file():
            yield Row(key_of(place.name), place.uri)
            return
        wanted = pattern_of(self.glob)
        local_root = f"{place.path.rstrip('/')}/" if place.filesystem is None else ""
        for found in walk(place, notes):
            # '*' means files: a folder counts as a picture that cannot be read only where its name says picture.
            if wanted.fullmatch(found.path) and (
                not found.is_folder or PICTURE_NAME.fullmatch(found.path)
            ):
                uri = (
                    uri_of(local_root + found.path) if local_root else f"{place.uri}/{found.path}"
                )
                yield Row(key_of(found.path), uri, error=found.error and f"{found.error}: {uri}")
            elif found.error:
                if found.is_link:
                    notes.add(LINK, (place / found.path).uri)
            elif len(other_files) < 1000:
                other_files[PurePosixPath(found.path).suffix.lower() or "no ending"] += 1

    def _nothing(self, other_files: Counter[str]) -> str:
        wanted = f"named {self.glob}" if self.glob else f"that ends in {' '.join(PICTURE_ENDINGS)}"
        others = ", ".join(
            f"{count} with {ending}" for ending, count in other_files.most_common(3)
        )
        seen = (
            f"; other files are there: {others} (--source.glob '*' takes every file)"
            if others
            else "; it is empty"
        )
        return f"no file {wanted} in {existing(self.path).uri} or below{seen}"


def key_of(relative: str) -> str:
    """The path below the root as a key; see `Folder` for names that are not UTF-8."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "./" + urllib.parse.quote_from_bytes(os.fsencode(relative))
    return relative


def pattern_of(glob: str) -> re.Pattern[str]:
    """What a relative path must look like to be wanted; `glob` as in `Folder.glob`."""
    if not glob:
        return PICTURE_NAME
    from fsspec.utils import glob_translate  # here, so that `raycap --help` stays quick

    try:
        return re.compile(glob_translate(glob if "/" in glob else f"**/{glob}"), re.IGNORECASE)
    except (ValueError, re.error) as error:
        raise UserError(
            f"the glob {glob!r} cannot be understood ({error}): '*.png' means any depth, 'holiday/**/*.jpg' below "
            "a folder"
        ) from error
