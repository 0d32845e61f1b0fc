"""Pictures of all sizes with their captions, in one local file, and the order in which an epoch
visits them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.schema import FITTED_PICTURES
from raycap.storage import whole_path
from raycap.training.store import (
    PictureTables,
    mapped_captions,
    parquet_files,
    read_rows,
    unpacked_folder,
    usable,
)

COLUMNS = ["key", "sha256", "pixels", "height", "width"]
PICTURES = "pictures.arrow"


class CaptionedPicture(NamedTuple):
    """A picture and the caption that is learned of it."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    caption: str


@dataclass(frozen=True)
class FittedPictures:
    """The readable pictures of a table, memory-mapped, and their captions."""

    table: pa.Table  # COLUMNS
    captions: pa.Table  # CAPTION_COLUMNS of the same rows

    def rows_of(self, *splits: str) -> NDArray[np.int64]:
        """The rows of the pictures of these splits that have captions, sorted by key: a table that
        is made again may have another order of rows."""
        rows = pa.array(np.flatnonzero(usable(self.captions, splits)))
        order = pc.sort_indices(self.captions["key"].take(rows))
        by_key: NDArray[np.int64] = rows.take(order).to_numpy()
        return by_key

    def key(self, row: int) -> str:
        return str(self.captions["key"][int(row)].as_py())

    def sha256(self, row: int) -> str:
        return str(self.table["sha256"][int(row)].as_py())

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """[H, W, 3], which may be written to."""
        data, height, width = (self.table[name][int(row)] for name in COLUMNS[2:])
        flat = np.frombuffer(data.as_buffer(), np.uint8)
        return flat.reshape(height.as_py(), width.as_py(), 3).copy()

    def references(self, row: int) -> list[str]:
        """The human captions of this picture."""
        references: list[str] = self.captions["references"][int(row)].as_py()
        return references


@dataclass(frozen=True)
class Examples:
    """The pictures to learn from: in an epoch each once, with one of its captions."""

    store: FittedPictures
    rows: NDArray[np.int64]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def count_captions(self) -> int:
        """How many captions the pictures have."""
        lengths = pc.list_value_length(self.store.captions["references"])
        return int(lengths.fill_null(0).to_numpy()[self.rows].sum())

    def steps_per_epoch(self, batch: int) -> int:
        """The number of steps. The last one may be smaller: no picture is dropped."""
        return -(-len(self) // batch)

    def shares(
        self, epoch: int, batch: int, worker: int, workers: int, start: int = 0
    ) -> Iterator[NDArray[np.int64]]:
        """For each step of an epoch from `start` on, the rows of this worker, possibly none. The
        pictures of a step depend on the seed and the epoch only."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        for first in range(start * batch, len(order), batch):
            yield order[first : first + batch][worker::workers]

    def example(self, row: int, epoch: int) -> CaptionedPicture:
        """A picture with the caption of this epoch. In as many epochs as it has captions, each is
        learned once."""
        references = self.store.references(row)
        first = int(np.random.default_rng((self.seed, int(row))).integers(len(references)))
        return CaptionedPicture(
            self.store.pixels(row), references[(first + epoch) % len(references)]
        )


def open_fitted(pictures: PictureTables, cache: Path) -> FittedPictures:
    """The pictures of a run. They are unpacked into `cache`, unless that is done: single rows of a
    Parquet file cannot be read."""
    [table] = pictures.tables
    fingerprint = json.dumps([PICTURES, table, *parquet_files(table)], default=str)
    file = unpacked_folder(fingerprint, cache) / PICTURES
    if not file.exists():
        schema = pa.schema([FITTED_PICTURES.field(name) for name in COLUMNS])
        try:
            with (
                whole_path(file) as part,
                pa.OSFile(str(part), "wb") as out,
                pa.ipc.new_file(out, schema) as writer,
            ):
                for rows in read_rows(table, COLUMNS):
                    writer.write_table(rows.select(COLUMNS).cast(schema))
        except OSError as error:
            raise UserError(
                f"cannot unpack {table} into {cache} (train.cache): {error}"
            ) from error
    unpacked = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    captions = mapped_captions(unpacked["key"], pictures.listing, file.parent)
    return FittedPictures(unpacked, captions)
