"""Batches of pictures and captions: the order of an epoch, each worker's share of a step, and
captions as token numbers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from raycap.decoders.teacher_forcing import pad_captions
from raycap.images.augmentation import names_sides
from raycap.training.order import BlockCursor, EpochOrder, GroupedOrder
from raycap.training.store import PictureStore
from raycap.vocabulary import Vocabulary

PREFETCH = 2  # batches read before they are asked for
ROWS_AT_ONCE = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """Some pictures (or views of them) with all their captions."""

    rows: np.ndarray  # [B] in the store
    pictures: Tensor  # [B, P + 1, D] features or [B, S, S, 3] pixels
    words: Tensor  # [B, R, T + 1] from `<start>` to `<end>`, then PAD
    has_sides: Tensor  # [B] whether the captions say left or right

    def to(self, device: torch.device) -> "Batch":
        """The batch on the device. Copies are asynchronous."""
        return Batch(self.rows, *(part.to(device, non_blocking=True) for part in self[1:]))

    def pinned(self) -> "Batch":
        """The batch in pinned memory."""
        return Batch(self.rows, *(part.pin_memory() for part in self[1:]))


class SampledRows(NamedTuple):
    """Some training pictures without their grids."""

    pictures: np.ndarray  # [B, D] vectors, or rows of the table [B, ...]
    captions: list[list[list[int]]]  # of each picture, as token numbers


class CaptionDataset:
    """The pictures of some splits. Captions are encoded on demand, to save memory.

    With an `order`, an epoch has the order in which a stream of the same table would be read. Then
    `rows` must be in the order of the table.
    """

    def __init__(
        self,
        store: PictureStore,
        rows: np.ndarray,
        vocabulary: Vocabulary,
        order: GroupedOrder | None = None,
    ) -> None:
        self.store, self.rows, self.vocabulary, self.order = store, rows, vocabulary, order

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self, row: int) -> list[list[int]]:
        """The captions of one picture as token numbers."""
        return [self.vocabulary.encode(caption) for caption in self.store.references(row)]

    def batch(self, items: np.ndarray) -> Batch:
        """The batch of these items (see `PictureStore`)."""
        rows = items % len(self.store)
        words = pad_captions([self.captions(row) for row in rows])
        sides = names_sides([self.store.references(row) for row in rows])
        return Batch(rows, torch.from_numpy(self.store.pictures(items)), words, sides)

    def steps_per_epoch(self, batch: int) -> int:
        """The number of steps. The last one may be smaller: no picture is dropped."""
        return -(-len(self) // batch)

    def shares(
        self, epoch: int, seed: int, batch: int, worker: int, workers: int, start: int = 0
    ) -> Iterator[np.ndarray]:
        """For each step of an epoch from `start` on, the items of this worker, possibly none. In
        an epoch each picture occurs once, as itself or as one of its views.

        The pictures of a step depend on seed and epoch only, not on the number of workers.
        """
        if self.order is not None:
            yield from self._grouped_shares(self.order.epoch(epoch), batch, worker, workers, start)
            return
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(self.rows)
        views = random.integers(1 + len(self.store.views), size=len(order))
        order = order + len(self.store) * views
        for first in range(start * batch, len(order), batch):
            yield order[first : first + batch][worker::workers]

    def _grouped_shares(
        self, order: EpochOrder, batch: int, worker: int, workers: int, start: int
    ) -> Iterator[np.ndarray]:
        assert self.order is not None
        firsts = np.cumsum(self.order.sizes) - self.order.sizes
        cursor = BlockCursor(order)
        for first in range(start * batch, len(self), batch):
            positions = order.positions(first, first + batch, worker, workers)
            places = [cursor.picture(*order.lane_and_place(int(one))) for one in positions]
            numbers = [firsts[group] + number for group, number in places]
            yield self.rows[np.array(numbers, np.int64)]

    def close(self) -> None:
        """Nothing is open. A stream has threads that read."""

    def count_captions(self) -> int:
        """How many captions the pictures have."""
        lengths = pc.list_value_length(self.store.captions["references"])
        return int(lengths.fill_null(0).to_numpy()[self.rows].sum())

    def references(self) -> Iterator[list[str]]:
        """The human captions of each picture."""
        return map(self.store.references, self.rows)

    def sample(self, most: int, whole: bool) -> Iterator[SampledRows]:
        """All pictures, or `most` of them at equal distances, and their captions. Of features only
        the vectors, unless they are wanted `whole`."""
        chosen = np.linspace(0, len(self) - 1, min(most, len(self))).astype(int)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            rows = self.rows[chosen[start : start + ROWS_AT_ONCE]]
            pictures = self.store.rows[rows]
            vectors = pictures if whole else pictures[:, -1]
            yield SampledRows(vectors, [self.captions(row) for row in rows])


def read_ahead(items: Iterable[Item], make: Callable[[Item], Result]) -> Iterator[Result]:
    """Call `make` for each item in a thread that is PREFETCH items ahead. Yields the results in
    order."""
    with ThreadPoolExecutor(1, "read ahead") as reader:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(reader.submit(make, item))
            if len(waiting) > PREFETCH:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
