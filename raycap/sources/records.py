"""Reads CSV, TSV, JSON lines and Parquet, a thousand rows at a time, with each row's position."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raycap.errors import UserError
from raycap.sources.delimited import header, read_delimited
from raycap.sources.lines import Lines, LongLine, Span, name_unpacked
from raycap.sources.listing import walk
from raycap.sources.manifest import FIRST_ROWS, MOST_BYTES, MOST_ROWS, utf8
from raycap.sources.notes import MALFORMED_LINE, UNUSABLE_FILE, Notes, nothing
from raycap.sources.parquet import read_parquet, schema_of
from raycap.sources.pieces import Cut, cut_delimited, cut_lines, cut_row_groups
from raycap.storage.delta import files_to_read, is_private, table_of_log
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

Format = Literal["csv", "jsonl", "parquet"]
# Endings before that of a compression count too: pictures.csv.gz.
_ENDINGS: dict[str, Format] = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
# How files of each format are cut into units.
CUTS: dict[Format, Cut] = {
    "csv": cut_delimited,
    "jsonl": cut_lines,
    "parquet": cut_row_groups,
}


class RowBatch(NamedTuple):
    """Some rows of one file."""

    columns: "pa.Table"
    where: list[str]  # "line 5" or "row 5" for each row
    file: Location


@dataclass(frozen=True)
class Records:
    """One file of rows, or a part of one."""

    file: Location
    format: Format
    part: Span | None = None  # bytes of text; of Parquet, row groups

    def names(self) -> list[str]:
        """Returns its columns; '1', '2', ... if its first line holds a URL instead of a header."""
        if self.format == "parquet":
            return list(self.schema().names)
        if self.format == "csv":
            return header(self.file)
        # A line of JSON need not have every field.
        lines = itertools.islice(Lines(self.file).or_faults(), 100)
        objects = [_json_object(line) or {} for line in lines if isinstance(line, str)]
        return list(dict.fromkeys(itertools.chain.from_iterable(objects)))

    def schema(self) -> "pa.Schema":
        """Returns the schema of a Parquet file."""
        return schema_of(self.file)

    def batches(
        self,
        wanted: Sequence[str],
        lists: Sequence[str],
        notes: Notes,
        most_rows: int = MOST_ROWS,
        superset: "pc.Expression | None" = None,
    ) -> Iterator[RowBatch]:
        """Yields the wanted columns; rows that cannot be read are left out and noted. Of Parquet,
        row groups may be left out that have no row of the `superset`.

        Text formats give text (other JSON values as JSON), and lists of text for the columns
        `lists`. Parquet gives what it holds.
        """
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        names = self.names()
        if lacking := [name for name in wanted if name not in names]:
            raise UserError(
                f"{self.file.uri} has no column {', '.join(lacking)}; it has {', '.join(names)}"
            )
        if repeated := [name for name in wanted if names.count(name) > 1]:
            raise UserError(
                f"{self.file.uri} has several columns {repeated[0]!r}: rename all but one"
            )
        if self.format == "parquet":
            tables = read_parquet(self.file, wanted, most_rows, notes, self.part, superset)
            for row, table in tables:
                where = [f"row {row + index}" for index in range(len(table))]
                yield RowBatch(table, where, self.file)
            return
        if self.format == "csv":
            lines = read_delimited(self.file, names, wanted, notes, self.part)
        else:
            lines = self._json_lines(wanted, lists, notes)
        types = [pa.list_(pa.string()) if name in lists else pa.string() for name in wanted]
        for batch in _batched(lines):
            columns = {}
            for index, (name, type) in enumerate(zip(wanted, types, strict=True)):
                values = [values[index] for _, values in batch]
                if name in lists:  # CSV has single texts
                    values = [each if isinstance(each, list) else [each] for each in values]
                columns[name] = pa.array(values, type)
            yield RowBatch(pa.table(columns), [where for where, _ in batch], self.file)

    def _json_lines(
        self, wanted: Sequence[str], lists: Sequence[str], notes: Notes
    ) -> Iterator[tuple[str, list[Any]]]:
        lines = Lines(self.file, span=self.part)
        for number, line in enumerate(lines.or_faults(), 1):
            if isinstance(line, LongLine):
                notes.add_line(MALFORMED_LINE, self.file.name, number, line.reason)
                continue
            if not line.strip():
                continue
            fields = _json_object(line)
            if fields is None:
                shown = repr(line.strip()[:60])
                notes.add_line(MALFORMED_LINE, self.file.name, number, shown)
                continue
            # As text at once: a JSON value takes many times the memory of its text.
            values: list[Any] = []
            for name in wanted:
                value = fields.get(name)
                if name in lists and isinstance(value, list):
                    values.append([_as_text(item) for item in value])
                else:
                    values.append(_as_text(value))
            yield f"line {number}", values
        notes.lines_read = lines.number


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _as_text(value: Any) -> str | None:
    """A JSON value as text: a string as it is, anything else as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return utf8(value)
    try:
        return utf8(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return None


def _batched(lines: Iterator[tuple[str, list[Any]]]) -> Iterator[list[tuple[str, list[Any]]]]:
    """Yields lists of 64, 1,000, 1,000, ... lines; fewer at a time if their texts are large."""
    batch: list[tuple[str, list[Any]]] = []
    most, size = FIRST_ROWS, 0
    for line in lines:
        batch.append(line)
        for value in line[1]:
            texts = value if isinstance(value, list) else [value]
            size += sum(len(text or "") for text in texts)
        if len(batch) == most or size >= MOST_BYTES:
            yield batch
            batch, most, size = [], MOST_ROWS, 0
    if batch:
        yield batch


def records(
    path: str,
    format: Literal["auto"] | Format = "auto",
    notes: Notes | None = None,
    private: bool = True,
) -> list[Records]:
    """Returns the files that a path means: one file, those of a glob, or a folder of Parquet.

    Without `private`, files of a folder that begin with '_' are left out, and those in folders
    that do.
    """
    if is_glob(path):
        files = _globbed(path)
    else:
        location = existing(path)
        files = [location]
        if location.is_folder():
            files = _parquet_files(location, notes or Notes(), private)
    return [Records(file, format_of(file.name) if format == "auto" else format) for file in files]


def is_glob(path: str) -> bool:
    """Whether a path has wildcards and is not itself the name of a file."""
    return ("*" in path or "?" in path) and not locate(path).exists()


def root_of(path: str) -> Location:
    """Returns the folder of all files that a path means; of a glob, that before the wildcard."""
    location = locate(path)
    if location.is_folder():
        return location
    fixed = re.split(r"[*?[]", location.path, maxsplit=1)[0]
    if fixed == location.path or location.exists():
        return location.parent
    steps_below = location.path.count("/") - fixed.count("/") + 1
    for _ in range(steps_below):
        location = location.parent
    return location


def format_of(name: str) -> Format:
    """Returns the format that a file name tells; raises UserError if it tells none."""
    plain = name_unpacked(name)
    for ending, format in _ENDINGS.items():
        if plain.endswith(ending):
            return format
    raise UserError(f"{name} does not say its format: {', '.join(_ENDINGS)} (or --source.format)")


def texts(batch: RowBatch, name: str) -> list[str]:
    """Returns a column as texts, "" for nulls."""
    import pyarrow as pa

    column = batch.columns[name]
    try:
        return [(text or "").strip() for text in column.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, UnicodeDecodeError) as error:
        hint = ""
        if pa.types.is_struct(column.type):
            hint = "; --source huggingface reads embedded pictures"
        raise UserError(
            f"column {name} of {batch.file.uri} holds {column.type}, not text{hint}"
        ) from error


def references_of(batch: RowBatch, names: Sequence[str]) -> list[list[str]]:
    """Returns each row's human captions, from columns of text or of lists of text."""
    rows: list[list[str]] = [[] for _ in batch.where]
    for name in names:
        column = batch.columns[name]
        for row, value in zip(rows, column.to_pylist(), strict=True):
            captions = value if isinstance(value, list) else [value]
            if not all(text is None or isinstance(text, str) for text in captions):
                raise UserError(
                    f"column {name} of {batch.file.uri} holds {column.type}, no captions"
                )
            row.extend(text for text in captions if text)
    return rows


def _parquet_files(folder: Location, notes: Notes, private: bool) -> list[Location]:
    found, tables = [], set()
    for entry in walk(folder, notes):
        table = table_of_log(entry.path)
        if table is not None:
            tables.add(table)
        elif not entry.is_folder and entry.path.lower().endswith((".parquet", ".pq")):
            found.append(entry)
    wanted = []
    for entry in found:
        if not private and is_private(entry.path):
            continue
        if entry.error:
            notes.add(UNUSABLE_FILE, f"{(folder / entry.path).uri}: {entry.error}")
        else:
            wanted.append(entry.path)
    files = files_to_read(folder, wanted, tables)
    if not files:
        if tables:
            raise UserError(f"the Delta table in {folder.uri} has no rows yet")
        raise UserError(
            nothing(f"no *.parquet file in {folder.uri} or the folders below it", notes)
        )
    return sorted(files, key=lambda file: file.path)


def _globbed(path: str) -> list[Location]:
    from fsspec import filesystem

    location = locate(path)
    system = location.filesystem or filesystem("file")
    # Globbed paths lack the beginning of the URI, such as "s3://".
    start = location.uri[: len(location.uri) - len(location.path)]
    paths = sorted(system.glob(location.path))
    if not paths:
        raise UserError(f"no file matches {path}")
    return [Location(start + found, found, location.filesystem) for found in paths]
