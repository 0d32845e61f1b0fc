"""The order in which an epoch visits pictures that are read from a table by the row group.

A permutation of all pictures would read a row group for each picture. Here the row groups are
permuted, and then the pictures of some row groups at a time:

    row groups of the epoch    5 2 7 | 0 3 6 | 4 1 ...      cut into lanes of equal length
    a lane                     block, block, ...            some row groups; permuted within
    the epoch                  lane 0, lane 1, ..., lane 0  a picture of each lane in turn

So a step has pictures of all lanes. A lane is read by one worker, and the order does not depend on
the number of workers. Every picture occurs exactly once, and any place of the epoch can be found
without reading what is before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FEWEST_LANES, MOST_LANES = 16, 256
# Where two lanes meet, a row group is read twice. With so many row groups for each lane, that is a
# quarter of the reading at most.
GROUPS_PER_LANE = 4


class GroupSlice(NamedTuple):
    """The pictures `start` to `stop` of a row group. Only pictures to learn from are counted."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class RowBlock:
    """Consecutive pictures of a lane, which are in memory together."""

    pieces: tuple[GroupSlice, ...]
    start: int  # in the lane
    order: Ints  # [n] in which its pictures come

    @property
    def stop(self) -> int:
        return self.start + len(self.order)


@dataclass(frozen=True)
class GroupedOrder:
    """The order of every epoch of a run.

    `sizes` has the pictures to learn from in each row group. About `window` pictures are permuted
    together.
    """

    sizes: Ints  # [G]
    window: int
    seed: int

    @property
    def lanes(self) -> int:
        """The number of lanes: the most workers that can share the reading."""
        groups = int(np.count_nonzero(self.sizes))
        mean = max(1, int(self.sizes.sum()) // max(groups, 1))
        wanted = min(groups // GROUPS_PER_LANE, self.window // mean, MOST_LANES)
        return max(wanted, FEWEST_LANES)

    def epoch(self, number: int) -> "EpochOrder":
        return EpochOrder(self, number)


class EpochOrder:
    """The order of one epoch. Its positions are 0 to N - 1; step `s` of a run with batches of B
    has the positions from s * B on."""

    def __init__(self, order: GroupedOrder, number: int) -> None:
        random = np.random.default_rng((order.seed, number))
        groups = random.permutation(np.flatnonzero(order.sizes))
        self._seed, self.lanes = (order.seed, number), order.lanes
        self._groups = groups.astype(np.int64)
        self._ends = np.cumsum(order.sizes[groups])  # in the permuted sequence
        self._sizes = order.sizes[groups]
        self._in_block = max(1, order.window // self.lanes)
        self.pictures = int(self._ends[-1]) if len(self._ends) else 0
        # Of each lane, its first place in the permuted sequence.
        lengths = (self.pictures - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def positions(self, start: int, stop: int, worker: int, workers: int) -> Ints:
        """Those of the positions from `start` to `stop` whose lanes belong to this worker."""
        every = np.arange(start, min(stop, self.pictures))
        mine: Ints = every[every % self.lanes % workers == worker]
        return mine

    def lane_and_place(self, position: int) -> tuple[int, int]:
        """The lane of a position, and the place in that lane."""
        return position % self.lanes, position // self.lanes

    def blocks(self, lane: int, place: int = 0) -> Iterator[RowBlock]:
        """The blocks of a lane, beginning with the one that has this place.

        A block ends with a row group. The first blocks of the lanes differ in length, so that not
        all lanes need their next block at the same time.
        """
        first, last = int(self._starts[lane]), int(self._starts[lane + 1])
        start, number = first, 0
        wanted = max(1, self._in_block * (lane + 1) // self.lanes)
        while start < last:
            # The row group in which the wanted length is reached is the last one of the block.
            group = int(np.searchsorted(self._ends, start + wanted, "left"))
            stop = min(int(self._ends[min(group, len(self._ends) - 1)]), last)
            if stop - first > place:
                random = np.random.default_rng((*self._seed, lane, number))
                order = random.permutation(stop - start)
                yield RowBlock(self._pieces(start, stop), start - first, order)
            start, number, wanted = stop, number + 1, self._in_block

    def _pieces(self, start: int, stop: int) -> tuple[GroupSlice, ...]:
        """The parts of row groups from one place to another of the permuted sequence."""
        pieces = []
        for index in range(int(np.searchsorted(self._ends, start, "right")), len(self._ends)):
            begins = int(self._ends[index] - self._sizes[index])
            if begins >= stop:
                break
            ends = min(stop, int(self._ends[index]))
            pieces.append(
                GroupSlice(int(self._groups[index]), max(start - begins, 0), ends - begins)
            )
        return tuple(pieces)


class BlockCursor:
    """Goes along the lanes of an epoch: finds the block of each place. Places of a lane are asked
    for in ascending order."""

    def __init__(self, order: EpochOrder) -> None:
        self._order = order
        self._lanes: dict[int, Iterator[RowBlock]] = {}
        self._current: dict[int, RowBlock] = {}

    def block(self, lane: int, place: int) -> RowBlock:
        """The block of a lane that has this place."""
        if lane not in self._lanes:
            self._lanes[lane] = self._order.blocks(lane, place)
            self._current[lane] = next(self._lanes[lane])
        while self._current[lane].stop <= place:
            self._current[lane] = next(self._lanes[lane])
        return self._current[lane]

    def picture(self, lane: int, place: int) -> tuple[int, int]:
        """The row group of the picture at this place, and its number there."""
        block = self.block(lane, place)
        left = int(block.order[place - block.start])
        for piece in block.pieces:
            if left < piece.stop - piece.start:
                return piece.group, piece.start + left
            left -= piece.stop - piece.start
        raise IndexError(f"place {place} is not in lane {lane}")
