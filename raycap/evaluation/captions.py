"""Reads caption tables of all formats (raycap's Parquet, COCO results, CSV, JSON lines) into one
schema."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.errors import UserError
from raycap.row_filter import RowFilter
from raycap.schema import CAPTIONS, SUCCESS, TRUE_WORDS
from raycap.sources.lines import first_line
from raycap.sources.manifest import batched, brief, utf8
from raycap.sources.notes import MALFORMED_LINE, Notes, nothing
from raycap.sources.records import Records, RowBatch, records
from raycap.storage.location import Location, existing, locate

# The columns that are read. Missing ones are "", null or an empty list; a missing status is
# success.
_NOT_READ = ("width", "height", "sha256", "raw_caption", "attempt")
_READ = [CAPTIONS.field(name) for name in CAPTIONS.names if name not in _NOT_READ]
ROWS = pa.schema([*_READ, *TRUE_WORDS])
NUMBERS = ("score", *TRUE_WORDS.names)
# The usual names of the two columns that are needed, the most usual first.
KEY_NAMES = (
    "key",
    "image_id",
    "image",
    "image_name",
    "file_name",
    "filename",
    "file",
    "path",
    "uri",
    "url",
    "id",
)
CAPTION_NAMES = ("caption", "prediction", "generated_caption", "generated", "hypothesis", "text")
# How often reading is repeated if a run changes the table meanwhile.
MOST_READS = 5


@dataclass(frozen=True)
class CaptionTable:
    """Captions of many pictures, each with a key of its own."""

    name: str
    path: str
    rows: pa.Table  # of ROWS
    notes: tuple[str, ...] = ()  # about lines that could not be read
    # A digest of the captioner's vocabulary, if the table has the columns of TRUE_WORDS.
    vocabulary: str = ""
    is_narrowed: bool = False  # by --only: other rows of the table are not looked at


def names_and_paths(tables: Sequence[str]) -> list[tuple[str, str]]:
    """The name and the path of each table that is given as PATH or NAME=PATH."""
    given = []
    for table in tables:
        name, equals, path = table.partition("=")
        is_named = equals and "/" not in name and not locate(table).exists()
        given.append((name, path) if is_named else ("", table))
    short_names = []
    for name, path in given:
        last = path.rstrip("/").rpartition("/")[2]
        short_names.append(name or last.split(".")[0] or last)
    # If two short names are equal (runs/a/captions, runs/b/captions), the path is the name.
    named = []
    for short, (name, path) in zip(short_names, given, strict=True):
        is_unclear = short_names.count(short) > 1 and not name
        named.append((path if is_unclear else short, path))
    names = [name for name, _ in named]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{', '.join(sorted(repeated))} is given twice: give NAME=PATH where two tables share "
            "a name"
        )
    return named


def read_captions(
    path: str, name: str, key_column: str = "", caption_column: str = "", only: str = ""
) -> CaptionTable:
    """Read the table at a path, glob or URI, or the rows of it that --only chooses. Raises
    UserError if it is not a caption table, or has a key twice."""
    columns = Columns(key_column, caption_column, only)
    parts, notes = _all_rows(path, columns)
    if only and not any(map(len, parts)):
        raise UserError(nothing(f"no row of {path} fits --only {only}", notes))
    if not parts:
        raise UserError(nothing(f"{path} holds no rows", notes))
    rows = pa.concat_tables(parts)
    seen: set[str] = set()
    repeated = []
    for key in rows["key"].to_pylist():
        if key in seen:
            repeated.append(key)
        seen.add(key)
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} key(s) are there twice ({', '.join(repeated[:3])}, ...): a "
            "picture has one caption; keep the one to judge"
        )
    vocabulary = ""
    if rows["true_count"].null_count < len(rows):
        # Tables of raycap have a digest of the vocabulary in their metadata.
        files = () if path.lower().endswith(".json") else table_files(path)
        parquet = next((file for file in files if file.format == "parquet"), None)
        metadata: dict[bytes, bytes] = (parquet.schema().metadata or {}) if parquet else {}
        vocabulary = metadata.get(b"vocabulary", b"unknown").decode()[:8]
    return CaptionTable(name, path, rows, tuple(notes.lines()), vocabulary, bool(only))


def table_files(path: str) -> list[Records]:
    """The files of a table: for a Delta table those of its newest version, for another folder all
    files whose names do not begin with '_' (these belong to an unfinished run)."""
    return records(path, private=False)


@dataclass(frozen=True)
class Columns:
    """The columns of keys and captions that the user named; "" to look for the usual names. And
    the rows that are read."""

    key: str
    caption: str
    only: str = ""

    def find(self, names: Sequence[str], uri: str) -> tuple[str, str]:
        """The two columns among those of a file."""
        return (
            _find_column(names, self.key, KEY_NAMES, "keys", "--key-column", uri),
            _find_column(names, self.caption, CAPTION_NAMES, "captions", "--caption-column", uri),
        )

    def filter_of(self, file: Records) -> RowFilter | None:
        """What chooses the rows of a file; None for all."""
        if not self.only:
            return None
        if file.format == "parquet":
            return RowFilter(self.only, file.schema())
        return self.filter_of_names(file.names())

    def filter_of_names(self, names: Sequence[str]) -> RowFilter:
        """What chooses the rows of a file without types."""
        return RowFilter(self.only, pa.schema([(name, pa.string()) for name in names]), names)


def _find_column(
    names: Sequence[str], given: str, usual: Sequence[str], what: str, flag: str, uri: str
) -> str:
    if given:
        if given in names:
            return given
        raise UserError(f"{uri} has no column {given!r} ({flag}); it has {', '.join(names)}")
    plain = {name.strip().lower(): name for name in reversed(names)}
    found = next((plain[name] for name in usual if name in plain), None)
    if found is None:
        raise UserError(
            f"{uri} has no column with a usual name for {what} ({', '.join(usual[:5])}, ...); it "
            f"has {', '.join(names) or 'none'}: {flag} names one"
        )
    return found


def _all_rows(path: str, columns: Columns) -> tuple[list[pa.Table], Notes]:
    if path.lower().endswith(".json"):
        place, notes = existing(path), Notes()
        if first_line(place).lstrip().startswith(("[", "{")):
            return [
                _as_rows(piece, columns) for piece in _json_pieces(place, columns, notes)
            ], notes
    files = table_files(path)
    for _ in range(MOST_READS):
        notes = Notes()
        try:
            return [_as_rows(piece, columns) for piece in _pieces(files, columns, notes)], notes
        except UserError:
            # A run may have replaced files of the table after they were listed.
            earlier, files = files, table_files(path)
            if files == earlier:
                raise
    raise UserError(f"{path} changes faster than it can be read: wait until its run is finished")


def _pieces(files: list[Records], columns: Columns, notes: Notes) -> Iterator[RowBatch]:
    for records_file in files:
        names = records_file.names()
        wanted = [name for name in ROWS.names if name in names]
        wanted += columns.find(names, records_file.file.uri)
        only = columns.filter_of(records_file)
        wanted += only.columns if only else ()
        superset = only.for_parquet() if only and records_file.format == "parquet" else None
        for piece in records_file.batches(
            list(dict.fromkeys(wanted)), [], notes, superset=superset
        ):
            yield _chosen(piece, only)


def _chosen(piece: RowBatch, only: RowFilter | None) -> RowBatch:
    """The rows of a piece that --only chooses."""
    if only is None:
        return piece
    mask = only.mask(piece.columns)
    where = list(itertools.compress(piece.where, mask.tolist()))
    return RowBatch(piece.columns.filter(pa.array(mask)), where, piece.file)


def _json_pieces(place: Location, columns: Columns, notes: Notes) -> Iterator[RowBatch]:
    """Read COCO results, which are one JSON list, or JSON lines in a file with the ending
    .json."""
    with place.open() as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            if first_line(place).rstrip().endswith("}"):
                lines = Records(place, "jsonl")
                only = columns.filter_of(lines)
                for batch in lines.batches(lines.names(), [], notes):
                    yield _chosen(batch, only)
                return
            raise UserError(f"{place.uri} is not JSON: {error}") from error
    if isinstance(rows, dict) and "caption" in rows:
        rows = [rows]  # JSON lines, of which there is one
    if not isinstance(rows, list):
        raise UserError(
            f"{place.uri} holds a JSON {type(rows).__name__}: COCO results are a list of objects "
            'such as {"image_id": 42, "caption": "a dog"}'
        )
    for row in rows:
        if not isinstance(row, dict):
            notes.add(MALFORMED_LINE, f"{place.name}: {brief(row)!r}")
    for piece in batched(enumerate((row for row in rows if isinstance(row, dict)), 1)):
        names = list(dict.fromkeys(name for _, row in piece for name in row))
        texts = {
            name: pa.array([_text(row.get(name)) for _, row in piece], pa.string())
            for name in names
        }
        batch = RowBatch(pa.table(texts), [f"row {number}" for number, _ in piece], place)
        yield _chosen(batch, columns.filter_of_names(names) if columns.only else None)


def _as_rows(piece: RowBatch, columns: Columns) -> pa.Table:
    """Convert a piece to the schema ROWS."""
    names, uri = piece.columns.column_names, piece.file.uri
    column_of = {name: name for name in ROWS.names if name in names}
    column_of["key"], column_of["caption"] = columns.find(names, uri)
    defaults: dict[str, Any] = {
        "status": SUCCESS,
        "alternatives": [],
        "flags": [],
        **dict.fromkeys(NUMBERS),
    }
    arrays = {}
    for field in ROWS:
        if field.name in column_of:
            given = piece.columns[column_of[field.name]].to_pylist()
            values = [_value(field, value, piece, row) for row, value in enumerate(given)]
        else:
            values = [defaults.get(field.name, "")] * len(piece.where)
        try:
            arrays[field.name] = pa.array(values, field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            column = column_of.get(field.name, field.name)
            raise UserError(f"the column {column} of {uri} holds no {field.name}") from error
    return pa.table(arrays)


def _value(field: pa.Field, value: Any, piece: RowBatch, row: int) -> Any:
    """Convert one cell. In text formats, numbers and lists are text."""
    is_number = field.name in NUMBERS
    if field.name == "flags":  # a column of this name in other people's tables holds anything
        given = value if isinstance(value, list) else _flags_in_text(_text(value) or "")
        return [str(flag) for flag in given]
    if not is_number and field.name != "alternatives":
        if field.name == "status" and not value:
            return SUCCESS
        return _text(value) or ""
    if not isinstance(value, str):
        return value if is_number else value or []
    try:
        parsed = json.loads(value) if value.strip() else None
        if is_number and parsed is not None:
            return float(parsed) if pa.types.is_floating(field.type) else int(parsed)
        if is_number:
            return None
        return [{"caption": str(one["caption"]), "score": one["score"]} for one in parsed or []]
    except (ValueError, TypeError, KeyError) as error:
        where = f"{piece.file.uri} {piece.where[row]}"
        raise UserError(f"{where}: {value[:60]!r} is no {field.name}") from error


def _flags_in_text(text: str) -> list[str]:
    """The flags in a cell of a text format: a JSON list, or words."""
    with contextlib.suppress(ValueError):
        parsed = json.loads(text)
        if isinstance(parsed, list):
            return parsed
    return text.replace(",", " ").split()


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, list | dict | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
