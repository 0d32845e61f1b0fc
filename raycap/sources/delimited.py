"""Delimited text: CSV, TSV and their like, line by line; a line that is not of the form costs itself."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from raycap.errors import UserError
from raycap.sources.lines import LONGEST_LINE, Lines, LongLine, first_line, name_unpacked
from raycap.sources.notes import MALFORMED_LINE, Notes
from raycap.storage.location import Location
from raycap.uris import has_scheme

_DELIMITERS = ",;\t|"


def header(place: Location) -> list[str]:
    """The columns of delimited text."""
    try:
        header: list[str] = next(filter(None, _reader(_RowLines(place))), [])
    except csv.Error as error:
        raise UserError(
            f"{place.uri}: its first line cannot be the header of a table: {error}"
        ) from error
    if _is_headless(header):
        return [str(index + 1) for index in range(len(header))]
    return [name.strip() for name in header]


def read(
    place: Location, names: list[str], wanted: Sequence[str], notes: Notes
) -> Iterator[tuple[str, list[Any]]]:
    """Rows of as many values as the table has columns, each with its line; of the values those that are wanted."""
    lines = _RowLines(place)
    reader = _reader(lines)
    chosen = [names.index(name) for name in wanted]
    first = True
    while True:
        start = lines.start_row()
        try:
            values = next(reader, None)
        except LongLine as error:
            if lines.number > start:  # it would take all that follows with it
                raise UserError(
                    f"{place.uri}: the row that begins in line {start} is longer than {LONGEST_LINE:,} characters: "
                    "a quote in it is never closed (close or double it), or a picture stands in it (leave it out)"
                ) from error
            notes.add(MALFORMED_LINE, f"{place.name} line {start}: {error.reason}")
            continue
        except csv.Error as error:
            if "unexpected end" in str(error):  # this too
                raise UserError(
                    f"{place.uri}: the quote opened in line {start} is never closed; close or double it"
                ) from error
            notes.add(MALFORMED_LINE, f"{place.name} line {start}: {error}")
            continue
        if values is None:
            return
        if not values:
            continue  # a blank line
        if first:
            first = False
            if not _is_headless(values):
                continue
        if len(values) == len(names):
            yield f"line {start}", [values[index] for index in chosen]
        else:
            fault = f"{len(values)} fields where {len(names)} belong"
            notes.add(MALFORMED_LINE, f"{place.name} line {start}: {fault}")


class _RowLines:
    """The lines of a table for the csv module, which takes several for one row where a quoted text has line ends. A
    row of more than LONGEST_LINE characters raises LongLine, whether it is one line or many."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self._lines = Lines(place)
        self._held = 0  # characters of the row so far

    def start_row(self) -> int:
        """The number of the row's first line."""
        self._held = 0
        return self._lines.number + 1

    @property
    def number(self) -> int:
        return self._lines.number

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._held += len(line)
        if self._held > LONGEST_LINE:
            raise LongLine(self.place.uri, self.number, LONGEST_LINE)
        return line


def _reader(lines: _RowLines) -> Any:
    csv.field_size_limit(LONGEST_LINE)  # the csv module's own limit is 128 KB
    # Strict, so that a stray quote is met where it stands instead of swallowing what follows.
    return csv.reader(
        lines, delimiter=_delimiter(lines.place, first_line(lines.place)), strict=True
    )


def _delimiter(place: Location, line: str) -> str:
    """A tab for .tsv; else what the first line has most of, for not every CSV has commas."""
    if name_unpacked(place.name).endswith((".tsv", ".tab")):
        return "\t"
    return max(_DELIMITERS, key=line.count)


def _is_headless(header: list[str]) -> bool:
    return any(map(has_scheme, header))
