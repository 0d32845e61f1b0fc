"""Pictures and captions that are read from a feature table while a run trains, by the row group.

Each worker reads its lanes (see `order.py`): the blocks in use, and those that come next, which
threads read ahead. The validation pictures are unpacked on each machine, as in `store.py`.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raycap.decoders.teacher_forcing import pad_captions
from raycap.errors import UserError
from raycap.images.augmentation import names_sides
from raycap.storage.retry import with_retries
from raycap.training.caption_join import CAPTION_COLUMNS
from raycap.training.dataset import Batch, SampledRows
from raycap.training.order import EpochOrder, GroupedOrder, RowBlock
from raycap.training.row_groups import RowGroups, read_group
from raycap.training.store import (
    PictureStore,
    row_shapes,
    rows_of_table,
    unpacked_folder,
    usable,
    write_unpacked,
)
from raycap.vocabulary import Vocabulary

READERS = 4
READ_AHEAD = 2 * READERS  # row groups, where a whole table is read


@dataclass(frozen=True)
class PictureStream:
    """A feature table that is streamed, and its validation pictures, which are unpacked."""

    groups: RowGroups
    columns: tuple[str, ...]  # of the tensors in the feature files
    validation: PictureStore
    holds_pixels: bool


def open_stream(
    table: str, groups: RowGroups, validation_split: str, cache: Path
) -> PictureStream:
    """Open a table for streaming. The validation pictures are unpacked, if that is not done."""
    columns = tuple(row_shapes(table))
    about = json.dumps([table, groups.digest, validation_split])
    folder = unpacked_folder(about, cache)

    def pieces() -> Iterator[tuple[NDArray[np.generic], pa.Table]]:
        wanted = np.flatnonzero(groups.column("validation")).tolist()
        return _read_ahead(groups, columns, wanted, (validation_split,))

    validation = PictureStore(*write_unpacked(folder, pieces, table, cache))
    return PictureStream(groups, columns, validation, "pixels" in columns)


def read_rows(
    groups: RowGroups, columns: Sequence[str], group: int, splits: Sequence[str]
) -> tuple[NDArray[np.generic], pa.Table]:
    """Of the rows of a row group that have captions and are in one of these splits, the features
    or pixels [n, ...] and CAPTION_COLUMNS."""

    def read() -> tuple[pa.Table, pa.Table]:
        features = read_group(*groups.feature_file(group), columns)
        return features, read_group(*groups.caption_file(group), CAPTION_COLUMNS)

    try:
        features, captions = with_retries(read, f"read row group {group}")
    except (OSError, pa.ArrowInvalid) as error:
        file, number = groups.feature_file(group)
        raise UserError(f"row group {number} of {file} cannot be read: {error}") from error
    kept = usable(captions, splits)
    return rows_of_table(features, list(columns))[kept], captions.filter(pa.array(kept))


def _read_ahead(
    groups: RowGroups, columns: Sequence[str], wanted: Sequence[int], splits: Sequence[str]
) -> Iterator[tuple[NDArray[np.generic], pa.Table]]:
    """`read_rows` of these row groups, in order. Threads are some row groups ahead."""
    with ThreadPoolExecutor(READERS, "read row groups") as pool:
        waiting: list[Future[tuple[NDArray[np.generic], pa.Table]]] = []
        for group in wanted:
            waiting.append(pool.submit(read_rows, groups, columns, group, splits))
            if len(waiting) > READ_AHEAD:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


class StreamedDataset:
    """The training pictures of a stream. It has the methods of `CaptionDataset` that training
    uses. One epoch is read at a time."""

    def __init__(
        self,
        stream: PictureStream,
        splits: Sequence[str],
        vocabulary: Vocabulary,
        window: int,
        seed: int,
    ) -> None:
        self.stream, self.splits, self.vocabulary = stream, splits, vocabulary
        self.order = GroupedOrder(stream.groups.column("training"), window, seed)
        self._reader: EpochReader | None = None

    def __len__(self) -> int:
        return int(self.order.sizes.sum())

    def steps_per_epoch(self, batch: int) -> int:
        """The number of steps. The last one may be smaller: no picture is dropped."""
        return -(-len(self) // batch)

    def shares(
        self, epoch: int, seed: int, batch: int, worker: int, workers: int, start: int = 0
    ) -> Iterator[NDArray[np.int64]]:
        """For each step of an epoch from `start` on, this worker's positions in the epoch."""
        if workers > self.order.lanes:
            raise UserError(
                f"{workers} workers, and this table is read in {self.order.lanes} lanes "
                f"(train.window {self.order.window}): give a larger window, or fewer workers"
            )
        order = self.order.epoch(epoch)
        self.close()
        self._reader = EpochReader(self.stream, self.splits, order)
        steps = range(start, self.steps_per_epoch(batch))
        return (
            order.positions(step * batch, (step + 1) * batch, worker, workers) for step in steps
        )

    def batch(self, items: NDArray[np.int64]) -> Batch:
        """The pictures at these positions of the epoch. Positions ascend."""
        assert self._reader is not None
        pictures, references = self._reader.read(items)
        captions = [[self.vocabulary.encode(one) for one in own] for own in references]
        words, sides = pad_captions(captions), names_sides(references)
        return Batch(items, torch.from_numpy(pictures), words, sides)

    def close(self) -> None:
        """End the reading of an epoch."""
        if self._reader is not None:
            self._reader.close()

    def count_captions(self) -> int:
        """How many captions the pictures have."""
        return int(self.stream.groups.column("captions").sum())

    def references(self) -> Iterator[list[str]]:
        """The human captions of each picture."""
        for captions in self.stream.groups.captions():
            kept = captions["references"].filter(pa.array(usable(captions, self.splits)))
            yield from kept.to_pylist()

    def sample(self, most: int, whole: bool) -> Iterator[SampledRows]:
        """All pictures, or `most` of them at equal distances, and their captions. Of features only
        the vectors, unless they are wanted `whole`."""
        sizes = self.order.sizes
        starts = np.cumsum(sizes) - sizes
        chosen = np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64)
        group_of = np.searchsorted(starts, chosen, "right") - 1
        # Without its captioned pictures, a row group starts where the next one does.
        wanted, first = np.unique(group_of, return_index=True)
        columns = self.stream.columns if whole else ("vector",)
        read = _read_ahead(self.stream.groups, columns, wanted.tolist(), self.splits)
        for (rows, captions), group, own in zip(
            read, wanted, np.split(chosen, first[1:]), strict=True
        ):
            places = own - starts[group]
            references = captions["references"].take(pa.array(places)).to_pylist()
            encoded = [[self.vocabulary.encode(one) for one in each] for each in references]
            yield SampledRows(rows[places], encoded)


class LoadedBlock(NamedTuple):
    """A block of a lane, in memory, in the order of the epoch."""

    start: int
    rows: NDArray[np.generic]  # [n, ...]
    references: list[list[str]]


@dataclass
class Lane:
    """How far the reading of a lane has come."""

    blocks: Iterator[RowBlock]
    block: LoadedBlock | None = None
    following: "Future[LoadedBlock] | None" = None


class EpochReader:
    """Reads the lanes of an epoch. Positions are asked for in ascending order."""

    def __init__(self, stream: PictureStream, splits: Sequence[str], order: EpochOrder) -> None:
        self._stream, self._splits, self._order = stream, splits, order
        self._pool = ThreadPoolExecutor(READERS, "read blocks")
        self._lanes: dict[int, Lane] = {}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.generic], list[list[str]]]:
        """Features or pixels [B, ...] and references of the pictures at these positions."""
        places = [self._order.lane_and_place(int(position)) for position in positions]
        for lane, place in places:  # all are read at the same time
            self._ask(lane, place)
        found, references = [], []
        for lane, place in places:
            block = self._block(lane, place)
            found.append(block.rows[place - block.start])
            references.append(block.references[place - block.start])
        return np.stack(found), references

    def _ask(self, lane: int, place: int) -> None:
        """Begin to read what a lane needs for this place."""
        if lane not in self._lanes:
            self._lanes[lane] = Lane(self._order.blocks(lane, place))
            self._read_next(self._lanes[lane])

    def _block(self, lane: int, place: int) -> LoadedBlock:
        of_lane = self._lanes[lane]
        block = of_lane.block
        if block is None or place >= block.start + len(block.references):
            assert of_lane.following is not None
            of_lane.block = None  # before the next one is there: it takes memory
            block = of_lane.block = of_lane.following.result()
            of_lane.following = None
        # The next block is read during the second half of this one, not earlier: it takes memory.
        is_in_second_half = 2 * (place - block.start) >= len(block.references) - 1
        if of_lane.following is None and is_in_second_half:
            self._read_next(of_lane)
        return block

    def _read_next(self, lane: Lane) -> None:
        block = next(lane.blocks, None)
        if block is not None:
            lane.following = self._pool.submit(self._load, block)

    def _load(self, block: RowBlock) -> LoadedBlock:
        stream, rows, references = self._stream, None, [[""]] * len(block.order)
        inverse = np.argsort(block.order)
        start = 0
        for piece in block.pieces:
            found, captions = read_rows(stream.groups, stream.columns, piece.group, self._splits)
            if len(found) < piece.stop:
                raise UserError(
                    f"a row group of {stream.groups.feature_file(piece.group)[0]} has changed "
                    "since this run began: give --fresh to start over"
                )
            own = inverse[start : start + piece.stop - piece.start]
            if rows is None:
                rows = np.empty((len(block.order), *found.shape[1:]), found.dtype)
            rows[own] = found[piece.start : piece.stop]
            texts = captions["references"].slice(piece.start, piece.stop - piece.start).to_pylist()
            for place, of_picture in zip(own.tolist(), texts, strict=True):
                references[place] = of_picture
            start += len(own)
        assert rows is not None
        return LoadedBlock(block.start, rows, references)
