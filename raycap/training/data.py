"""Opens the training data of a run: unpacked on this machine, or streamed."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from raycap.errors import UserError
from raycap.storage import RunFolder, cache_folder, open_uri
from raycap.training.dataset import Batch, CaptionDataset, SampledRows
from raycap.training.options import Train
from raycap.training.order import GroupedOrder
from raycap.training.row_groups import READERS, open_row_groups
from raycap.training.store import PictureStore, PictureTables, open_store, parquet_files
from raycap.training.stream import PictureStream, StreamedDataset, open_stream
from raycap.vocabulary import Vocabulary

# Pictures that are shuffled together where data is streamed and `train.window` is not given.
WINDOW = 2048


# A feature table has at most so many bytes for each of its compressed ones.
MOST_UNPACKED = 10


class TrainingData(Protocol):
    """What training needs of its pictures: `CaptionDataset` or `StreamedDataset`."""

    vocabulary: Vocabulary

    def __len__(self) -> int: ...
    def steps_per_epoch(self, batch: int) -> int: ...
    def shares(
        self, epoch: int, seed: int, batch: int, worker: int, workers: int, start: int = 0
    ) -> Iterator[np.ndarray]: ...
    def batch(self, items: np.ndarray) -> Batch: ...
    def close(self) -> None: ...
    def count_captions(self) -> int: ...
    def references(self) -> Iterator[list[str]]: ...
    def sample(self, most: int, whole: bool) -> Iterator[SampledRows]: ...


def data_mode(pictures: PictureTables, options: Train, recorded: str) -> str:
    """local or stream. `recorded` is the mode in which an interrupted run has begun, "" for a new
    run."""
    asked = options.data
    if recorded and options.window is None and asked not in ("auto", recorded):
        raise UserError(
            f"this run has begun with train.data {recorded}, and {asked} has another order of "
            "pictures: leave it out, or give --fresh to start over"
        )
    if asked != "auto":
        return asked
    if recorded:
        return recorded
    is_small = _fits(pictures.tables[0], cache_folder(options.cache))
    return "local" if is_small or len(pictures.tables) > 1 else "stream"


def _fits(table: str, cache: Path) -> bool:
    """Whether the unpacked table takes at most half of the free space of the cache's disk."""
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    files = parquet_files(table)
    if sum(size for _, size, _ in files) * MOST_UNPACKED < free / 2:
        return True
    with ThreadPoolExecutor(READERS) as pool:
        sizes = pool.map(lambda file: _unpacked_size(file[0]), files)
    return sum(sizes) < free / 2


def _unpacked_size(uri: str) -> int:
    with open_uri(uri) as file:
        metadata = pq.read_metadata(file)
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(group).total_byte_size for group in groups)


def open_pictures(
    pictures: PictureTables, options: Train, cache: Path
) -> PictureStore | PictureStream:
    """The pictures of a run. What has to be unpacked is unpacked into `cache`."""
    if not pictures.rows:
        return open_store(pictures, cache, with_groups=options.window is not None)
    groups = open_row_groups(pictures.tables[0], RunFolder(pictures.rows))
    return open_stream(pictures.tables[0], groups, options.validation_split, cache)


def datasets_of(
    store: PictureStore | PictureStream, options: Train, vocabulary: Vocabulary
) -> tuple[TrainingData, CaptionDataset]:
    """The data to learn from, and the data to validate on."""
    splits, split = options.training_splits, options.validation_split
    if isinstance(store, PictureStream):
        window = options.window or WINDOW
        training = StreamedDataset(store, splits, vocabulary, window, options.seed)
        validation = store.validation
        return training, CaptionDataset(validation, validation.rows_of(split), vocabulary)
    validation_data = CaptionDataset(store, store.rows_of(split), vocabulary)
    if options.window is None:
        return CaptionDataset(store, store.rows_of(*splits), vocabulary), validation_data
    rows, sizes = store.rows_by_group(*splits)
    order = GroupedOrder(sizes, options.window, options.seed)
    return CaptionDataset(store, rows, vocabulary, order), validation_data
