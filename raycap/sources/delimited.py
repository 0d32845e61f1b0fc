"""Delimited text: CSV, TSV and their like, line by line; a line that is not of the form costs itself."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from raycap.refusal import Refusal
from raycap.sources.lines import Lines, LongLine, first_line, name_unpacked
from raycap.sources.notes import MALFORMED_LINE, Notes
from raycap.sources.place import Place
from raycap.uris import has_scheme

_DELIMITERS = ",;\t|"
# One field of delimited text. Pictures in base64 fit; the csv module's own limit is 128 KB.
LONGEST_FIELD = 64 << 20


def header(place: Place) -> list[str]:
    """The columns of delimited text."""
    try:
        header: list[str] = next(filter(None, _reader(place, Lines(place))), [])
    except csv.Error as error:
        raise Refusal(f"{place.uri}: its first line cannot be the header of a table: {error}") from error
    if _is_headless(header):
        return [str(index + 1) for index in range(len(header))]
    return [name.strip() for name in header]


def read(place: Place, names: list[str], wanted: Sequence[str], notes: Notes) -> Iterator[tuple[str, list[Any]]]:
    """Where each line stands, and its fields of the wanted columns."""
    lines = Lines(place)
    reader = _reader(place, lines)
    chosen = [names.index(name) for name in wanted]
    first = True
    while True:
        start = lines.number + 1
        try:
            values = next(reader, None)
        except LongLine as long:
            notes.add(MALFORMED_LINE, f"{place.name} line {long.number}: {long.reason}")
            continue
        except csv.Error as error:
            _refuse_open_quote(place, start, lines.number, str(error))
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


def _reader(place: Place, lines: Lines) -> Any:
    csv.field_size_limit(LONGEST_FIELD)
    # Strict, so that a stray quote is met where it stands instead of swallowing what follows.
    return csv.reader(lines, delimiter=_delimiter(place, first_line(place)), strict=True)


def _refuse_open_quote(place: Place, start: int, end: int, error: str) -> None:
    """Such a line takes all that follows with it."""
    if "unexpected end" in error:
        raise Refusal(f"{place.uri}: the quote opened in line {start} is never closed; close or double it")
    if "larger than field limit" in error and end > start:
        raise Refusal(
            f"{place.uri}: the field that begins in line {start} is longer than {LONGEST_FIELD >> 20} MB: its "
            "quote is never closed (close or double it), or a picture stands in it (leave it out)"
        )


def _delimiter(place: Place, line: str) -> str:
    """A tab for .tsv; else what the first line has most of, for not every CSV has commas."""
    if name_unpacked(place.name).endswith((".tsv", ".tab")):
        return "\t"
    return max(_DELIMITERS, key=line.count)


def _is_headless(header: list[str]) -> bool:
    return any(map(has_scheme, header))
