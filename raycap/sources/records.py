"""Rows of CSV, TSV, JSON lines and Parquet, a thousand at a time, with the place where each stands."""

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raycap.refusal import Refusal
from raycap.sources.listing import Oddities, walk
from raycap.sources.place import Place, existing, first_line, locate, read_lines
from raycap.sources.rows import MOST_ROWS, Tally, pieces, utf8
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
        line = first_line(self.place)
        header = next(csv.reader([line], delimiter=_delimiter(self.place, line)), [])
        if _is_headless(header):
            return [str(index + 1) for index in range(len(header))]
        return [name.strip() for name in header]

    def schema(self) -> "pa.Schema":
        """Of a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self.place.open() as file:
                return pq.read_schema(file)
        except pa.ArrowInvalid as error:
            raise Refusal(f"{self.place.uri} is not a whole Parquet file: {error}") from error

    def pieces(
        self, wanted: Sequence[str], lists: Sequence[str], malformed: Tally, most_rows: int = MOST_ROWS
    ) -> Iterator[Piece]:
        """The wanted columns. Text formats give text (a JSON value that is none as JSON), and lists of text for the
        columns named in `lists`; Parquet gives what it holds. Lines not of the form are left out and tallied."""
        names = self.names()
        if lacking := [name for name in wanted if name not in names]:
            raise Refusal(f"{self.place.uri} has no column {', '.join(lacking)}; it has {', '.join(names)}")
        if self.format == "parquet":
            yield from self._parquet_pieces(wanted, most_rows)
            return
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        lines = self._csv_lines(malformed) if self.format == "csv" else self._json_lines(names, malformed)
        chosen = [names.index(name) for name in wanted]
        for piece in pieces(lines):
            columns = {
                name: _text_column([values[index] for _, values in piece], name in lists)
                for name, index in zip(wanted, chosen, strict=True)
            }
            yield Piece(pa.table(columns), [where for where, _ in piece], self.place)

    def _csv_lines(self, malformed: Tally) -> Iterator[tuple[str, list[Any]]]:
        header_line = first_line(self.place)
        # Strict, so that a stray quote is met where it stands instead of swallowing what follows.
        reader = csv.reader(read_lines(self.place), delimiter=_delimiter(self.place, header_line), strict=True)
        header: list[str] = []
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                self._refuse_open_quote(start, str(error))
                malformed.add(f"{self.place.name} line {start}: {error}")
                continue
            if values is None:
                return
            if not values:
                continue  # a blank line
            if not header:
                header = values
                if not _is_headless(header):
                    continue
            if len(values) == len(header):
                yield f"line {start}", values
            else:
                malformed.add(f"{self.place.name} line {start}: {len(values)} fields where {len(header)} belong")

    def _refuse_open_quote(self, line: int, error: str) -> None:
        """Such a line takes all that follows with it."""
        if "unexpected end" in error or "larger than field limit" in error:
            raise Refusal(f"{self.place.uri}: the quote opened in line {line} is never closed; close or double it")

    def _json_lines(self, names: list[str], malformed: Tally) -> Iterator[tuple[str, list[Any]]]:
        for number, line in enumerate(read_lines(self.place), 1):
            if not line.strip():
                continue
            values = _json_object(line)
            if values is None:
                malformed.add(f"{self.place.name} line {number}: {line.strip()[:60]!r}")
            else:
                yield f"line {number}", [values.get(name) for name in names]

    def _parquet_pieces(self, wanted: Sequence[str], most_rows: int) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        start = 0
        try:
            # Small reads: a column of inline pictures would otherwise be held for a whole row group.
            with self.place.open() as file, pq.ParquetFile(file, buffer_size=1 << 20) as parquet:
                for batch in parquet.iter_batches(batch_size=most_rows, columns=list(wanted)):
                    table = pa.Table.from_batches([batch]).select(list(wanted))
                    yield Piece(table, [f"row {start + row}" for row in range(len(table))], self.place)
                    start += len(table)
        except (pa.ArrowInvalid, OSError) as error:
            raise Refusal(f"cannot read {self.place.uri}: {error}") from error


def records(path: str, format: Literal["auto", "csv", "jsonl", "parquet"] = "auto") -> list[Records]:
    """The files that a path means: one file, a glob, or a folder of Parquet."""
    if any(mark in path for mark in "*?") and not locate(path).exists():
        places = _globbed(path)
    else:
        place = existing(path)
        places = _parquet_files(place) if place.is_folder() else [place]
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
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
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


def _parquet_files(folder: Place) -> list[Place]:
    found = sorted(name for name in walk(folder, Oddities()) if name.lower().endswith((".parquet", ".pq")))
    if not found:
        raise Refusal(f"no *.parquet file in {folder.uri} or the folders below it")
    return [folder / name for name in found]


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
