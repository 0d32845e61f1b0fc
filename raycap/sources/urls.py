"""A text file with one URL a line, or one URL."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.keys import NumberedKeys
from raycap.sources.lines import LONGEST_URL, Lines, LongLine, Span, name_unpacked
from raycap.sources.manifest import Row, batched, tables
from raycap.sources.notes import MALFORMED_LINE, Notes, nothing
from raycap.sources.pieces import Unit, cut_lines, tell_changes, unchanged, units_of_files
from raycap.sources.source import SourceDefaults, UnitKeys
from raycap.storage.location import Location, existing, locate
from raycap.uris import has_scheme, is_web

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".txt", ".list", ".lst", ".urls")
# If none of the first lines is a URL, the file is something else.
_LINES_TRIED = 20


@dataclass(frozen=True)
class Urls(SourceDefaults):
    """A list of URLs, one a line (blank lines and lines that begin with '#' are skipped); or one
    http(s) URL.

    The key is the URL; if it occurs again, its second row has '#2' behind the key, its third '#3'.
    """

    path: str
    """The list (plain, gzip, bzip2, xz or zstd; a path or any fsspec URI), or one picture's
    http(s) URL."""
    local: bool = False
    """The lines may also be paths, relative to the list's folder. Files that are not below that
    folder need --fetch.trust."""

    @classmethod
    def accepts(cls, path: str) -> bool:
        return is_web(path)

    @classmethod
    def recognises(cls, file: Location) -> bool:
        return name_unpacked(file.name).endswith(ENDINGS)

    @property
    def trust(self) -> Trust:
        return Trust() if is_web(self.path) else Trust.below(locate(self.path).parent.uri)

    @property
    def names_urls(self) -> bool:
        return not self.local

    def check(self) -> None:
        if is_web(self.path):
            return
        file = existing(self.path)
        if file.is_folder():
            raise UserError(
                f"{file.uri} is a folder: a list of URLs is a text file "
                "(for its pictures: --source folder)"
            )
        notes = Notes()
        tried = list(itertools.islice(self._urls(notes), _LINES_TRIED))
        if any("\0" in line for line in tried):
            raise UserError(f"{file.uri} is not a text file: a list has one URL a line")
        if not tried:
            raise UserError(self._nothing(notes))
        if not self.local and not any(map(has_scheme, tried)):
            raise UserError(
                f"the first lines of {file.uri} are no URLs (the first: {tried[0][:100]!r}); "
                "--source.local if they are paths of files of yours"
            )

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(self._rows(notes), lambda: self._nothing(notes))

    @property
    def unit_keys(self) -> UnitKeys:
        return "named"

    @property
    def key_word(self) -> str:
        return "URL"

    def units(self) -> tuple[str, ...]:
        return ("",) if is_web(self.path) else units_of_files([existing(self.path)], [cut_lines])

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        return tell_changes(units)

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        folder = locate(self.path).parent
        rows = (
            Row(url, resolved(url, folder) if self.local else url)
            for piece in unchanged(Unit.parse(unit).pieces, notes)
            for url in self._urls(notes, piece.part)
        )
        return tables(rows, None)

    def _rows(self, notes: Notes) -> Iterator[Row]:
        keys = NumberedKeys()
        folder = locate(self.path).parent
        for urls in batched(self._urls(notes)):
            for key, url in zip(keys.of(urls), urls, strict=True):
                yield Row(key, resolved(url, folder) if self.local else url)
        keys.note_repeats(self.key_word, notes)

    def _urls(self, notes: Notes, span: Span | None = None) -> Iterator[str]:
        if is_web(self.path):
            yield self.path
            return
        file = existing(self.path)
        lines = Lines(file, LONGEST_URL, span)
        for line in lines.or_faults():
            if isinstance(line, LongLine):
                notes.add_line(MALFORMED_LINE, file.name, line.number, line.reason)
                continue
            url = line.strip()
            if url and not url.startswith("#"):
                yield url
        notes.lines_read = lines.number

    def _nothing(self, notes: Notes) -> str:
        return nothing(f"no URL in {self.path}: a list has one a line", notes)


def resolved(uri: str, folder: Location) -> str:
    """Returns a row's URI; a relative path is taken from the folder of the list that names it."""
    if not uri or uri.startswith("/") or has_scheme(uri):
        return uri
    return (folder / re.sub(r"^(\./)+", "", uri)).uri
