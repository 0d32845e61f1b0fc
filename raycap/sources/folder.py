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
from raycap.sources.lines import name_unpacked
from raycap.sources.listing import top_folders, walk
from raycap.sources.manifest import Row, tables
from raycap.sources.notes import LINK, Notes, nothing
from raycap.sources.source import SourceDefaults
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

PICTURE_ENDINGS = (
    *(".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".avif", ".heic", ".heif", ".hif"),
    *(".apng", ".bmp", ".dib", ".gif", ".png", ".tif", ".tiff", ".webp"),
)
# A folder with more entries is listed as a whole: opening it up would take as long.
MOST_TOP_ENTRIES = 1000
PICTURE_NAME = re.compile(
    f".*({'|'.join(map(re.escape, PICTURE_ENDINGS))})", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class Folder(SourceDefaults):
    """Every picture in a folder and the folders below it, in a bucket too; or one picture.

    The key is the path below the folder. If a file's name is not UTF-8, the key is './' and that
    path with its odd bytes percent-encoded ('./caf%E9.jpg'): no other key begins so. Hidden files
    and links to folders are left out; a link to a file is followed unless it leads out of the
    folder. What has the name of a picture and is no file (a link that leads out or nowhere, a
    pipe, a directory named x.jpg) is a row that fails with its reason.
    """

    path: str
    """The folder, or one picture: a path or any fsspec URI (s3://, gs://, memory://, ...)."""
    glob: str = ""
    """Take files of these names only, in any case: '*.png' at any depth, 'holiday/**/*.jpg' below
    the folder, '*' for every file whatever its ending. Empty: the usual endings of pictures."""

    @classmethod
    def recognises(cls, file: Location) -> bool:
        return bool(PICTURE_NAME.fullmatch(name_unpacked(file.name)))

    def __post_init__(self) -> None:
        if self.glob.startswith("/"):
            raise UserError(
                f"the glob {self.glob!r} begins with '/': it is matched below the folder, "
                "so leave that out"
            )
        pattern_of(self.glob)

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.path).uri)

    def check(self) -> None:
        folder = existing(self.path)
        is_local_folder = folder.filesystem is None and folder.is_folder()
        if is_local_folder and not os.access(folder.path, os.R_OK | os.X_OK):
            raise UserError(
                f"may not list the folder {folder.uri}: give yourself the right to read it"
            )

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes, other_files = notes or Notes(), Counter[str]()
        found = self._rows(notes, other_files)
        return tables(found, lambda: nothing(self._nothing(other_files), notes))

    def units(self) -> tuple[str, ...]:
        """What lies in the folder itself, and each folder below it."""
        root = existing(self.path)
        folders = top_folders(root, MOST_TOP_ENTRIES) if root.is_folder() else []
        return ("", *folders) if len(folders) > 1 else ("",)

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        return tables(self._rows(notes, Counter(), unit, deep=bool(unit)), None)

    def _rows(
        self, notes: Notes, other_files: Counter[str], below: str = "", deep: bool = True
    ) -> Iterator[Row]:
        root = existing(self.path)
        if root.is_file():
            yield Row(key_of(root.name), root.uri)
            return
        wanted = pattern_of(self.glob)
        for found in walk(root, notes, below, deep):
            # '*' means files: a folder is a row that fails only if it has the name of a picture.
            is_wanted = wanted.fullmatch(found.path) is not None
            if found.is_folder and not PICTURE_NAME.fullmatch(found.path):
                is_wanted = False
            if is_wanted:
                uri = (root / found.path).uri
                yield Row(key_of(found.path), uri, error=found.error and f"{found.error}: {uri}")
            elif found.error:
                if found.is_link:
                    notes.add(LINK, (root / found.path).uri)
            elif len(other_files) < 1000:
                other_files[PurePosixPath(found.path).suffix.lower() or "no ending"] += 1

    def _nothing(self, other_files: Counter[str]) -> str:
        wanted = f"named {self.glob}" if self.glob else f"that ends in {' '.join(PICTURE_ENDINGS)}"
        present = "it is empty"
        if other_files:
            endings = [f"{count} with {ending}" for ending, count in other_files.most_common(3)]
            present = (
                f"other files are there: {', '.join(endings)} (--source.glob '*' takes every file)"
            )
        return f"no file {wanted} in {existing(self.path).uri} or below; {present}"


def key_of(relative: str) -> str:
    """Returns the key of a path below the root; see `Folder` for names that are not UTF-8."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "./" + urllib.parse.quote_from_bytes(os.fsencode(relative))
    return relative


def pattern_of(glob: str) -> re.Pattern[str]:
    """Returns the pattern of relative paths that `Folder.glob` takes."""
    if not glob:
        return PICTURE_NAME
    from fsspec.utils import glob_translate  # here, so that `raycap --help` stays quick

    try:
        return re.compile(glob_translate(glob if "/" in glob else f"**/{glob}"), re.IGNORECASE)
    except (ValueError, re.error) as error:
        raise UserError(
            f"the glob {glob!r} cannot be understood ({error}): '*.png' means any depth, "
            "'holiday/**/*.jpg' below a folder"
        ) from error
