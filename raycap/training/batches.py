"""Rows to batches: the order of an epoch, each process' share of a step, and words as padded numbers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from raycap.training.augmented import tell_sides
from raycap.training.store import Store
from raycap.vocabulary import PAD, Vocabulary

AHEAD = 2  # batches read before they are asked for

Given = TypeVar("Given")
Made = TypeVar("Made")


class Batch(NamedTuple):
    """Some pictures, each as it is or as one of its views, with all their captions."""

    places: np.ndarray  # [B] in the store
    pictures: Tensor  # [B, P + 1, D] features or [B, S, S, 3] pixels
    words: Tensor  # [B, R, T + 1] from `<start>` to `<end>`, then PAD
    has_sides: Tensor  # [B] whether its captions say left or right

    def to(self, device: torch.device) -> "Batch":
        """On the device; copies do not wait."""
        return Batch(self.places, *(part.to(device, non_blocking=True) for part in self[1:]))

    def pinned(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        return Batch(self.places, *(part.pin_memory() for part in self[1:]))


class Lesson:
    """The pictures of some splits. Captions become numbers when they are wanted: memory stays flat."""

    def __init__(self, store: Store, places: np.ndarray, vocabulary: Vocabulary) -> None:
        self.store, self.places, self.vocabulary = store, places, vocabulary

    def __len__(self) -> int:
        return len(self.places)

    def captions(self, place: int) -> list[list[int]]:
        """The numbers of each caption of one picture."""
        return [self.vocabulary.encode(caption) for caption in self.store.references(place)]

    def batch(self, numbers: np.ndarray) -> Batch:
        """The pictures of these numbers of the store, their captions cut to the longest of them."""
        places = numbers % len(self.store)
        words = in_one([self.captions(place) for place in places])
        sides = tell_sides([self.store.references(place) for place in places])
        return Batch(places, torch.from_numpy(self.store.pictures(numbers)), words, sides)

    def steps(self, batch: int) -> int:
        """Steps of an epoch; the last may be small, and no picture is dropped."""
        return -(-len(self) // batch)

    def shares(self, epoch: int, seed: int, batch: int, rank: int, ranks: int) -> list[np.ndarray]:
        """For each step of an epoch this process' pictures as numbers of the store, at times none; each comes once,
        as it is or as one of its views.

        Which pictures make a step depends on seed and epoch alone, not on how many processes share it.
        """
        chance = np.random.default_rng((seed, epoch))
        order = chance.permutation(self.places)
        order = order + len(self.store) * chance.integers(1 + len(self.store.views), size=len(order))
        return [order[start : start + batch][rank::ranks] for start in range(0, len(order), batch)]


def in_one(captions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The captions of each picture, as numbers, in one array [B, R, T + 1], cut to the longest, PAD behind each."""
    references = max(map(len, captions))
    longest = max(len(caption) for own in captions for caption in own)
    words = np.full((len(captions), references, longest), PAD, np.int64)
    for row, own in enumerate(captions):
        for column, caption in enumerate(own):
            words[row, column, : len(caption)] = caption
    return torch.from_numpy(words)


def read_ahead(items: Iterable[Given], make: Callable[[Given], Made]) -> Iterator[Made]:
    """`make` of each item, in order, by a thread that works a little ahead."""
    with ThreadPoolExecutor(1, "read ahead") as reader:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(reader.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_batches(places: np.ndarray, batch: int, rank: int = 0, ranks: int = 1) -> list[np.ndarray]:
    """This process' part of `places`, in their order."""
    own = places[rank::ranks]
    return [own[start : start + batch] for start in range(0, len(own), batch)]
