"""Rows of CSV, TSV, JSON lines and Parquet, a thousand at a time, with the place where each stands."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raycap.errors import UserError
from raycap.sources import delimited, parquet
from raycap.sources.lines import Lines, LongLine, name_unpacked
from raycap.sources.listing import walk
from raycap.sources.notes import MALFORMED_LINE, UNUSABLE_FILE, Notes, nothing
from raycap.sources.rows import FIRST_ROWS, MOST_BYTES, MOST_ROWS
from raycap.sources.text import as_text, as_texts
from raycap.storage.location import Location, existing, locate

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


class RowBatch(NamedTuple):
    """Some rows of one file."""

    columns: "pa.Table"
    where: list[str]  # "line 5" or "row 5" for each row
    file: Location


@dataclass(frozen=True)
class Records:
    """One file of rows."""

    place: Location
    format: Format

    def names(self) -> list[str]:
        """Its columns; '1', '2', ... where it has no header, told by a URL in its first line."""
        if self.format == "parquet":
            return list(self.schema().names)
        if self.format == "jsonl":  # a line need not have every field
            lines = itertools.islice(Lines(self.place).or_faults(), 100)
            objects = (_json_object(line) for line in lines if isinstance(line, str))
            return list(dict.fromkeys(name for fields in objects for name in fields or ()))
        return delimited.header(self.place)

    def schema(self) -> "pa.Schema":
        """Of a Parquet file."""
        return parquet.schema_of(self.place)

    def pieces(
        self, wanted: Sequence[str], lists: Sequence[str], notes: Notes, most_rows: int = MOST_ROWS
    ) -> Iterator[RowBatch]:
        """The wanted columns. Text formats give text (a JSON value that is none as JSON), and lists of text for the
        columns named in `lists`; Parquet gives what it holds. What cannot be read is left out and noted."""
        names = self.names()
        if lacking := [name for name in wanted if name not in names]:
            raise UserError(
                f"{self.place.uri} has no column {', '.join(lacking)}; it has {', '.join(names)}"
            )
        if repeated := [name for name in wanted if names.count(name) > 1]:
            raise UserError(
                f"{self.place.uri} has several columns {repeated[0]!r}: rename all but one"
            )
        if self.format == "parquet":
            for row, table in parquet.read(self.place, wanted, most_rows, notes):
                yield RowBatch(
                    table, [f"row {row + index}" for index in range(len(table))], self.place
                )
            return
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        if self.format == "csv":
            lines = delimited.read(self.place, names, wanted, notes)
        else:
            lines = self._json_lines(wanted, lists, notes)
        for piece in _pieces(lines):
            columns = {
                name: _text_column([values[index] for _, values in piece], name in lists)
                for index, name in enumerate(wanted)
            }
            yield RowBatch(pa.table(columns), [where for where, _ in piece], self.place)

    def _json_lines(
        self, wanted: Sequence[str], lists: Sequence[str], notes: Notes
    ) -> Iterator[tuple[str, list[Any]]]:
        for number, line in enumerate(Lines(self.place).or_faults(), 1):
            if isinstance(line, LongLine):
                notes.add(MALFORMED_LINE, f"{self.place.name} line {number}: {line.reason}")
                continue
            if not line.strip():
                continue
            values = _json_object(line)
            if values is None:
                notes.add(
                    MALFORMED_LINE, f"{self.place.name} line {number}: {line.strip()[:60]!r}"
                )
            else:
                # As text at once: a JSON value takes many times the memory of its text.
                yield (
                    f"line {number}",
                    [
                        (as_texts if name in lists else as_text)(values.get(name))
                        for name in wanted
                    ],
                )


def _pieces(lines: Iterator[tuple[str, list[Any]]]) -> Iterator[list[tuple[str, list[Any]]]]:
    """Lists of 64 lines, then 1,000, 1,000, ...; fewer at a time where their texts are large."""
    piece: list[tuple[str, list[Any]]] = []
    size, held = FIRST_ROWS, 0
    for where, values in lines:
        piece.append((where, values))
        held += sum(map(_size, values))
        if len(piece) == size or held >= MOST_BYTES:
            yield piece
            piece, size, held = [], MOST_ROWS, 0
    if piece:
        yield piece


def _size(value: str | list[str | None] | None) -> int:
    texts = value if isinstance(value, list) else [value]
    return sum(len(text or "") for text in texts)


def records(
    path: str,
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto",
    notes: Notes | None = None,
) -> list[Records]:
    """The files that a path means: one file, a glob, or a folder of Parquet."""
    if any(mark in path for mark in "*?") and not locate(path).exists():
        places = _globbed(path)
    else:
        place = existing(path)
        places = _parquet_files(place, notes or Notes()) if place.is_folder() else [place]
    return [
        Records(place, format_of(place.name) if format == "auto" else format) for place in places
    ]


def root_of(path: str) -> Location:
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
    plain = name_unpacked(name)
    for ending, format in _ENDINGS.items():
        if plain.endswith(ending):
            return format
    raise UserError(f"{name} does not say its format: {', '.join(_ENDINGS)} (or --source.format)")


def texts(piece: RowBatch, name: str) -> list[str]:
    """A column as text, "" where it has none."""
    import pyarrow as pa

    column = piece.columns[name]
    try:
        return [(text or "").strip() for text in column.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, UnicodeDecodeError) as error:
        hint = (
            "; --source huggingface reads embedded pictures"
            if pa.types.is_struct(column.type)
            else ""
        )
        raise UserError(
            f"column {name} of {piece.file.uri} holds {column.type}, not text{hint}"
        ) from error


def references_of(piece: RowBatch, names: Sequence[str]) -> list[list[str]]:
    """Each row's human captions, from columns of text or of lists of text."""
    rows: list[list[str]] = [[] for _ in piece.where]
    for name in names:
        for row, value in zip(rows, piece.columns[name].to_pylist(), strict=True):
            said = value if isinstance(value, list) else [value]
            if not all(text is None or isinstance(text, str) for text in said):
                raise UserError(
                    f"column {name} of {piece.file.uri} holds {piece.columns[name].type}, no captions"
                )
            row.extend(text for text in said if text)
    return rows


def _parquet_files(folder: Location, notes: Notes) -> list[Location]:
    files = []
    for found in walk(folder, notes):
        if found.is_folder or not found.path.lower().endswith((".parquet", ".pq")):
            continue
        if found.error:
            notes.add(UNUSABLE_FILE, f"{(folder / found.path).uri}: {found.error}")
        else:
            files.append(folder / found.path)
    if not files:
        raise UserError(
            nothing(f"no *.parquet file in {folder.uri} or the folders below it", notes)
        )
    return sorted(files, key=lambda file: file.path)


def _globbed(path: str) -> list[Location]:
    from fsspec import filesystem

    place = locate(path)
    system = place.filesystem or filesystem("file")
    fixed = place.uri[
        : len(place.uri) - len(place.path)
    ]  # "s3://" and such, which globbed paths lack
    found = [
        Location(fixed + name, name, place.filesystem) for name in sorted(system.glob(place.path))
    ]
    if not found:
        raise UserError(f"no file matches {path}")
    return found


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text_column(values: list[Any], as_lists: bool) -> "pa.Array":
    import pyarrow as pa

    if as_lists:
        return pa.array([as_texts(value) for value in values], pa.list_(pa.string()))
    return pa.array([as_text(value) for value in values], pa.string())
