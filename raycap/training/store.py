"""Training pictures in one local file with rows of equal size, for random access.

The table job writes features or pixels as Parquet files, from which single rows cannot be read
efficiently. So each machine unpacks a table once. The unpacked file is memory-mapped and not
loaded: memory use stays constant, and the page cache avoids repeated reads.

Splits and captions are not in these tables. They come from the listing of the source.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.errors import UserError
from raycap.schema import FEATURES_FORMAT, SUCCESS, tensor_shape, tensors_of
from raycap.sources import Source
from raycap.storage import memory, open_uri, whole_path, write_json
from raycap.storage.filesystem import filesystem_of
from raycap.training.caption_join import (
    CAPTION_COLUMNS,
    CAPTIONS,
    KEYS_AT_ONCE,
    captions_by_row,
    numbered,
    rows_of_partition,
)
from raycap.uris import is_local, local_path

LISTING = "pictures.arrow"
ROWS, KEYS, FORM = "rows.bin", "keys.arrow", "form.json"
ROWS_AT_ONCE = 128
PIECES_AT_ONCE = 100  # columns of a few rows take kilobytes, so they are written together

# Some pictures of a table: features or pixels [n, ...], and their other columns.
Piece = tuple[np.ndarray, pa.Table]


@dataclass(frozen=True)
class PictureTables:
    """The training data of a run: a table of pictures, and tables of their views (augmented
    versions).

    `listing` is a file with the splits and captions of the source, as they were at the start of
    the run. They are not in the tables, which later runs use too: captions may be corrected
    meanwhile.
    """

    tables: tuple[str, ...]
    listing: str
    precision: str = ""  # of the features, if they were made for this run
    rows: str = ""  # folder with the captions of the rows, if the table is streamed


class View(NamedTuple):
    """Augmented versions of the pictures of a store."""

    pixels_or_features: np.ndarray  # [M, ...], memory-mapped
    rows: np.ndarray  # [N] for each picture of the store its row in this view; -1 for none


@dataclass(frozen=True)
class PictureStore:
    """An unpacked table with its captions. A row has the features of a picture, [P + 1, D] in
    float16 (the grid, then the vector), or its pixels, [S, S, 3] in uint8.

    An item is a number that stands for a picture or one of its views: 0 to N - 1 are the pictures
    themselves, the next N their first views, and so on.
    """

    rows: np.ndarray  # [N, ...], memory-mapped
    captions: pa.Table  # CAPTION_COLUMNS; split and references may be null
    views: tuple[View, ...] = ()
    groups: np.ndarray | None = None  # rows of each row group of the table, if asked for

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def holds_pixels(self) -> bool:
        return self.rows.dtype == np.uint8

    def key(self, row: int) -> str:
        key: str = self.captions["key"][int(row)].as_py()
        return key

    def references(self, row: int) -> list[str]:
        """The human captions of this picture."""
        references: list[str] = self.captions["references"][int(row)].as_py()
        return references

    def rows_of(self, *splits: str) -> np.ndarray:
        """The rows of the pictures of these splits that have captions, sorted by key.

        Sorted, because a table that is made again may have another order of rows, and the same
        seed must give the same epochs.
        """
        rows = pa.array(np.flatnonzero(usable(self.captions, splits)))
        order = pc.sort_indices(self.captions["key"].take(rows))
        by_key: np.ndarray = rows.take(order).to_numpy()
        return by_key

    def rows_by_group(self, *splits: str) -> tuple[np.ndarray, np.ndarray]:
        """The same rows in the order of the table, and how many each row group has."""
        assert self.groups is not None
        kept = usable(self.captions, splits)
        group_of_row = np.repeat(np.arange(len(self.groups)), self.groups)
        return np.flatnonzero(kept), np.bincount(group_of_row[kept], minlength=len(self.groups))

    def pictures(self, items: np.ndarray) -> np.ndarray:
        """The features or pixels of these items. Where a view lacks a picture, the picture itself
        is used."""
        which, rows = np.divmod(items, len(self))
        found = self.rows[rows]
        for number, view in enumerate(self.views, start=1):
            changed = np.flatnonzero((which == number) & (view.rows[rows] >= 0))
            found[changed] = view.pixels_or_features[view.rows[rows[changed]]]
        return found


def usable(captions: pa.Table, splits: Sequence[str]) -> np.ndarray:
    """For each row of CAPTION_COLUMNS, whether it has captions and is in one of the splits."""
    in_splits = pc.is_in(captions["split"], pa.array(splits, pa.string()))
    captioned = pc.greater(pc.list_value_length(captions["references"]), 0).fill_null(False)
    both: np.ndarray = pc.and_(in_splits, captioned).to_numpy()
    return both


def open_store(pictures: PictureTables, cache: Path, with_groups: bool = False) -> PictureStore:
    """Unpack the tables if that is not done yet, and open the first one with the others as
    views."""
    (rows, keys), *others = (unpack_table(table, cache) for table in pictures.tables)
    views = []
    for other_rows, other_keys in others:
        places = pc.index_in(keys, other_keys).fill_null(-1).to_numpy()
        views.append(View(other_rows, places))
    captions = mapped_captions(keys, pictures.listing, Path(str(rows.filename)).parent)
    groups = _rows_of_groups(pictures.tables[0]) if with_groups else None
    return PictureStore(rows, captions, tuple(views), groups)


def _rows_of_groups(table: str) -> np.ndarray:
    """How many successful rows each row group of the table has."""
    counts = []
    for name, *_ in parquet_files(table):
        with _opened(name, table) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                status = parquet.read_row_group(group, columns=["status"])["status"]
                counts.append(pc.sum(pc.equal(status, SUCCESS)).as_py() or 0)
    return np.array(counts, np.int64)


def mapped_captions(keys: pa.ChunkedArray, listing: str, folder: Path) -> pa.Table:
    """CAPTION_COLUMNS of these pictures, memory-mapped from a file in the folder, which is that of
    their unpacked rows. Split and references of pictures that the listing lacks are null."""
    with local_copy(listing) as local:
        file = folder / f"captions-{digest_of_file(local)}.arrow"
        if not file.exists():
            _write_captions(keys, local, file)
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


@memory.held_briefly()
def _write_captions(keys: pa.ChunkedArray, listing: Path, file: Path) -> None:
    numbered_keys = (
        numbered(keys.slice(start, KEYS_AT_ONCE), start)
        for start in range(0, len(keys), KEYS_AT_ONCE)
    )
    starts = range(0, len(keys), rows_of_partition(len(keys)))
    with (
        whole_path(file) as part,
        pa.OSFile(str(part), "wb") as out,
        pa.ipc.new_file(out, CAPTIONS) as writer,
    ):
        found = captions_by_row(listing, numbered_keys, len(keys), starts)
        for own, start in zip(found, starts, strict=True):
            stop = min(start + starts.step, len(keys))
            captions = own.between(start, stop)
            writer.write_table(captions.set_column(0, "key", keys.slice(start, stop - start)))


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the content of a file; a temporary one if the file is in a store."""
    path = local_path(uri)
    if path is not None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        with open_uri(uri) as file, copy.open("wb") as out:
            shutil.copyfileobj(file, out)
        yield copy


def digest_of_file(path: Path) -> str:
    """A short digest of what the file holds."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def read_captions(pictures: PictureTables) -> Iterator[pa.Table]:
    """CAPTION_COLUMNS of the readable pictures of the first table, as far as the listing has them,
    some at a time."""
    table, rows = pictures.tables[0], 0
    for name, *_ in parquet_files(table):
        with _opened(name, table) as file:
            rows += pq.read_metadata(file).num_rows

    def keys() -> Iterator[pa.Table]:
        first = 0
        for piece in read_rows(table, ["key"], KEYS_AT_ONCE):
            yield numbered(piece["key"], first)
            first += len(piece)

    starts = range(0, max(rows, 1), rows_of_partition(rows))
    with local_copy(pictures.listing) as local:
        for found in captions_by_row(local, keys(), rows, starts):
            yield found.captions


@memory.held_briefly()
def write_listing(source: Source, file: Path) -> Counter[str]:
    """Write CAPTION_COLUMNS of all pictures of a source to a file. Returns how many pictures of
    each split have captions."""
    pictures: Counter[str] = Counter()
    try:
        with (
            whole_path(file) as part,
            pa.OSFile(str(part), "wb") as out,
            pa.ipc.new_file(out, CAPTIONS) as writer,
        ):
            for rows in source.tables():
                writer.write_table(rows.select(CAPTION_COLUMNS).cast(CAPTIONS))
                captioned = pc.greater(pc.list_value_length(rows["references"]), 0)
                usable = pc.equal(rows["error"], "")
                counted = rows["split"].filter(pc.and_(captioned, usable))
                pictures.update(counted.to_pylist())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
    return pictures


def unpack_table(table: str, cache: Path) -> tuple[np.memmap, pa.ChunkedArray]:
    """The rows and keys of the table at this path or URI. It is unpacked into `cache`, unless an
    earlier run on this machine has done so."""
    fingerprint = json.dumps([KEYS, str(table), *parquet_files(table)], default=str)
    columns = list(row_shapes(table))

    def pieces() -> Iterator[tuple[np.ndarray, pa.Table]]:
        for piece in read_rows(table, ["key", *columns]):
            yield rows_of_table(piece, columns), piece.select(["key"])

    rows, others = write_unpacked(unpacked_folder(fingerprint, cache), pieces, table, cache)
    return rows, others["key"]


def unpacked_folder(fingerprint: str, cache: Path) -> Path:
    """The folder of unpacked rows with this fingerprint."""
    return cache / "rows" / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


@memory.held_briefly()
def write_unpacked(
    folder: Path, pieces: Callable[[], Iterator[Piece]], table: str, cache: Path
) -> tuple[np.memmap, pa.Table]:
    """The unpacked rows in `folder`, with the columns that they came with. They are written there
    first, from `pieces`, unless an earlier run on this machine has done so."""
    if not (folder / FORM).exists():
        part = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.part")
        try:
            _write_pieces(part, pieces(), table)
            with contextlib.suppress(OSError):  # another process has unpacked the same table
                part.rename(folder)
        except OSError as error:
            raise UserError(
                f"cannot unpack {table} into {cache} (train.cache): {error}"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    form = json.loads((folder / FORM).read_text(encoding="utf-8"))
    columns = pa.ipc.open_file(pa.memory_map(str(folder / KEYS))).read_all()
    shape = (len(columns), *form["shape"])
    return np.memmap(folder / ROWS, form["dtype"], mode="r", shape=shape), columns


def _write_pieces(folder: Path, pieces: Iterator[Piece], table: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process with the same number
    folder.mkdir(parents=True)
    waiting: list[pa.Table] = []
    form = writer = None
    with contextlib.ExitStack() as stack:
        out = stack.enter_context((folder / ROWS).open("wb"))
        for rows, columns in pieces:
            if not len(rows):
                continue
            rows.tofile(out)
            form = {"shape": rows.shape[1:], "dtype": rows.dtype.name}
            if writer is None:
                file = stack.enter_context(pa.OSFile(str(folder / KEYS), "wb"))
                writer = stack.enter_context(pa.ipc.new_file(file, columns.schema))
            waiting.append(columns)
            if len(waiting) == PIECES_AT_ONCE:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        if waiting and writer is not None:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    if form is None:
        raise UserError(f"{table} holds no readable picture")
    write_json(folder / FORM, form)  # last: the folder is complete once it has this file


def rows_of_table(piece: pa.Table, columns: list[str]) -> np.ndarray:
    """Features [n, P + 1, D], from the columns of grid and vector; pixels [n, S, S, 3]; or vectors
    [n, D], if that is the only column."""
    arrays: dict[str, np.ndarray] = {name: tensors_of(piece, name) for name in columns}
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    grid = arrays["grid"] * arrays["scale"][:, None] if "scale" in arrays else arrays["grid"]
    return np.concatenate([grid, arrays["vector"][:, None]], axis=1)


def row_shapes(table: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensor columns of a table: `grid`, `vector` and, for int8, `scale`; or
    `pixels`."""
    with _opened(parquet_files(table)[0][0], table) as file:
        schema = pq.read_schema(file)
    known = [name for name in ("grid", "scale", "vector", "pixels") if name in schema.names]
    shapes = {name: tensor_shape(schema.field(name)) for name in known}
    if "references" in schema.names or None in shapes.values():
        raise UserError(
            f"{table} was made by an older version of raycap, in another format (this version "
            f"reads format {FEATURES_FORMAT}): make it again with `raycap extract`"
        )
    if not shapes:
        raise UserError(
            f"{table} is no feature table: it has no column `grid`; make one with `raycap extract`"
        )
    return {name: shape for name, shape in shapes.items() if shape is not None}


def read_rows(table: str, columns: list[str], most: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """The successful rows of a table in their order, up to `most` at a time."""
    for name, *_ in parquet_files(table):
        with _opened(name, table) as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{name} lacks {', '.join(missing)}: it is no table that `raycap extract` made"
                )
            for batch in parquet.iter_batches(most, columns=[*columns, "status"]):
                rows = pa.Table.from_batches([batch])
                yield rows.filter(pc.equal(rows["status"], SUCCESS))


def parquet_files(table: str) -> list[tuple[str, int, Any]]:
    """The Parquet files of a table, sorted: URI, size, and time of change or ETag."""
    try:
        filesystem, root = filesystem_of(table)
        listed = filesystem.ls(root, detail=True) if filesystem.isdir(root) else []
        # Not every listing follows links, so ask for each file.
        names = sorted(str(one["name"]) for one in listed if one["name"].endswith(".parquet"))
        found = [info for name in names if (info := filesystem.info(name))["type"] == "file"]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the feature table {table}: {error}") from error
    if not found:
        raise UserError(
            f"there is no feature table at {table}: no *.parquet in it; make one with `raycap "
            "extract`"
        )
    files = []
    for info in found:
        # Local names stay paths: the percent signs of a file: URI would be decoded.
        uri = info["name"] if is_local(table) else filesystem.unstrip_protocol(info["name"])
        files.append((uri, info["size"], info.get("mtime") or info.get("ETag")))
    return files


@contextlib.contextmanager
def _opened(name: str, table: str) -> Iterator[Any]:
    try:
        with open_uri(name) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{name} of the table {table} cannot be read: {error}") from error
