"""A text file with one URL a line, or one URL."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.keys import NumberedKeys
from raycap.sources.lines import LONGEST_URL, Lines, LongLine
from raycap.sources.notes import MALFORMED_LINE, Notes, nothing
from raycap.sources.rows import Row, counted, pieces, tables
from raycap.storage.location import existing, locate
from raycap.uris import has_scheme, is_web

if TYPE_CHECKING:
    import pyarrow as pa

    from raycap.storage.location import Location

# Lines looked at before the start: none of them a URL means that the file is something else.
_LINES_TRIED = 20


@dataclass(frozen=True)
class Urls:
    """A list of URLs, one a line (blank lines and lines that begin with '#' are passed over); or one http(s) URL.

    The key is the URL; where one occurs again, its second row has '#2' behind the key, its third '#3'.
    """

    path: str
    """The list (plain, gzip, bzip2, xz or zstd; a path or any fsspec URI), or one picture's http(s) URL."""
    local: bool = False
    """The lines may also be paths, relative ones taken from the list's folder. Files that are not below that folder
    need --fetch.trust."""

    @property
    def trust(self) -> Trust:
        return Trust() if is_web(self.path) else Trust.below(locate(self.path).parent.uri)

    @property
    def names_urls(self) -> bool:
        return not self.local

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        if is_web(self.path):
            return
        place = existing(self.path)
        if place.is_folder():
            raise UserError(
                f"{place.uri} is a folder: a list of URLs is a text file (for its pictures: --source folder)"
            )
        notes = Notes()
        tried = list(itertools.islice(self._lines(notes), _LINES_TRIED))
        if any("\0" in line for line in tried):
            raise UserError(f"{place.uri} is not a text file: a list has one URL a line")
        if not tried:
            raise UserError(self._nothing(notes))
        if not self.local and not any(map(has_scheme, tried)):
            raise UserError(
                f"the first lines of {place.uri} are no URLs (the first: {tried[0][:100]!r}); "
                "--source.local if they are paths of files of yours"
            )

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(self._rows(notes), lambda: self._nothing(notes))

    def _rows(self, notes: Notes) -> Iterator[Row]:
        keys = NumberedKeys()
        folder = locate(self.path).parent
        for urls in pieces(self._lines(notes)):
            for key, url in zip(keys.of(urls), urls, strict=True):
                yield Row(key, resolved(url, folder) if self.local else url)
        note_repeats(keys, "URL", notes)

    def _lines(self, notes: Notes) -> Iterator[str]:
        if is_web(self.path):
            yield self.path
            return
        place = existing(self.path)
        for line in Lines(place, LONGEST_URL).or_faults():
            if isinstance(line, LongLine):
                notes.add(MALFORMED_LINE, f"{place.name} line {line.number}: {line.reason}")
                continue
            url = line.strip()
            if url and not url.startswith("#"):
                yield url

    def _nothing(self, notes: Notes) -> str:
        return nothing(f"no URL in {self.path}: a list has one a line", notes)


def resolved(uri: str, folder: "Location") -> str:
    """A row's URI, with a relative path taken from the folder of the list that names it."""
    if not uri or uri.startswith("/") or has_scheme(uri):
        return uri
    return (folder / re.sub(r"^(\./)+", "", uri)).uri


def note_repeats(keys: NumberedKeys, what: str, notes: Notes) -> None:
    """Say what became of names that occurred again."""
    if not keys.repeats:
        return
    again = sum(keys.repeats.values()) - len(keys.repeats)
    name, times = max(keys.repeats.items(), key=lambda item: item[1])
    notes.remark(
        f"{counted(again, 'row repeats', 'rows repeat')} an earlier {what} and got a number behind the key; "
        f"most often {name[:200]!r} ({times:,} times)"
    )
