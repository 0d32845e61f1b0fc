"""Pictures to learn from, as rows of one size in one local file, so that any row can be read at any moment.

Tables come as Parquet, which is read in runs of rows; a shuffled epoch wants single rows. Each machine unpacks a
table once. The files are mapped, not loaded: memory stays flat, and what the page cache can hold is read once.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.refusal import Refusal
from raycap.runs import stores, write_json
from raycap.sources import Source
from raycap.tables import MANIFEST, SUCCESS
from raycap.uris import is_local

LISTING = "pictures.arrow"
ROWS, CAPTIONS, FORM = "rows.bin", "captions.arrow", "form.json"
ROWS_AT_ONCE = 128
CAPTION_COLUMNS = ["key", "split", "references"]


@dataclass(frozen=True)
class Pictures:
    """What a run learns from: tables, of the pictures and then of their views, and, where a source is behind them,
    the listing of what it says of each now: tables are kept, and captions are mended meanwhile."""

    tables: tuple[str, ...]
    listing: str = ""
    precision: str = ""  # in which features were computed, where they were made for this run


class View(NamedTuple):
    """The same pictures, changed."""

    rows: np.ndarray  # [M, ...], mapped
    places: np.ndarray  # [N] where each picture of the store is among them; -1 where it is not


@dataclass(frozen=True)
class Store:
    """An unpacked table. A row is a picture's features [P + 1, D] in float16, the vector below the grid, or its
    pixels [S, S, 3] in uint8.

    The numbers from 0 to N - 1 are the pictures as they are, the next N their first views, and so on.
    """

    rows: np.ndarray  # [N, ...], mapped
    captions: pa.Table  # of CAPTION_COLUMNS
    views: tuple[View, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def holds_pixels(self) -> bool:
        return self.rows.dtype == np.uint8

    def key(self, place: int) -> str:
        key: str = self.captions["key"][int(place)].as_py()
        return key

    def references(self, place: int) -> list[str]:
        """What people said of the picture there."""
        said: list[str] = self.captions["references"][int(place)].as_py()
        return said

    def of(self, *splits: str) -> np.ndarray:
        """The places of the pictures of these splits that have a caption, in the order of their keys: a table made
        anew has the same pictures at other places, and a seed shall mean the same order."""
        wanted = pc.is_in(self.captions["split"], pa.array(splits, pa.string()))
        described = pc.greater(pc.list_value_length(self.captions["references"]), 0).fill_null(False)
        places = pa.array(np.flatnonzero(pc.and_(wanted, described).to_numpy()))
        by_key: np.ndarray = places.take(pc.sort_indices(self.captions["key"].take(places))).to_numpy()
        return by_key

    def pictures(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers."""
        which, places = np.divmod(numbers, len(self))
        found = self.rows[places]
        for number, view in enumerate(self.views, start=1):
            changed = np.flatnonzero((which == number) & (view.places[places] >= 0))
            found[changed] = view.rows[view.places[places[changed]]]
        return found


def store_of(pictures: Pictures, cache: Path) -> Store:
    """The first table, with the others as its views."""
    store, *others = (unpacked(table, cache) for table in pictures.tables)
    keys = store.captions["key"]
    views = (
        View(other.rows, pc.index_in(keys, other.captions["key"]).fill_null(-1).to_numpy()) for other in others
    )
    return replace(store, captions=_listed(store.captions, pictures.listing), views=tuple(views))


def described(pictures: Pictures) -> pa.Table:
    """What is said of each readable picture."""
    return _listed(pa.concat_tables(tables(pictures.tables[0], CAPTION_COLUMNS)), pictures.listing)


def _listed(captions: pa.Table, listing: str) -> pa.Table:
    """The same pictures, with what the listing says of each; nothing is said of one that is not in it."""
    if not listing:
        return captions
    told = pa.ipc.open_file(pa.memory_map(listing)).read_all()
    told = told.take(pc.index_in(captions["key"], told["key"].combine_chunks()))
    return told.set_column(0, "key", captions["key"])


def write_listing(source: Source, file: Path) -> Counter[str]:
    """What the source says of its pictures; how many of each split are described."""
    pictures: Counter[str] = Counter()
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    schema = pa.schema([MANIFEST.field(name) for name in CAPTION_COLUMNS])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(beside), "wb") as out, pa.ipc.new_file(out, schema) as writer:
            for piece in source.tables():
                writer.write_table(piece.select(CAPTION_COLUMNS).cast(schema))
                described = pc.greater(pc.list_value_length(piece["references"]), 0)
                usable = pc.equal(piece["error"], "")  # of the others there is nothing to see
                pictures.update(piece["split"].filter(pc.and_(described, usable)).to_pylist())
        beside.rename(file)
    except OSError as error:
        raise Refusal(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return pictures


def cache_folder(given: str) -> Path:
    """Where made and unpacked features are kept on this machine."""
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raycap"


def unpacked(table: str, cache: Path) -> Store:
    """The rows of the table at `table` (a path or URI), unpacked on this machine now or by an earlier run."""
    files = _parts(table)
    told = json.dumps([CAPTIONS, str(table), *files], default=str)
    folder = cache / "rows" / hashlib.sha256(told.encode()).hexdigest()[:16]
    if not (folder / FORM).exists():
        beside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.part")
        try:
            _unpack(table, [name for name, *_ in files], beside)
            with contextlib.suppress(OSError):  # another run was quicker, with the same rows
                beside.rename(folder)
        except OSError as error:
            raise Refusal(f"cannot unpack {table} into {cache} (train.cache): {error}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return _opened(folder)


def table_form(table: str) -> dict[str, tuple[int, ...]]:
    """The shapes of what a row holds: of `grid` (with `scale` in 8 bits) and `vector`, or of `pixels`."""
    with _open(_parts(table)[0][0], table) as file:
        schema = pq.read_schema(file)
    form = {
        name: tuple(schema.field(name).type.shape)
        for name in ("grid", "scale", "vector", "pixels")
        if name in schema.names
    }
    if not form:
        raise Refusal(f"{table} is no feature table: it has no column `grid`; make one with `raycap extract`")
    return form


def tables(table: str, columns: list[str]) -> Iterator[pa.Table]:
    """The readable rows of a feature table, some at a time, in their order."""
    for name, *_ in _parts(table):
        with _open(name, table) as file:
            parquet = pq.ParquetFile(file)
            missing = [column for column in columns if column not in parquet.schema_arrow.names]
            if missing:
                raise Refusal(f"{name} lacks {', '.join(missing)}: it is no table that `raycap extract` made")
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[*columns, "status"]):
                whole = pa.Table.from_batches([batch])
                yield whole.filter(pc.equal(whole["status"], SUCCESS))


def _parts(table: str) -> list[tuple[str, int, Any]]:
    """The table's Parquet files in order, each with its size and time."""
    try:
        files, root = stores.open_store(table)
        listed = files.ls(root, detail=True) if files.isdir(root) else []
        found = [files.info(one["name"]) for one in listed if one["name"].endswith(".parquet")]
        found = sorted((one for one in found if one["type"] == "file"), key=lambda one: str(one["name"]))
    except (OSError, ValueError, ImportError) as error:
        raise Refusal(f"cannot read the feature table {table}: {error}") from error
    if not found:
        raise Refusal(f"there is no feature table at {table}: no *.parquet in it; make one with `raycap extract`")
    # Local names stay paths: of a file: URI the percent signs would be decoded.
    uris = [one["name"] if is_local(table) else files.unstrip_protocol(one["name"]) for one in found]
    return [(uri, one["size"], one.get("mtime") or one.get("ETag")) for uri, one in zip(uris, found, strict=True)]


@contextlib.contextmanager
def _open(name: str, table: str) -> Iterator[Any]:
    try:
        with stores.open_file(name) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise Refusal(f"{name} of the table {table} cannot be read: {error}") from error


def _unpack(table: str, names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    parts = list(table_form(table))
    captions, form = [], None
    with (folder / ROWS).open("wb") as out:
        for piece in tables(table, [*CAPTION_COLUMNS, *parts]):
            if len(piece):
                rows = _rows(piece, parts)
                rows.tofile(out)
                form = {"shape": rows.shape[1:], "dtype": rows.dtype.name}
                captions.append(piece.select(CAPTION_COLUMNS))
    if form is None:
        raise Refusal(f"{table} holds no readable picture")
    whole = pa.concat_tables(captions).combine_chunks()
    with pa.OSFile(str(folder / CAPTIONS), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
    write_json(folder / FORM, form)


def _rows(piece: pa.Table, parts: list[str]) -> np.ndarray:
    """[n, P + 1, D] from a grid and a vector, or [n, S, S, 3]."""
    arrays: dict[str, np.ndarray] = {name: piece[name].combine_chunks().to_numpy_ndarray() for name in parts}
    if "pixels" in arrays:
        return arrays["pixels"]
    grid = arrays["grid"] * arrays["scale"][:, None] if "scale" in arrays else arrays["grid"]
    return np.concatenate([grid, arrays["vector"][:, None]], axis=1)


def _opened(folder: Path) -> Store:
    form = json.loads((folder / FORM).read_text(encoding="utf-8"))
    captions = pa.ipc.open_file(pa.memory_map(str(folder / CAPTIONS))).read_all()
    shape = (len(captions), *form["shape"])
    return Store(np.memmap(folder / ROWS, form["dtype"], mode="r", shape=shape), captions)
