"""Caption tables as people have them, in one form: raycap's own Parquet, COCO results, CSV, JSON lines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.errors import UserError
from raycap.schema import CAPTIONS, SUCCESS, TRUE_WORDS
from raycap.sources.lines import first_line
from raycap.sources.manifest import batched, brief, utf8
from raycap.sources.notes import MALFORMED_LINE, Notes, nothing
from raycap.sources.records import Records, RowBatch, records
from raycap.storage.location import Location, existing, locate

# What is read of a table; what a form lacks is "", null or an empty list, and the status is success.
ROWS = pa.schema(
    [
        *(
            CAPTIONS.field(name)
            for name in CAPTIONS.names
            if name not in ("width", "height", "sha256")
        ),
        *TRUE_WORDS,
    ]
)
NUMBERS = ("score", *TRUE_WORDS.names)
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


@dataclass(frozen=True)
class CaptionTable:
    """Captions of many pictures, each under a key of its own."""

    name: str
    path: str
    rows: pa.Table  # of ROWS
    notes: tuple[str, ...] = ()  # oddities of the file that cost lines
    vocabulary: str = (
        ""  # which words the captioner knows, where the table says how well it foretells others
    )


def names_and_paths(tables: Sequence[str]) -> list[tuple[str, str]]:
    """What each is called, and where it is, of PATH or NAME=PATH."""
    given = [_name_and_path(table) for table in tables]
    short = [name or _short(path) for name, path in given]
    # Of runs/a/captions and runs/b/captions the whole paths.
    names = [
        path if short.count(brief) > 1 and not name else brief
        for brief, (name, path) in zip(short, given, strict=True)
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{', '.join(sorted(repeated))} is given twice: give NAME=PATH where two tables share a name"
        )
    return [(name, path) for name, (_, path) in zip(names, given, strict=True)]


def read(path: str, name: str, key_column: str = "", caption_column: str = "") -> CaptionTable:
    """The table at a path, glob or URI; a refusal where it is no caption table or a key stands twice."""
    notes = Notes()
    parts = [
        _rows(piece, key_column, caption_column)
        for piece in _pieces(path, key_column, caption_column, notes)
    ]
    if not parts:
        raise UserError(nothing(f"{path} holds no rows", notes))
    rows = pa.concat_tables(parts)
    _refuse_repeated(rows["key"].to_pylist(), path)
    foretold = rows["true_count"].null_count < len(rows)
    return CaptionTable(
        name, path, rows, tuple(notes.lines()), _vocabulary(path) if foretold else ""
    )


def _name_and_path(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    return (
        (name, path) if equals and "/" not in name and not locate(given).exists() else ("", given)
    )


def _short(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return name.split(".")[0] or name


def _pieces(path: str, key_column: str, caption_column: str, notes: Notes) -> Iterator[RowBatch]:
    if path.lower().endswith(".json") and first_line(place := existing(path)).lstrip().startswith(
        ("[", "{")
    ):
        yield from _json_pieces(place, notes)
        return
    for file in files_of(path):
        names = file.names()
        wanted = [name for name in ROWS.names if name in names]
        wanted += [_column(names, key_column, KEY_NAMES, "keys", "--key-column", file.file.uri)]
        wanted += [
            _column(
                names,
                caption_column,
                CAPTION_NAMES,
                "captions",
                "--caption-column",
                file.file.uri,
            )
        ]
        yield from file.batches(list(dict.fromkeys(wanted)), [], notes)


def _vocabulary(path: str) -> str:
    """As raycap's own tables note it."""
    files = () if path.lower().endswith(".json") else files_of(path)
    parquet = next((file for file in files if file.format == "parquet"), None)
    noted: dict[bytes, bytes] = (parquet.schema().metadata or {}) if parquet else {}
    return noted.get(b"vocabulary", b"unknown").decode()[:8]


def files_of(path: str) -> list[Records]:
    """Those of a folder without what a run has under way there, in folders that begin with '_'."""
    place, found = locate(path), records(path)
    if not place.is_folder():
        return found
    return [file for file in found if "/_" not in file.file.path[len(place.path) :]]


def _json_pieces(place: Location, notes: Notes) -> Iterator[RowBatch]:
    """COCO results are one JSON list; a file that is none may still hold a JSON object in each line."""
    with place.open() as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            if first_line(place).rstrip().endswith("}"):
                lines = Records(place, "jsonl")
                yield from lines.batches(lines.names(), [], notes)
                return
            raise UserError(f"{place.uri} is not JSON: {error}") from error
    if isinstance(rows, dict) and "caption" in rows:
        rows = [rows]  # JSON lines, of which there is one
    if not isinstance(rows, list):
        raise UserError(
            f"{place.uri} holds a JSON {type(rows).__name__}: captions in COCO's form are a list of objects such "
            'as {"image_id": 42, "caption": "a dog"}'
        )
    for row in (row for row in rows if not isinstance(row, dict)):
        notes.add(MALFORMED_LINE, f"{place.name}: {brief(row)!r}")
    found = enumerate((row for row in rows if isinstance(row, dict)), 1)
    for piece in batched(found):
        names = list(dict.fromkeys(name for _, row in piece for name in row))
        columns = {
            name: pa.array([_text(row.get(name)) for _, row in piece], pa.string())
            for name in names
        }
        yield RowBatch(pa.table(columns), [f"row {number}" for number, _ in piece], place)


def _rows(piece: RowBatch, key_column: str, caption_column: str) -> pa.Table:
    """A piece of any form as ROWS."""
    names = piece.columns.column_names
    named = {name: name for name in ROWS.names if name in names}
    named["key"] = _column(names, key_column, KEY_NAMES, "keys", "--key-column", piece.file.uri)
    named["caption"] = _column(
        names, caption_column, CAPTION_NAMES, "captions", "--caption-column", piece.file.uri
    )
    defaults: dict[str, Any] = {"status": SUCCESS, "alternatives": [], **dict.fromkeys(NUMBERS)}
    columns = {}
    for field in ROWS:
        if field.name in named:
            column = piece.columns[named[field.name]].to_pylist()
            columns[field.name] = [
                _value(field, value, piece, row) for row, value in enumerate(column)
            ]
        else:
            columns[field.name] = [defaults.get(field.name, "")] * len(piece.where)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values, ROWS.field(name).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"the column {named.get(name, name)} of {piece.file.uri} holds no {name}"
            ) from error
    return pa.table(arrays)


def _value(field: pa.Field, value: Any, piece: RowBatch, row: int) -> Any:
    """One cell; text formats hold numbers and lists as text."""
    if field.name not in (*NUMBERS, "alternatives"):
        return SUCCESS if field.name == "status" and not value else _text(value) or ""
    if not isinstance(value, str):
        return value if field.name in NUMBERS else value or []
    try:
        read = json.loads(value) if value.strip() else None
        if field.name in NUMBERS:
            return (
                None
                if read is None
                else float(read)
                if pa.types.is_floating(field.type)
                else int(read)
            )
        return [{"caption": str(one["caption"]), "score": one["score"]} for one in read or []]
    except (ValueError, TypeError, KeyError) as error:
        where = f"{piece.file.uri} {piece.where[row]}"
        raise UserError(f"{where}: {value[:60]!r} is no {field.name}") from error


def _column(
    names: Sequence[str], given: str, usual: Sequence[str], what: str, flag: str, uri: str
) -> str:
    """The column of that name, else the first of the usual names."""
    if given:
        if given in names:
            return given
        raise UserError(f"{uri} has no column {given!r} ({flag}); it has {', '.join(names)}")
    plain = {name.strip().lower(): name for name in reversed(names)}
    found = next((plain[name] for name in usual if name in plain), None)
    if found is None:
        raise UserError(
            f"{uri} has no column named as usual for {what} ({', '.join(usual[:5])}, ...); it has "
            f"{', '.join(names) or 'none'}: {flag} names one"
        )
    return found


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else utf8(value)
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict | bool)
        else str(value)
    )


def _refuse_repeated(keys: list[str], path: str) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    raise UserError(
        f"{path}: {len(twice)} key(s) stand twice ({', '.join(twice[:3])}, ...): one caption belongs to a picture; "
        "keep the one to judge"
    )
