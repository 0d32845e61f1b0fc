"""A table with a column of URLs or paths: CSV, TSV, JSON lines or Parquet."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.keys import NumberedKeys
from raycap.sources.lines import Span, first_line, name_unpacked
from raycap.sources.manifest import FIRST_ROWS
from raycap.sources.notes import Notes, nothing
from raycap.sources.pieces import Unit, tell_changes, unchanged, units_of_files
from raycap.sources.records import (
    CUTS,
    Records,
    RowBatch,
    format_of,
    is_glob,
    records,
    references_of,
    root_of,
    texts,
)
from raycap.sources.seen_keys import SeenKeys
from raycap.sources.source import SourceDefaults, UnitKeys, compared
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_word
from raycap.sources.urls import resolved
from raycap.storage.location import Location, locate
from raycap.uris import has_scheme

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq")
_URL_NAMES = (
    *("url", "image_url", "img_url", "uri", "image_uri", "link", "href", "src"),
    *("image", "img", "picture"),
)
_FILE_NAMES = (
    *("path", "file_path", "filepath", "image_path"),
    *("file", "file_name", "filename", "image_name"),
)
_REFERENCE_NAMES = ("references", "captions", "caption")


@dataclass(frozen=True)
class Table(SourceDefaults):
    """A table of pictures: CSV, TSV, JSON lines (each plain, gzip, bzip2, xz or zstd) or Parquet.

    The key is the URL, or what `key_column` holds; a URL that occurs again has '#2', '#3', ...
    behind its key. A row without URL stays a row. Malformed lines are left out and counted.
    """

    path: str
    """The file, a glob of files, or a folder of Parquet: a path or any fsspec URI."""
    column: str = ""
    """The column of URLs or paths. Empty: the first of the usual names (url, image_url, ...,
    path, file_name)."""
    key_column: str = ""
    """The column of keys, each different. Empty: the URL is the key."""
    split_column: str = ""
    """The column of splits, if any."""
    fractions: Fractions | None = None
    """Draw splits by the pictures' names, not as the data says: the parts for train, dev, test."""
    references: tuple[str, ...] = ()
    """Columns of human captions, each text or a list; 'auto': references, captions and caption if
    present."""
    columns: tuple[str, ...] = ()
    """Other columns to carry through to the output."""
    local: bool | None = None
    """Whether the column holds paths, relative to the table's folder. None: if the column's name
    says so (path, file_name, ...). Files that are not below that folder need --fetch.trust."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    """The format, if file names do not tell it; csv is any delimited text."""

    # Columns that are read for --only: see `comparing`.
    _others: ClassVar[tuple[str, ...]] = ()
    _lists: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def accepts(cls, path: str) -> bool:
        if not is_glob(path):
            return False
        format_of(path)  # raises UserError if the ending is not that of a table
        return True

    @classmethod
    def recognises(cls, file: Location) -> bool:
        name = name_unpacked(file.name)
        is_json_lines = name.endswith(".json") and first_line(file).rstrip().endswith("}")
        return name.endswith(ENDINGS) or is_json_lines

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        if self.columns and (taken := sorted(set(self.columns) & reserved_names())):
            raise UserError(
                f"cannot carry {', '.join(taken)}: raycap has columns of that name; "
                "rename yours first"
            )
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"--source.columns names a column twice: {', '.join(self.columns)}")

    @property
    def trust(self) -> Trust:
        return Trust.below(root_of(self.path).uri)

    @property
    def names_urls(self) -> bool:
        return not self._holds_paths()

    def _holds_paths(self, column: str = "") -> bool:
        """Reads the header where the column's name decides, if it is not given."""
        if self.local is not None:
            return self.local
        column = column or self._column(records(self.path, self.format)[0].names())
        return _plain(column) in _FILE_NAMES

    @property
    def carried(self) -> tuple[str, ...]:
        return self.columns

    def own_columns(self) -> "dict[str, pa.DataType | None]":
        from raycap.schema import storable  # here, so that `raycap --help` stays quick

        first = records(self.path, self.format)[0]
        if first.format != "parquet":
            return dict.fromkeys(first.names())
        return {field.name: storable(field.type) or field.type for field in first.schema()}

    def comparing(self, names: Sequence[str], lists: Sequence[str]) -> "Table":
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _TableWithOthers(**options, _others=tuple(names), _lists=tuple(lists))

    def check(self) -> None:
        column = self._column(records(self.path, self.format)[0].names())
        notes = Notes()
        first = next(self._batches(notes), None)
        if first is None:
            usable = "usable " if notes.left_out() else ""
            raise UserError(nothing(f"{self.path} has no {usable}rows", notes))
        tried = [uri for uri in texts(first, column)[:FIRST_ROWS] if uri]
        if tried and not self._holds_paths() and not any(map(has_scheme, tried)):
            raise UserError(
                f"column {column} of {first.file.uri} holds no URLs (the first: "
                f"{tried[0][:100]!r}); --source.local True if they are paths of files of yours, "
                "--source.column for another column"
            )

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        files = records(self.path, self.format, notes)
        numbered, seen = NumberedKeys(), SeenKeys()
        empty = True
        for batch, names, table in self._manifests(files[0], files, notes):
            keys = self._unique_keys(batch, names, seen) if self.key_column else numbered.of(names)
            table = _with_keys(table, keys)
            if empty:  # a few rows at once, so that work can start on them
                yield table.slice(0, FIRST_ROWS)
                table = table.slice(FIRST_ROWS)
            empty = False
            if len(table):
                yield table
        if empty:
            raise UserError(nothing(f"no row in {self.path}", notes))
        numbered.note_repeats(self.key_word, notes)

    @property
    def unit_keys(self) -> UnitKeys:
        return "given" if self.key_column else "named"

    @property
    def key_word(self) -> str:
        return "URL"

    def units(self) -> tuple[str, ...]:
        """Parts of the files, and behind them the search for files if it notes something."""
        notes = Notes()
        files = records(self.path, self.format, notes)
        found = units_of_files(
            [file.file for file in files], [CUTS[file.format] for file in files]
        )
        return (*found, "") if len(found) > 1 and notes.lines() else found

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        return tell_changes(units)

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        if not unit:
            records(self.path, self.format, notes)
            return
        first, pieces = Unit.parse(unit)
        files = (self._records(piece.file, piece.part) for piece in unchanged(pieces, notes))
        for _, names, table in self._manifests(self._records(locate(first)), files, notes):
            if self.key_column and not all(names):
                self._refuse_empty_key()
            yield table

    def _records(self, file: Location, part: Span | None = None) -> Records:
        return Records(file, format_of(file.name) if self.format == "auto" else self.format, part)

    def _manifests(
        self, first: Records, files: Iterable[Records], notes: Notes
    ) -> "Iterator[tuple[RowBatch, list[str], pa.Table]]":
        """The rows of files with their names as keys. The first file of the source decides which
        columns there are, of which types."""
        names = first.names()
        column = self._column(names)
        holds_paths = self._holds_paths(column)
        wanted, references = self._wanted(names)
        types: pa.Schema | None = None
        for file in files:
            for batch in file.batches(wanted, [*references, *self._lists], notes):
                if types is None:
                    types = _types_of(first, self.columns)
                    other_types = _types_of(first, self._others, self._lists)
                uris = texts(batch, column)
                keys = texts(batch, self.key_column) if self.key_column else uris
                splits = drawn_splits(uris, self.fractions)
                if not splits and self.split_column:
                    splits = [split_word(word) for word in texts(batch, self.split_column)]
                own = _carried(batch, self.columns, types)
                if self._others:
                    others = _carried(batch, self._others, other_types)
                    own = _with_others(own, others)
                table = _manifest(
                    keys,
                    [resolved(uri, batch.file.parent) for uri in uris] if holds_paths else uris,
                    splits or [""] * len(uris),
                    references_of(batch, references),
                    own,
                )
                yield batch, keys, table

    def _batches(self, notes: Notes) -> Iterator[RowBatch]:
        files = records(self.path, self.format, notes)
        wanted, references = self._wanted(files[0].names())
        for file in files:
            yield from file.batches(wanted, references, notes)

    def _column(self, names: Sequence[str]) -> str:
        """The column of URLs or paths, among the table's columns."""
        if self.column:
            return self.column
        by_plain_name = {_plain(name): name for name in reversed(names)}
        for usual in (*_URL_NAMES, *_FILE_NAMES):
            if usual in by_plain_name:
                return by_plain_name[usual]
        raise UserError(
            f"{self.path} has no column with one of the usual names for URLs "
            f"({', '.join(_URL_NAMES[:4])}, ..., {', '.join(_FILE_NAMES[:2])}, ...); it has "
            f"{', '.join(names) or 'none'}: --source.column names one"
        )

    def _wanted(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The columns to read, and those of them that hold human captions."""
        references = [name for name in self.references if name != "auto"]
        if "auto" in self.references:
            references = [name for name in _REFERENCE_NAMES if name in names] + references
        references = list(dict.fromkeys(references))
        single = [self._column(names), self.key_column, self.split_column]
        wanted = [*filter(None, single), *references, *self.columns, *self._others]
        return list(dict.fromkeys(wanted)), references

    def _unique_keys(self, batch: RowBatch, keys: list[str], seen: SeenKeys) -> list[str]:
        for key, seen_before in zip(keys, seen.add(keys), strict=True):
            if not key:
                self._refuse_empty_key()
            # Two different keys may have the same digest.
            if seen_before and len(self._places_of(key)) > 1:
                self.refuse_repeated(key)
        return keys

    def _refuse_empty_key(self) -> NoReturn:
        raise UserError(
            f"{self._places_of('')[0]} has an empty {self.key_column}: every row needs a key of "
            "its own"
        )

    def refuse_repeated(self, key: str) -> NoReturn:
        raise UserError(
            f"the key {key!r} occurs twice: {' and '.join(self._places_of(key))}; "
            "--source.key-column takes unique keys"
        )

    def _places_of(self, key: str) -> list[str]:
        """The first two rows with a key."""
        places: list[str] = []
        for batch in self._batches(Notes()):
            for found, where in zip(texts(batch, self.key_column), batch.where, strict=True):
                if found == key:
                    places.append(f"{batch.file.uri} {where}")
            if len(places) > 1:
                break
        if not places:
            raise UserError(f"{self.path} changed while it was read")
        return places[:2]


@dataclass(frozen=True)
class _TableWithOthers(Table):
    """The same table with columns that are read for --only. They are no options."""

    _others: tuple[str, ...] = ()  # type: ignore[misc]
    _lists: tuple[str, ...] = ()  # type: ignore[misc]


def reserved_names() -> set[str]:
    """Returns the names of columns that raycap makes: in its tables, and while it loads them."""
    from raycap.schema import CAPTIONS, MANIFEST  # here, so that `raycap --help` stays quick

    return {*MANIFEST.names, *CAPTIONS.names, "embedded", "format", "pixels", "_fetched"}


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _types_of(first: Records, names: Sequence[str], lists: Sequence[str] = ()) -> "pa.Schema":
    """The types of the user's own columns: a stream has one schema. `lists` are lists of text in
    formats without types."""
    import pyarrow as pa

    if first.format != "parquet":
        texts, many = pa.string(), pa.list_(pa.string())
        return pa.schema([pa.field(name, many if name in lists else texts) for name in names])
    types = [first.schema().field(name).type for name in names]
    return pa.schema(
        [
            pa.field(name, pa.string() if pa.types.is_null(type) else type)
            for name, type in zip(names, types, strict=True)
        ]
    )


def _carried(batch: RowBatch, names: Sequence[str], types: "pa.Schema") -> "pa.Table":
    """The user's own columns, with these types."""
    import pyarrow as pa

    try:
        return batch.columns.select(list(names)).cast(types)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"columns of {batch.file.uri} are of other types than in the files before: {error}"
        ) from error


def _with_others(own: "pa.Table", others: "pa.Table") -> "pa.Table":
    """Both, the others under the names that --only looks for."""
    import pyarrow as pa

    columns = dict(zip(own.column_names, own.columns, strict=True))
    names = [compared(name) for name in others.column_names]
    return pa.table(columns | dict(zip(names, others.columns, strict=True)))


def _with_keys(table: "pa.Table", keys: list[str]) -> "pa.Table":
    import pyarrow as pa

    index = table.column_names.index("key")
    return table.set_column(index, table.schema.field(index), pa.array(keys, pa.string()))


def _manifest(
    keys: list[str],
    uris: list[str],
    splits: list[str],
    references: list[list[str]],
    carried: "pa.Table",
) -> "pa.Table":
    import pyarrow as pa

    from raycap.schema import MANIFEST, fit

    none = pa.nulls(len(keys), pa.large_binary())
    columns = (keys, uris, splits, references, none, [""] * len(keys))
    named = {
        field.name: pa.array(column, field.type)
        for field, column in zip(MANIFEST, columns, strict=True)
    }
    named |= dict(zip(carried.column_names, carried.columns, strict=True))
    return fit(pa.table(named), MANIFEST, carried.column_names)
