"""Reads delimited text (CSV, TSV and such); a malformed line is left out and noted."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from raycap.errors import UserError
from raycap.sources.lines import LONGEST_LINE, Lines, LongLine, Span, first_line, name_unpacked
from raycap.sources.notes import MALFORMED_LINE, Notes
from raycap.storage.location import Location
from raycap.uris import has_scheme

_DELIMITERS = ",;\t|"


def header(file: Location) -> list[str]:
    """Returns the columns of delimited text; '1', '2', ... if it has no header."""
    try:
        header: list[str] = next(filter(None, _reader(_RowLines(file))), [])
    except csv.Error as error:
        raise UserError(
            f"{file.uri}: its first line cannot be the header of a table: {error}"
        ) from error
    if _is_headless(header):
        return [str(index + 1) for index in range(len(header))]
    return [name.strip() for name in header]


def read_delimited(
    file: Location,
    names: list[str],
    wanted: Sequence[str],
    notes: Notes,
    span: Span | None = None,
) -> Iterator[tuple[str, list[Any]]]:
    """Yields the wanted values of each row, with its line."""
    lines = _RowLines(file, span)
    reader = _reader(lines)
    chosen = [names.index(name) for name in wanted]
    first = span is None or span.start == 0
    while True:
        start = lines.start_row()
        try:
            values = next(reader, None)
        except LongLine as error:
            if lines.number > start:  # all that follows would belong to this row
                raise UserError(
                    f"{file.uri}: the row that begins in line {start} is longer than "
                    f"{LONGEST_LINE:,} characters: a quote in it is never closed (close or double "
                    "it), or it holds a picture (leave it out)"
                ) from error
            notes.add_line(MALFORMED_LINE, file.name, start, error.reason)
            continue
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserError(
                    f"{file.uri}: the quote opened in line {start} is never closed; "
                    "close or double it"
                ) from error
            notes.add_line(MALFORMED_LINE, file.name, start, str(error))
            continue
        if values is None:
            notes.lines_read = lines.number
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
            fault = f"{len(values)} fields instead of {len(names)}"
            notes.add_line(MALFORMED_LINE, file.name, start, fault)


class _RowLines:
    """The lines of a table for the csv module, of which a row with quoted line ends takes several.

    A row of more than LONGEST_LINE characters raises LongLine, whether it is one line or many.
    """

    def __init__(self, file: Location, span: Span | None = None) -> None:
        self.file = file
        self._lines = Lines(file, span=span)
        self._size = 0  # characters of the row so far

    def start_row(self) -> int:
        """Begins a row; returns the number of its first line."""
        self._size = 0
        return self._lines.number + 1

    @property
    def number(self) -> int:
        return self._lines.number

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._size += len(line)
        if self._size > LONGEST_LINE:
            raise LongLine(self.file.uri, self.number, LONGEST_LINE)
        return line


def _reader(lines: _RowLines) -> Any:
    csv.field_size_limit(LONGEST_LINE)  # the csv module's own limit is 128 KB
    # Strict: a stray quote is an error in its line, instead of taking all that follows.
    return csv.reader(lines, delimiter=_delimiter(lines.file, first_line(lines.file)), strict=True)


def _delimiter(file: Location, line: str) -> str:
    """A tab for .tsv; else the most frequent of the usual ones in the first line."""
    if name_unpacked(file.name).endswith((".tsv", ".tab")):
        return "\t"
    return max(_DELIMITERS, key=line.count)


def _is_headless(header: list[str]) -> bool:
    return any(map(has_scheme, header))
