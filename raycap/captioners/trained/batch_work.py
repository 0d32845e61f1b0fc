"""One batch of a trained captioner, step by step: what is asked, encoded, found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raycap.captioners.generation import picture_seed
from raycap.decoders.decoder import Tensors
from raycap.schema import ATTEMPT
from raycap.search import Beam, Sample, SearchChoice, SearchOptions

if TYPE_CHECKING:
    from raycap.captioners.protocol import Prediction
    from raycap.captioners.trained.lanes import Mark, SquarePixels
    from raycap.search.captions import SearchResult

# Captions that are drawn when a picture is tried again. The surest of them is the answer.
DRAWN_AGAIN = 4


@dataclass(frozen=True)
class BatchRequest:
    """Pictures, and how their captions are searched for."""

    pictures: Sequence[SquarePixels]
    faults: Mapping[int, Prediction]
    """What is answered for pictures that could not be decoded."""
    usual: SearchChoice
    """The search where no picture is tried again."""
    draws_again: bool
    seeds: Sequence[int]
    references: Sequence[Sequence[str]] | None
    """The true captions, if they are to be scored."""
    attention: bool

    @classmethod
    def of(
        cls,
        pictures: Sequence[SquarePixels],
        faults: Mapping[int, Prediction],
        rows: Sequence[Mapping[str, Any]],
        search: SearchChoice,
        attention: bool,
        true_words: bool,
    ) -> BatchRequest:
        attempts = [row.get(ATTEMPT) or 0 for row in rows]
        seeds = [
            picture_seed(attempt, str(row.get("sha256") or ""), 0)
            for attempt, row in zip(attempts, rows, strict=True)
        ]
        references = [row["references"] for row in rows] if true_words else None
        return cls(pictures, faults, search, any(attempts), seeds, references, attention)

    @property
    def search(self) -> SearchChoice:
        """A beam search would give the same caption again."""
        return _sampling_like(self.usual) if self.draws_again else self.usual

    def part(self, start: int, stop: int) -> BatchRequest:
        """Some of its pictures."""
        references = None if self.references is None else self.references[start:stop]
        places = range(start, stop)
        faults = {place - start: self.faults[place] for place in places if place in self.faults}
        return dataclasses.replace(
            self,
            pictures=self.pictures[start:stop],
            faults=faults,
            seeds=self.seeds[start:stop],
            references=references,
        )


@dataclass(frozen=True)
class EncodedBatch:
    """A batch whose features are being computed."""

    request: BatchRequest
    count: int
    """With the black pictures behind those of the request."""
    memory: Tensors
    vectors: Tensor | None
    """In host memory, where neighbours are looked for."""
    is_done: Mark


@dataclass(frozen=True)
class Nearest:
    """The training photos most similar to the pictures of a batch."""

    rows: NDArray[np.intp]  # [B, K]
    likeness: NDArray[np.floating]  # [B, K]
    familiar: NDArray[np.floating]  # [B]
    unfamiliar: list[float]  # [B]


@dataclass(frozen=True)
class FoundBatch:
    """A batch whose captions are being searched for. What it holds is in host memory when
    `is_done`."""

    batch: EncodedBatch
    """Kept until then: the search reads its memory."""
    results: Sequence[SearchResult]
    nearest: Nearest | None
    true_words: Tensor | None  # [B, 3]
    is_done: Mark


def _sampling_like(search: SearchChoice) -> Sample:
    """A search that draws other captions for each seed, as long as those of this search."""
    if isinstance(search, Sample):
        return dataclasses.replace(search)
    names = [option.name for option in dataclasses.fields(SearchOptions)]
    given: dict[str, Any] = {name: getattr(search, name) for name in names}
    best = search.best if isinstance(search, Beam) else 1
    return Sample(**given, samples=max(DRAWN_AGAIN, best), temperature=0.7, top_p=0.9)
