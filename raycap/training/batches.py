"""Rows to batches: the order of an epoch, each process' share of a step, and words as padded numbers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from raycap.training.store import Store
from raycap.vocabulary import PAD, Vocabulary

AHEAD = 2  # batches read before they are asked for

Given = TypeVar("Given")
Made = TypeVar("Made")


class Batch(NamedTuple):
    """Some pictures with all their captions."""

    places: np.ndarray  # [B] in the store
    pictures: Tensor  # [B, P + 1, D] features or [B, S, S, 3] pixels
    words: Tensor  # [B, R, T + 1] from `<start>` to `<end>`, then PAD

    def to(self, device: torch.device) -> "Batch":
        """On the device; copies do not wait."""
        pictures, words = (part.to(device, non_blocking=True) for part in self[1:])
        return Batch(self.places, pictures, words)

    def pinned(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        return Batch(self.places, self.pictures.pin_memory(), self.words.pin_memory())


class Lesson:
    """The pictures of some splits, with their captions as numbers."""

    def __init__(self, store: Store, places: np.ndarray, vocabulary: Vocabulary) -> None:
        self.store, self.places = store, places
        # One array for all: a million small ones would be a hundred megabytes of headers.
        counts = np.zeros(len(store.keys), np.int64)
        counts[places] = [len(store.references[place]) for place in places]
        self._first = np.concatenate([[0], np.cumsum(counts)])  # a picture's first caption
        encoded = [vocabulary.encode(caption) for place in np.sort(places) for caption in store.references[place]]
        self._bounds = np.concatenate([[0], np.cumsum([len(caption) for caption in encoded])]).astype(np.int64)
        self._numbers = np.fromiter((number for caption in encoded for number in caption), np.int32)

    def __len__(self) -> int:
        return len(self.places)

    def captions(self, place: int) -> list[np.ndarray]:
        """The numbers of each caption of one picture."""
        own = range(self._first[place], self._first[place + 1])
        return [self._numbers[self._bounds[caption] : self._bounds[caption + 1]] for caption in own]

    def batch(self, places: np.ndarray) -> Batch:
        """The pictures at `places`, their captions cut to the longest of them."""
        words = in_one([self.captions(int(place)) for place in places])
        return Batch(places, torch.from_numpy(self.store.rows[places]), words)

    def steps(self, batch: int) -> int:
        """Steps of an epoch; the last may be small, and no picture is dropped."""
        return -(-len(self) // batch)

    def shares(self, epoch: int, seed: int, batch: int, rank: int, ranks: int) -> list[np.ndarray]:
        """For each step of an epoch the pictures of this process, at times none.

        Which pictures make a step depends on seed and epoch alone, not on how many processes share it.
        """
        order = np.random.default_rng((seed, epoch)).permutation(self.places)
        return [order[start : start + batch][rank::ranks] for start in range(0, len(order), batch)]


def in_one(captions: Sequence[Sequence[Sequence[int] | np.ndarray]]) -> Tensor:
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
