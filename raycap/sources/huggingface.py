"""Datasets as Hugging Face lays them out: pictures beside a metadata file, or Parquet with pictures inside."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.annotated import leads_out
from raycap.sources.folder import key_of
from raycap.sources.keys import NumberedKeys
from raycap.sources.listing import walk
from raycap.sources.notes import UNUSABLE_FILE, Notes, nothing
from raycap.sources.records import Records, RowBatch, format_of, references_of, texts
from raycap.sources.rows import FIRST_ROWS, Row, tables
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_in, split_word
from raycap.sources.urls import note_repeats
from raycap.storage.location import Location, existing

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = re.compile(r"metadata\.(jsonl|csv|parquet)", re.IGNORECASE)
PARQUET = re.compile(r".*\.parquet", re.IGNORECASE)
_CAPTIONS = ("references", "captions", "sentences", "texts", "caption", "text", "raw")
_NUMBERED = re.compile(r"(text|caption)_?\d+", re.IGNORECASE)
_FILE_NAMES = ("file_name", "image_file_name")
_PICTURE_NAMES = ("filename", "file_name", "image_name")


@dataclass(frozen=True)
class HuggingFace:
    """A local dataset folder or hf://datasets/OWNER/NAME: metadata.jsonl, .csv or .parquet beside the pictures
    (imagefolder), or Parquet with the pictures' bytes inside.

    The key is the file's path below the folder or, of embedded pictures, their file name; where they have none, the
    Parquet file's path and the row ('data/train-00000.parquet/17'). A key met again has '#2', '#3', ... behind.
    """

    path: str
    """The dataset's folder, one metadata file or one Parquet file: a path or any fsspec URI."""
    picture_column: str = ""
    """The column with embedded pictures. Empty: the first that holds bytes."""
    captions: tuple[str, ...] = ()
    """Columns of human captions, each text or a list. Empty: text, caption, captions, caption_0, ... if present."""
    split_column: str = "split"
    """The column of splits, where there is one; else files or folders named train, validation, test tell."""
    fractions: Fractions | None = None
    """Draw splits by the pictures' names, whatever the data says: how much goes to train, dev and test."""

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        place = existing(self.path)
        return Trust.below(place.uri if place.is_folder() else place.parent.uri)

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        next(self._rows(Notes(), NumberedKeys()), None)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(
            self._rows(notes, NumberedKeys()), lambda: nothing(f"no row in {self.path}", notes)
        )

    def _rows(self, notes: Notes, keys: NumberedKeys) -> Iterator[Row]:
        root = existing(self.path)
        root = root if root.is_folder() else root.parent
        for file in self._files(notes):
            below = file.parent.path[len(root.path) :].strip("/")
            split = next(filter(None, map(split_in, [file.name, *reversed(below.split("/"))])), "")
            if METADATA.fullmatch(file.name):
                yield from self._beside(file, below and below + "/", split, notes, keys)
            else:
                yield from self._inside(file, below and below + "/", split, notes, keys)
        note_repeats(keys, "file name", notes)

    def _files(self, notes: Notes) -> list[Location]:
        place = existing(self.path)
        if not place.is_folder():
            return [place]
        beside, inside = [], []
        for found in walk(place, notes):
            name = found.path.rpartition("/")[2]
            is_metadata = METADATA.fullmatch(name) is not None
            if found.is_folder or not (is_metadata or PARQUET.fullmatch(name)):
                continue
            if found.error:
                notes.add(UNUSABLE_FILE, f"{(place / found.path).uri}: {found.error}")
            elif is_metadata:
                beside.append(place / found.path)
            else:
                inside.append(place / found.path)
        if not beside and not inside:
            looked_for = "metadata.jsonl, metadata.csv or *.parquet"
            raise UserError(
                nothing(f"no {looked_for} in {place.uri} or the folders below it", notes)
            )
        return sorted(beside or inside, key=lambda file: file.path)

    def _beside(
        self, file: Location, below: str, split: str, notes: Notes, keys: NumberedKeys
    ) -> Iterator[Row]:
        """Rows of a metadata file, which names pictures relative to its own folder."""
        records = Records(file, format_of(file.name))
        names = records.names()
        name_column = next((name for name in _FILE_NAMES if name in names), None)
        if name_column is None:
            raise UserError(
                f"{file.uri} has no column {' or '.join(_FILE_NAMES)}; it has {', '.join(names)}"
            )
        references = self._references(names)
        wanted = dict.fromkeys([name_column, *self._own_split(names), *references])
        for piece in records.pieces(list(wanted), references, notes):
            pictures = texts(piece, name_column)
            paths = [key_of(below + name) for name in pictures]
            named = zip(keys.of(paths), pictures, strict=True)
            facts = zip(
                self._splits(piece, split, paths), references_of(piece, references), strict=True
            )
            for (key, name), (word, said) in zip(named, facts, strict=True):
                uri, error = _uri_and_error(file, name)
                yield Row(key, uri, word, said, error=error)

    def _inside(
        self, file: Location, below: str, split: str, notes: Notes, keys: NumberedKeys
    ) -> Iterator[Row]:
        """Rows of a Parquet file with the pictures' bytes."""
        records = Records(file, "parquet")
        names = records.names()
        column = self.picture_column or picture_column(records.schema())
        if column not in names:
            raise UserError(
                f"{file.uri} has no column {column or 'with pictures'}; it has {', '.join(names)}"
            )
        name_column = [name for name in _PICTURE_NAMES if name in names][:1]
        references = self._references(names)
        wanted = dict.fromkeys([column, *name_column, *self._own_split(names), *references])
        for piece in records.pieces(list(wanted), references, notes, most_rows=FIRST_ROWS):
            pictures = [_bytes_and_path(value) for value in piece.columns[column].to_pylist()]
            given = texts(piece, name_column[0]) if name_column else [path for _, path in pictures]
            places = [f"{file.name}/{row.removeprefix('row ')}" for row in piece.where]
            by_place = [key_of(below + place) for place in places]
            names_of = [name or place for name, place in zip(given, by_place, strict=True)]
            shown = (
                given if not self.fractions else _told_apart(given, [data for data, _ in pictures])
            )
            splits = self._splits(piece, split, shown)
            facts = zip(keys.of(names_of), splits, references_of(piece, references), strict=True)
            for (data, path), place, (key, word, said) in zip(
                pictures, places, facts, strict=True
            ):
                if data is None:
                    uri, error = _uri_and_error(file, path)
                else:
                    uri, error = (file.parent / place).uri, ""
                yield Row(key, uri, word, said, data, error)

    def _own_split(self, names: Sequence[str]) -> list[str]:
        return [self.split_column] if self.split_column in names else []

    def _splits(self, piece: RowBatch, split: str, pictures: list[str]) -> list[str]:
        if drawn := drawn_splits(pictures, self.fractions):
            return drawn
        if self.split_column in piece.columns.column_names:
            return [split_word(word) for word in texts(piece, self.split_column)]
        return [split] * len(piece.where)

    def _references(self, names: Sequence[str]) -> list[str]:
        """The columns of captions: those given, or the first of the usual names, or caption_0, caption_1, ..."""
        if self.captions:
            return list(self.captions)
        usual = next((name for name in _CAPTIONS if name in names), None)
        return [usual] if usual else sorted(name for name in names if _NUMBERED.fullmatch(name))


def picture_column(schema: "pa.Schema") -> str:
    """The first column that holds pictures: bytes, or Hugging Face's struct of bytes and path; "" for none."""
    import pyarrow as pa  # here, so that `raycap --help` stays quick

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
        return is_bytes(kind)

    return next((str(field.name) for field in schema if holds_bytes(field.type)), "")


def _bytes_and_path(value: Any) -> tuple[bytes | None, str]:
    """Either may be missing, or of another type than it should be."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        return data if isinstance(data, bytes) else None, path if isinstance(path, str) else ""
    return value if isinstance(value, bytes) else None, value if isinstance(value, str) else ""


def _told_apart(names: Sequence[str], pictures: Sequence[bytes | None]) -> list[str]:
    """Pictures without a name by their bytes: one may have a row for each of its captions."""
    return [
        name or hashlib.sha256(data or b"").hexdigest()
        for name, data in zip(names, pictures, strict=True)
    ]


def _uri_and_error(file: Location, name: str) -> tuple[str, str]:
    """Of a picture that a file names; it may not lead anywhere else."""
    if leads_out(name):
        return name, f"a picture has to lie below the file that names it: {name}"
    return (file.parent / name).uri if name else "", ""
