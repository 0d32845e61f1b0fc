"""Hugging Face datasets: pictures with a metadata file, or Parquet with pictures inside."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.annotated import leads_out
from raycap.sources.folder import key_of
from raycap.sources.keys import NumberedKeys
from raycap.sources.lines import name_unpacked
from raycap.sources.listing import walk
from raycap.sources.manifest import FIRST_ROWS, Row, tables
from raycap.sources.notes import UNUSABLE_FILE, Notes, nothing
from raycap.sources.parquet import rows_of_parquet
from raycap.sources.pieces import Unit, tell_changes, unchanged, units_of_files
from raycap.sources.records import CUTS, Records, RowBatch, format_of, references_of, texts
from raycap.sources.source import SourceDefaults, UnitKeys
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_in, split_word
from raycap.storage.delta import files_to_read, table_of_log
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = re.compile(r"metadata\.(jsonl|csv|parquet)", re.IGNORECASE)
PARQUET = re.compile(r".*\.parquet", re.IGNORECASE)
_CAPTIONS = ("references", "captions", "sentences", "texts", "caption", "text", "raw")
_NUMBERED = re.compile(r"(text|caption)_?\d+", re.IGNORECASE)
_FILE_NAMES = ("file_name", "image_file_name")
_PICTURE_NAMES = ("filename", "file_name", "image_name")

# Makes keys of the next names.
KeysOf = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class HuggingFace(SourceDefaults):
    """A local dataset folder or hf://datasets/OWNER/NAME: metadata.jsonl, .csv or .parquet beside
    the pictures (imagefolder), or Parquet with the pictures' bytes inside.

    The key is the file's path below the folder or, of embedded pictures, their file name; if they
    have none, the Parquet file's path and the row ('data/train-00000.parquet/17'). A key that
    occurs again has '#2', '#3', ... behind.
    """

    path: str
    """The dataset's folder, one metadata file or one Parquet file: a path, hf://datasets/OWNER/NAME
    (with @REVISION behind it, so that it stays the same), or any fsspec URI."""
    picture_column: str = ""
    """The column with embedded pictures. Empty: the first that holds bytes."""
    captions: tuple[str, ...] = ()
    """Columns of human captions, each text or a list. Empty: text, caption, captions,
    caption_0, ... if present."""
    split_column: str = "split"
    """The column of splits, if there is one; else from files or folders named train, validation,
    test."""
    fractions: Fractions | None = None
    """Draw splits by the pictures' names, not as the data says: the parts for train, dev, test."""

    folder_files = METADATA

    @classmethod
    def accepts(cls, path: str) -> bool:
        return path.startswith("hf://")

    @classmethod
    def recognises(cls, file: Location) -> bool:
        if METADATA.fullmatch(file.name):
            return True
        if not name_unpacked(file.name).endswith((".parquet", ".pq")):
            return False
        return picture_column(Records(file, "parquet").schema()) != ""

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        return Trust.below(self._root().uri)

    def check(self) -> None:
        next(self._rows(Notes()), None)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(self._rows(notes), lambda: nothing(f"no row in {self.path}", notes))

    def _root(self) -> Location:
        location = _existing(self.path)
        return location if location.is_folder() else location.parent

    @property
    def unit_keys(self) -> UnitKeys:
        return "named"

    @property
    def key_word(self) -> str:
        return "file name"

    def units(self) -> tuple[str, ...]:
        """Parts of the files, and behind them the search for files if it notes something."""
        notes = Notes()
        files = self._files(notes)
        found = units_of_files(files, [CUTS[format_of(file.name)] for file in files])
        return (*found, "") if len(found) > 1 and notes.lines() else found

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        return tell_changes(units)

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        if not unit:
            self._files(notes)
            return iter(())
        pieces = unchanged(Unit.parse(unit).pieces, notes)
        files = (Records(piece.file, format_of(piece.file.name), piece.part) for piece in pieces)
        return tables(self._rows_of_files(files, notes, list), None)

    def _rows(self, notes: Notes) -> Iterator[Row]:
        keys = NumberedKeys()
        files = (Records(file, format_of(file.name)) for file in self._files(notes))
        yield from self._rows_of_files(files, notes, keys.of)
        keys.note_repeats(self.key_word, notes)

    def _rows_of_files(
        self, files: Iterable[Records], notes: Notes, keys_of: "KeysOf"
    ) -> Iterator[Row]:
        root = self._root()
        for records in files:
            file = records.file
            below = file.parent.path[len(root.path) :].strip("/")
            names = [file.name, *reversed(below.split("/"))]
            split = next(filter(None, map(split_in, names)), "")
            prefix = f"{below}/" if below else ""
            if METADATA.fullmatch(file.name):
                yield from self._rows_of_metadata(records, prefix, split, notes, keys_of)
            else:
                yield from self._rows_of_parquet(records, prefix, split, notes, keys_of)

    def _files(self, notes: Notes) -> list[Location]:
        location = _existing(self.path)
        if not location.is_folder():
            return [location]
        metadata: list[Location] = []
        parquet: list[str] = []
        delta_tables: set[str] = set()
        for found in walk(location, notes):
            table = table_of_log(found.path)
            if table is not None:
                delta_tables.add(table)
                continue
            name = found.path.rpartition("/")[2]
            is_metadata = METADATA.fullmatch(name) is not None
            if found.is_folder or not (is_metadata or PARQUET.fullmatch(name)):
                continue
            if found.error:
                notes.add(UNUSABLE_FILE, f"{(location / found.path).uri}: {found.error}")
            elif is_metadata:
                metadata.append(location / found.path)
            else:
                parquet.append(found.path)
        files = metadata or files_to_read(location, parquet, delta_tables)
        if not files:
            looked_for = "metadata.jsonl, metadata.csv or *.parquet"
            raise UserError(
                nothing(f"no {looked_for} in {location.uri} or the folders below it", notes)
            )
        return sorted(files, key=lambda file: file.path)

    def _rows_of_metadata(
        self, records: Records, prefix: str, split: str, notes: Notes, keys_of: "KeysOf"
    ) -> Iterator[Row]:
        """Rows of a file that names pictures relative to its own folder."""
        file, names = records.file, records.names()
        name_column = next((name for name in _FILE_NAMES if name in names), None)
        if name_column is None:
            raise UserError(
                f"{file.uri} has no column {' or '.join(_FILE_NAMES)}; it has {', '.join(names)}"
            )
        captions = self._caption_columns(names)
        wanted = dict.fromkeys([name_column, *self._own_split(names), *captions])
        for batch in records.batches(list(wanted), captions, notes):
            pictures = texts(batch, name_column)
            paths = [key_of(prefix + name) for name in pictures]
            splits = self._splits(batch, split, paths)
            columns = (keys_of(paths), pictures, splits, references_of(batch, captions))
            for key, name, word, references in zip(*columns, strict=True):
                uri, error = _uri_and_error(file, name)
                yield Row(key, uri, word, references, error=error)

    def _rows_of_parquet(
        self, records: Records, prefix: str, split: str, notes: Notes, keys_of: "KeysOf"
    ) -> Iterator[Row]:
        """Rows of a file that holds the pictures' bytes."""
        file, names = records.file, records.names()
        column = self.picture_column or picture_column(records.schema())
        if column not in names:
            raise UserError(
                f"{file.uri} has no column {column or 'with pictures'}; it has {', '.join(names)}"
            )
        name_column = [name for name in _PICTURE_NAMES if name in names][:1]
        captions = self._caption_columns(names)
        wanted = dict.fromkeys([column, *name_column, *self._own_split(names), *captions])
        for batch in records.batches(list(wanted), captions, notes, most_rows=FIRST_ROWS):
            pictures = [_bytes_and_path(value) for value in batch.columns[column].to_pylist()]
            given = [path for _, path in pictures]
            if name_column:
                given = texts(batch, name_column[0])
            places = [f"{file.name}/{row.removeprefix('row ')}" for row in batch.where]
            picture_names = [
                name or key_of(prefix + place) for name, place in zip(given, places, strict=True)
            ]
            drawn_by = given
            if self.fractions:
                # A picture may have a row for each caption; without a name, its bytes identify it.
                drawn_by = [
                    name or hashlib.sha256(data or b"").hexdigest()
                    for name, (data, _) in zip(given, pictures, strict=True)
                ]
            splits = self._splits(batch, split, drawn_by)
            columns = (
                *(pictures, places, keys_of(picture_names)),
                *(splits, references_of(batch, captions)),
            )
            for (data, path), place, key, word, references in zip(*columns, strict=True):
                uri, error = (file.parent / place).uri, ""
                if data is None:
                    uri, error = _uri_and_error(file, path)
                yield Row(key, uri, word, references, data, error)

    def embedded_pictures(self, rows: "pa.Table") -> list[bytes | None]:
        wanted: dict[str, dict[int, int]] = {}  # file -> number of the row in it -> place here
        for place, uri in enumerate(rows["uri"].to_pylist()):
            file, _, number = uri.rpartition("/")
            wanted.setdefault(file, {})[int(number)] = place
        found: list[bytes | None] = [None] * len(rows)
        for file, places in wanted.items():
            records = Records(locate(file), "parquet")
            column = self.picture_column or picture_column(records.schema())
            for number, value in rows_of_parquet(locate(file), column, sorted(places)):
                found[places[number]] = _bytes_and_path(value)[0]
        return found

    def _own_split(self, names: Sequence[str]) -> list[str]:
        return [self.split_column] if self.split_column in names else []

    def _splits(self, batch: RowBatch, split: str, pictures: list[str]) -> list[str]:
        if drawn := drawn_splits(pictures, self.fractions):
            return drawn
        if self.split_column in batch.columns.column_names:
            return [split_word(word) for word in texts(batch, self.split_column)]
        return [split] * len(batch.where)

    def _caption_columns(self, names: Sequence[str]) -> list[str]:
        """The columns given, or the first of the usual names, or caption_0, caption_1, ..."""
        if self.captions:
            return list(self.captions)
        usual = next((name for name in _CAPTIONS if name in names), None)
        return [usual] if usual else sorted(name for name in names if _NUMBERED.fullmatch(name))


def _existing(path: str) -> Location:
    if not path.startswith("hf://"):
        return existing(path)
    location = locate(path)
    try:
        if location.exists():
            return location
        reason = "no such data set or file"
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
    raise UserError(
        f"cannot read {path}: {reason}. It is hf://datasets/OWNER/NAME or .../NAME@REVISION; a "
        "private one needs HF_TOKEN in the environment"
    )


def picture_column(schema: "pa.Schema") -> str:
    """Returns the first column of bytes, or of structs of bytes and path; "" for none."""
    import pyarrow as pa  # here, so that `raycap --help` stays quick

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
        return is_bytes(kind)

    return next((str(field.name) for field in schema if holds_bytes(field.type)), "")


def _bytes_and_path(value: Any) -> tuple[bytes | None, str]:
    """Of an embedded picture; either may be missing or of a wrong type."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        return data if isinstance(data, bytes) else None, path if isinstance(path, str) else ""
    return value if isinstance(value, bytes) else None, value if isinstance(value, str) else ""


def _uri_and_error(file: Location, name: str) -> tuple[str, str]:
    """Of a picture that a file names."""
    if leads_out(name):
        return name, f"a picture has to lie below the file that names it: {name}"
    return (file.parent / name).uri if name else "", ""
