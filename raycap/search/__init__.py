"""From the scores of the next word to whole captions: greedy, beam, sampling; knows token numbers only.

Every search asks the decoder once per word for all pictures and all their captions. PAD and `<start>` are never
chosen. A caption's log-probability is the sum of the model's own log-probabilities (float32, over the whole
vocabulary, before anything is forbidden) of its words and of the `<end>` that closes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from raycap.decoders.decoder import Decoder, Tensors
    from raycap.search.found import Found


@dataclass(frozen=True)
class Hypothesis:
    """One caption of one picture."""

    words: tuple[int, ...]
    """Token numbers, without `<start>` and `<end>`."""
    log_probability: float
    """Of the words and, where finished, of `<end>`."""
    score: float
    """What captions are ranked by: log_probability / length ** length_penalty, the length with `<end>`."""
    finished: bool
    """Whether the model closed it; else it was cut at max_length."""
    attention: Tensor | None = None
    """Where the model looked, [words, P], if asked for and if the decoder looks anywhere."""


@dataclass(frozen=True)
class SearchOptions:
    """What every search can be asked."""

    max_length: int = 20
    """Most steps of a caption: its words and the `<end>` that closes it."""
    min_length: int = 1
    """Fewest words before `<end>`."""
    no_repeat_ngram: int = 0
    """Never say the same so many words in a row twice; 0 allows it."""
    no_stutter: bool = False
    """Never say a word twice in a row."""
    allow_unknown: bool = False
    """Let the caption hold `<unk>`."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"search.max_length is {self.max_length}: give at least 1")
        if not 0 <= self.min_length < self.max_length:
            raise UserError(
                f"search.min_length is {self.min_length}: give 0 to {self.max_length - 1}, below max_length"
            )
        if self.no_repeat_ngram < 0:
            raise UserError(
                f"search.no_repeat_ngram is {self.no_repeat_ngram}: give a number of words, or 0 for none"
            )


@dataclass(frozen=True)
class Greedy(SearchOptions):
    """The best next word, each time."""

    def search(
        self,
        decoder: Decoder,
        memory: Tensors,
        *,
        seeds: Sequence[int] | None = None,
        attention: bool = False,
    ) -> Found:
        """One caption of each picture in `memory`; nothing is drawn, so `seeds` change nothing."""
        from raycap.search.draw import draw

        return draw(self, decoder, memory, attention=attention)


@dataclass(frozen=True)
class Beam(SearchOptions):
    """The best captions of several that grow side by side.

    A caption is finished when its `<end>` is among the `width` best continuations of its picture. A picture is done
    when `width` captions have finished, or when no growing one can overtake the `best` that have.
    """

    width: int = 3
    """Captions that grow side by side."""
    best: int = 1
    """Captions returned, best first; at most the width."""
    length_penalty: float = 1.0
    """Rank by log-probability / length ** this: 0 favours short captions, 1 takes the mean, more favours long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise UserError(f"search.width is {self.width}: give at least 1")
        if not 1 <= self.best <= self.width:
            raise UserError(
                f"search.best is {self.best}: give 1 to {self.width}, the width, or widen the beam"
            )
        if not (math.isfinite(self.length_penalty) and self.length_penalty >= 0):
            raise UserError(f"search.length_penalty is {self.length_penalty}: give 0 or more")

    def search(
        self,
        decoder: Decoder,
        memory: Tensors,
        *,
        seeds: Sequence[int] | None = None,
        attention: bool = False,
    ) -> Found:
        """The `best` captions of each picture in `memory`; nothing is drawn, so `seeds` change nothing."""
        from raycap.search.beam import beam

        return beam(self, decoder, memory, attention=attention)


@dataclass(frozen=True)
class Sample(SearchOptions):
    """Words drawn by their probabilities."""

    samples: int = 1
    """Captions drawn for each picture."""
    temperature: float = 1.0
    """Below 1 draws likely words more often, above 1 less often."""
    top_k: int = 0
    """Draw from the so many likeliest words only; 0 from all."""
    top_p: float = 1.0
    """Draw from the fewest words that together are this probable; 1 from all."""
    seed: int = 0
    """Starts the draw where the caller gives no seed for each picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise UserError(f"search.samples is {self.samples}: give at least 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"search.temperature is {self.temperature}: give more than 0, or use greedy search"
            )
        if self.top_k < 0:
            raise UserError(f"search.top_k is {self.top_k}: give a number of words, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"search.top_p is {self.top_p}: give more than 0 and at most 1")

    def search(
        self,
        decoder: Decoder,
        memory: Tensors,
        *,
        seeds: Sequence[int] | None = None,
        attention: bool = False,
    ) -> Found:
        """`samples` captions of each picture in `memory`, drawn by the picture's own seed, whatever its batch."""
        from raycap.search.draw import draw

        return draw(self, decoder, memory, seeds=seeds, attention=attention)


SearchChoice = Greedy | Beam | Sample

SEARCHES: dict[str, type[SearchChoice]] = {"greedy": Greedy, "beam": Beam, "sample": Sample}
