"""The searches that generate captions with a decoder: greedy, beam, sampling.

They work on token numbers. At each position they call the decoder once, for all pictures and all
their captions. On GPUs, greedy and beam search do so without waiting for the device (device.py).
PAD and `<start>` are never chosen. A caption's log-probability is the sum of the
model's own log-probabilities (float32, over the whole vocabulary, before any word is forbidden) of
its words and of the `<end>` that closes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.options import to_plain

if TYPE_CHECKING:
    from torch import Tensor

    from raycap.decoders.decoder import Decoder, Tensors
    from raycap.search.captions import SearchResult


@dataclass(frozen=True)
class Hypothesis:
    """One caption of one picture."""

    words: tuple[int, ...]
    """Token numbers, without `<start>` and `<end>`."""
    log_probability: float
    """Of the words and, if finished, of `<end>`."""
    score: float
    """log_probability / length ** length_penalty, by which captions are ranked; the length counts
    `<end>`."""
    finished: bool
    """Whether it ends with `<end>`; if not, it was cut off at max_length."""
    attention: Tensor | None = None
    """Attention weights [words, P], if asked for and if the decoder has attention."""


@dataclass(frozen=True)
class SearchOptions:
    """The options of every search."""

    max_length: int = 20
    """Maximum length of a caption, with the `<end>` that closes it."""
    min_length: int = 1
    """Minimum number of words before `<end>`."""
    no_repeat_ngram: int = 0
    """Never repeat a sequence of this many words; 0 allows it."""
    no_stutter: bool = False
    """Never write the same word twice in a row."""
    allow_unknown: bool = False
    """Allow `<unk>` in captions."""
    mirror: bool = False
    """Average the features of the picture and its mirror image: twice the encoder's time."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"search.max_length is {self.max_length}: give at least 1")
        if not 0 <= self.min_length < self.max_length:
            raise UserError(
                f"search.min_length is {self.min_length}: give 0 to {self.max_length - 1}, below "
                "max_length"
            )
        if self.no_repeat_ngram < 0:
            raise UserError(
                f"search.no_repeat_ngram is {self.no_repeat_ngram}: give a number of words, or 0 "
                "for none"
            )


@dataclass(frozen=True)
class Greedy(SearchOptions):
    """The most likely next word, each time."""

    def search(
        self,
        decoder: Decoder,
        memory: Tensors,
        *,
        seeds: Sequence[int] | None = None,
        attention: bool = False,
    ) -> SearchResult:
        """One caption of each picture in `memory`. `seeds` are not used."""
        from raycap.search.device import device_search, is_for_devices
        from raycap.search.sampling import generate

        if is_for_devices(decoder, memory):
            one_beam = Beam(**{one.name: getattr(self, one.name) for one in fields(self)}, width=1)
            return device_search(one_beam, decoder, memory, attention=attention)
        return generate(self, decoder, memory, attention=attention)


@dataclass(frozen=True)
class Beam(SearchOptions):
    """Beam search: the best of several captions that are built side by side.

    A caption is finished when its `<end>` is among the `width` best continuations of its picture.
    A picture is done when `width` captions are finished, or when no beam can overtake the `best`
    finished ones.
    """

    width: int = 3
    """Number of beams: captions that are built side by side."""
    best: int = 1
    """Number of captions returned, best first; at most the width."""
    length_penalty: float = 1.0
    """Rank by log-probability / length ** this: 0 favours short captions, 1 is the mean, more
    favours long ones."""
    consensus: float = 0.0
    """Weight of the agreement with the captions of the most similar training photos (CIDEr-D),
    which is added to the log-probability per word; 0 for none."""
    drawn: int = 0
    """With consensus: captions drawn at random that are candidates besides the beams."""
    drawn_temperature: float = 0.7
    """With consensus: temperature at which they are drawn."""
    fusion: float = 0.0
    """With consensus: weight of the words in the captions of the most similar training photos,
    which is added to the log-probabilities of words during the search; 0 for none."""

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
        if not (math.isfinite(self.consensus) and self.consensus >= 0):
            raise UserError(
                f"search.consensus is {self.consensus}: give a weight such as 4, or 0 for none"
            )
        if self.drawn < 0:
            raise UserError(
                f"search.drawn is {self.drawn}: give a number of captions, or 0 for none"
            )
        if not (math.isfinite(self.fusion) and self.fusion >= 0):
            raise UserError(
                f"search.fusion is {self.fusion}: give a weight such as 5, or 0 for none"
            )
        if not (math.isfinite(self.drawn_temperature) and self.drawn_temperature > 0):
            raise UserError(
                f"search.drawn_temperature is {self.drawn_temperature}: give more than 0"
            )

    def search(
        self,
        decoder: Decoder,
        memory: Tensors,
        *,
        seeds: Sequence[int] | None = None,
        attention: bool = False,
        word_bonus: Tensor | None = None,
    ) -> SearchResult:
        """The `best` captions of each picture in `memory`. `seeds` are not used.

        `word_bonus` [B, V] is added to the log-probability of each word that a caption does not
        have yet: while captions are searched for and ranked, not in the result.
        """
        from raycap.search.beam import beam_search
        from raycap.search.device import device_search, is_for_devices

        search = device_search if is_for_devices(decoder, memory) else beam_search
        return search(self, decoder, memory, attention=attention, word_bonus=word_bonus)


@dataclass(frozen=True)
class Sample(SearchOptions):
    """Words drawn at random by their probabilities."""

    samples: int = 1
    """Number of captions for each picture."""
    temperature: float = 1.0
    """Below 1, likely words are drawn more often; above 1, less often."""
    top_k: int = 0
    """Draw from this many most likely words only; 0 for all words."""
    top_p: float = 1.0
    """Draw from the smallest set of words with this probability in total; 1 for all words."""
    seed: int = 0
    """Seed where the caller gives no seed for each picture."""

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
    ) -> SearchResult:
        """`samples` captions of each picture in `memory`. They depend on the seed of the picture,
        not on the other pictures in the batch."""
        from raycap.search.sampling import generate

        return generate(self, decoder, memory, seeds=seeds, attention=attention)


SearchChoice = Greedy | Beam | Sample

SEARCHES: dict[str, type[SearchChoice]] = {"greedy": Greedy, "beam": Beam, "sample": Sample}


def search_identity(search: SearchChoice) -> dict[str, Any]:
    """The options that decide captions. Newer ones are left out where they have no effect: tables
    and runs of earlier versions know nothing of them."""
    plain = to_plain(search, SEARCHES)
    newer = [] if plain["mirror"] else ["mirror"]
    if not plain.get("consensus"):
        newer += ["consensus", "drawn", "drawn_temperature"]
    if not (plain.get("consensus") and plain["fusion"]):
        newer += ["fusion"]
    return {name: value for name, value in plain.items() if name not in newer}
