"""Rows of CSV, TSV, JSON lines and Parquet, a thousand at a time, with the place where each stands."""

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raycap.refusal import Refusal
from raycap.sources import parquet
from raycap.sources.listing import walk
from raycap.sources.notes import MALFORMED_LINE, UNUSABLE_FILE, Notes, nothing
from raycap.sources.place import Place, existing, first_line, locate, read_lines
from raycap.sources.rows import FIRST_ROWS, MOST_BYTES, MOST_ROWS
from raycap.sources.text import utf8
from raycap.uris import has_scheme

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["csv", "jsonl", "parquet"]
# Inner endings count too: pictures.csv.gz.
_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = ",;\t|"
# One field of delimited text. Pictures in base64 fit; the csv module's own limit is 128 KB.
LONGEST_FIELD = 64 << 20


class Piece(NamedTuple):
    """Some rows of one file."""

    columns: "pa.Table"
    where: list[str]  # "line 5" or "row 5" for each row
    file: Place


@dataclass(frozen=True)
class Records:
    """One file of rows."""

    place: Place
    format: Format

    def names(self) -> list[str]:
        """Its columns; '1', '2', ... where it has no header, told by a URL in its first line."""
        if self.format == "parquet":
            return list(self.schema().names)
        if self.format == "jsonl":  # a line need not have every field
            objects = (_json_object(line) for line in itertools.islice(read_lines(self.place), 100))
            return list(dict.fromkeys(name for fields in objects for name in fields or ()))
        return _header(self.place)

    def schema(self) -> "pa.Schema":
        """Of a Parquet file."""
        return parquet.schema_of(self.place)

    def pieces(
        self, wanted: Sequence[str], lists: Sequence[str], notes: Notes, most_rows: int = MOST_ROWS
    ) -> Iterator[Piece]:
        """The wanted columns. Text formats give text (a JSON value that is none as JSON), and lists of text for the
        columns named in `lists`; Parquet gives what it holds. What cannot be read is left out and noted."""
        names = self.names()
        if lacking := [name for name in wanted if name not in names]:
            raise Refusal(f"{self.place.uri} has no column {', '.join(lacking)}; it has {', '.join(names)}")
        if repeated := [name for name in wanted if names.count(name) > 1]:
            raise Refusal(f"{self.place.uri} has several columns {repeated[0]!r}: rename all but one")
        if self.format == "parquet":
            for row, table in parquet.read(self.place, wanted, most_rows, notes):
                yield Piece(table, [f"row {row + index}" for index in range(len(table))], self.place)
            return
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        lines = self._csv_lines(names, wanted, notes) if self.format == "csv" else self._json_lines(wanted, notes)
        for piece in _pieces(lines):
            columns = {
                name: _text_column([values[index] for _, values in piece], name in lists)
                for index, name in enumerate(wanted)
            }
            yield Piece(pa.table(columns), [where for where, _ in piece], self.place)

    def _csv_lines(self, names: list[str], wanted: Sequence[str], notes: Notes) -> Iterator[tuple[str, list[Any]]]:
        reader = _reader(self.place)
        chosen = [names.index(name) for name in wanted]
        first = True
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                _refuse_open_quote(self.place, start, reader.line_num, str(error))
                notes.add(MALFORMED_LINE, f"{self.place.name} line {start}: {error}")
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
                notes.add(MALFORMED_LINE, f"{self.place.name} line {start}: {fault}")

    def _json_lines(self, wanted: Sequence[str], notes: Notes) -> Iterator[tuple[str, list[Any]]]:
        for number, line in enumerate(read_lines(self.place), 1):
            if not line.strip():
                continue
            values = _json_object(line)
            if values is None:
                notes.add(MALFORMED_LINE, f"{self.place.name} line {number}: {line.strip()[:60]!r}")
            else:
                yield f"line {number}", [values.get(name) for name in wanted]


def _reader(place: Place) -> Any:
    csv.field_size_limit(LONGEST_FIELD)
    # Strict, so that a stray quote is met where it stands instead of swallowing what follows.
    return csv.reader(read_lines(place), delimiter=_delimiter(place, first_line(place)), strict=True)


def _header(place: Place) -> list[str]:
    """The columns of delimited text."""
    try:
        header: list[str] = next(filter(None, _reader(place)), [])
    except csv.Error as error:
        raise Refusal(f"{place.uri}: its first line cannot be the header of a table: {error}") from error
    if _is_headless(header):
        return [str(index + 1) for index in range(len(header))]
    return [name.strip() for name in header]


def _refuse_open_quote(place: Place, start: int, end: int, error: str) -> None:
    """Such a line takes all that follows with it."""
    if "unexpected end" in error:
        raise Refusal(f"{place.uri}: the quote opened in line {start} is never closed; close or double it")
    if "larger than field limit" in error and end > start:
        raise Refusal(
            f"{place.uri}: the field that begins in line {start} is longer than {LONGEST_FIELD >> 20} MB: its "
            "quote is never closed (close or double it), or a picture stands in it (leave it out)"
        )


def _pieces(lines: Iterator[tuple[str, list[Any]]]) -> Iterator[list[tuple[str, list[Any]]]]:
    """Lists of 64 lines, then 1,000, 1,000, ...; fewer at a time where their texts are large."""
    piece: list[tuple[str, list[Any]]] = []
    size, held = FIRST_ROWS, 0
    for where, values in lines:
        piece.append((where, values))
        held += sum(len(value) for value in values if isinstance(value, str))
        if len(piece) == size or held >= MOST_BYTES:
            yield piece
            piece, size, held = [], MOST_ROWS, 0
    if piece:
        yield piece


def records(
    path: str, format: Literal["auto", "csv", "jsonl", "parquet"] = "auto", notes: Notes | None = None
) -> list[Records]:
    """The files that a path means: one file, a glob, or a folder of Parquet."""
    if any(mark in path for mark in "*?") and not locate(path).exists():
        places = _globbed(path)
    else:
        place = existing(path)
        places = _parquet_files(place, notes or Notes()) if place.is_folder() else [place]
    return [Records(place, format_of(place.name) if format == "auto" else format) for place in places]


def root_of(path: str) -> Place:
    """The folder that holds all files that a path means: of a glob, the last one before the first wildcard."""
    place = locate(path)
    if place.is_folder():
        return place
    fixed = re.split(r"[*?[]", place.path, maxsplit=1)[0]
    if fixed == place.path or place.exists():
        return place.parent
    steps_below = place.path.count("/") - fixed.count("/") + 1
    for _ in range(steps_below):
        place = place.parent
    return place


def format_of(name: str) -> Format:
    """The format that a file name tells."""
    plain = name.lower().removesuffix(".gz")
    for ending, format in _ENDINGS.items():
        if plain.endswith(ending):
            return format
    raise Refusal(f"{name} does not say its format: {', '.join(_ENDINGS)} (or --source.format)")


def texts(piece: Piece, name: str) -> list[str]:
    """A column as text, "" where it has none."""
    import pyarrow as pa

    column = piece.columns[name]
    try:
        return [(text or "").strip() for text in column.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, UnicodeDecodeError) as error:
        hint = "; --source huggingface reads embedded pictures" if pa.types.is_struct(column.type) else ""
        raise Refusal(f"column {name} of {piece.file.uri} holds {column.type}, not text{hint}") from error


def references_of(piece: Piece, names: Sequence[str]) -> list[list[str]]:
    """Each row's human captions, from columns of text or of lists of text."""
    rows: list[list[str]] = [[] for _ in piece.where]
    for name in names:
        for row, value in zip(rows, piece.columns[name].to_pylist(), strict=True):
            said = value if isinstance(value, list) else [value]
            if not all(text is None or isinstance(text, str) for text in said):
                raise Refusal(f"column {name} of {piece.file.uri} holds {piece.columns[name].type}, no captions")
            row.extend(text for text in said if text)
    return rows


def _parquet_files(folder: Place, notes: Notes) -> list[Place]:
    files = []
    for found in walk(folder, notes):
        if found.is_folder or not found.path.lower().endswith((".parquet", ".pq")):
            continue
        if found.error:
            notes.add(UNUSABLE_FILE, f"{(folder / found.path).uri}: {found.error}")
        else:
            files.append(folder / found.path)
    if not files:
        raise Refusal(nothing(f"no *.parquet file in {folder.uri} or the folders below it", notes))
    return sorted(files, key=lambda file: file.path)


def _globbed(path: str) -> list[Place]:
    from fsspec import filesystem

    place = locate(path)
    system = place.filesystem or filesystem("file")
    fixed = place.uri[: len(place.uri) - len(place.path)]  # "s3://" and such, which globbed paths lack
    found = [Place(fixed + name, name, place.filesystem) for name in sorted(system.glob(place.path))]
    if not found:
        raise Refusal(f"no file matches {path}")
    return found


def _delimiter(place: Place, line: str) -> str:
    """A tab for .tsv; else what the first line has most of, for not every CSV has commas."""
    if place.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    return max(_DELIMITERS, key=line.count)


def _is_headless(header: list[str]) -> bool:
    return any(map(has_scheme, header))


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text_column(values: list[Any], as_lists: bool) -> "pa.Array":
    import pyarrow as pa

    if as_lists:
        return pa.array([_as_texts(value) for value in values], pa.list_(pa.string()))
    return pa.array([_as_text(value) for value in values], pa.string())


def _as_texts(value: Any) -> list[str | None]:
    return [_as_text(item) for item in value] if isinstance(value, list) else [_as_text(value)]


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
