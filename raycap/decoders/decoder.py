"""The base class of decoders, which predict the next word from a picture and the words so far.

`prepare` computes the *memory* of a picture from its features, once for all its captions. `step`
reads one word, and `unroll` reads whole captions in training.

Shapes are [B, K, ...]: B pictures with K captions each. In teacher forcing these are the
references (then also called R), in a search the beams or samples.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycap.decoders import DecoderOptions
from raycap.errors import UserError
from raycap.vocabulary import PAD

# The type of memories, whose tensors are [B, ...], and of states, whose tensors are [B, K, ...]. A
# search selects pictures and captions by indexing them.
Tensors = dict[str, Tensor]


class DecoderStep(NamedTuple):
    """The result of reading one word."""

    logits: Tensor  # [B, K, V] of the next word
    state: Tensors  # each [B, K, ...]
    attention: Tensor | None  # [B, K, P], sums to 1 over P


class Unrolled(NamedTuple):
    """The outputs for whole captions. Values at padding are undefined."""

    outputs: Tensor  # [B, R, T, O], for `logits`
    attention: Tensor | None  # [B, R, T, P]


def dense_layers(width: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths, each with a ReLU behind it."""
    layers: list[nn.Module] = []
    for before, after in pairwise((width, *widths)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


class Decoder(nn.Module, ABC):
    """The parts that all decoders have: embeddings, projection of the picture, output layer."""

    def __init__(
        self,
        options: DecoderOptions,
        vocabulary_size: int,
        width: int,
        output_width: int,
        embeddings: np.ndarray | None,
    ) -> None:
        super().__init__()
        projected = options.projection_width
        self.vocabulary_size, self.output_width = vocabulary_size, output_width
        self.grid_width = projected or width
        self.embedding = nn.Embedding(vocabulary_size, options.embedding_width, padding_idx=PAD)
        self.embedding_dropout = nn.Dropout(options.embedding_dropout)
        self.normalise: nn.Module = nn.Identity()
        if options.normalise_picture:
            # Without learned weights: the layers after it have some, and not every decoder reads
            # both grid and vector.
            self.normalise = nn.LayerNorm(width, elementwise_affine=False)
        self.projection: nn.Module = nn.Identity()
        if projected:
            self.projection = nn.Sequential(nn.Linear(width, projected), nn.ReLU())
        self.picture_dropout = nn.Dropout(options.grid_dropout)
        self.output_dropout = nn.Dropout(options.output_dropout)
        self.dense = dense_layers(output_width, options.output_layers)
        output_width = (output_width, *options.output_layers)[-1]
        self.bridge: nn.Module = nn.Identity()
        if options.tied_words and output_width != options.embedding_width:
            self.bridge = nn.Linear(output_width, options.embedding_width)
        # With tied words, the output layer uses the weight of the embedding, which is saved once.
        self.vocabulary = None
        if not options.tied_words:
            self.vocabulary = nn.Linear(output_width, vocabulary_size, bias=False)
        self.vocabulary_bias = nn.Parameter(torch.zeros(vocabulary_size))
        weight = self.embedding.weight
        weight.requires_grad_(options.embedding_trainable)
        if embeddings is None:
            nn.init.uniform_(weight, -0.1, 0.1)
        elif embeddings.shape != tuple(weight.shape):
            raise UserError(
                f"the embedding matrix is {embeddings.shape[0]} words x {embeddings.shape[1]}, "
                f"the decoder's is {weight.shape[0]} x {weight.shape[1]}: set "
                f"decoder.embedding_width to {embeddings.shape[1]}"
            )
        else:
            with torch.no_grad():
                weight.copy_(torch.as_tensor(embeddings))
        if self.vocabulary is not None:
            nn.init.uniform_(self.vocabulary.weight, -0.1, 0.1)

    @abstractmethod
    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        """The memory of pictures with the grid [B, P, D] and the vector [B, D]."""

    @abstractmethod
    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        """The state [B, captions, ...] before `<start>`, for `captions` captions of each
        picture."""

    @abstractmethod
    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        """Read one word of each caption [B, K] and predict the next."""

    def fixed_state(self, memory: Tensors, captions: int, length: int) -> Tensors:
        """As `initial_state`, in tensors that keep their shapes for `length` words. For
        `step_at`."""
        return self.initial_state(memory, captions)

    def step_at(
        self, position: Tensor, words: Tensor, state: Tensors, memory: Tensors
    ) -> DecoderStep:
        """As `step`, with a state from `fixed_state` after as many words as `position` [1] says.
        Nothing in it may depend on values that the host reads."""
        return self.step(words, state, memory)

    @abstractmethod
    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        """Read whole captions [B, R, T] (from `<start>`, then PAD) with the same result as `step`.

        About half of a batch is padding: select the real words before calling `logits`.
        """

    def forward(self, memory: Tensors, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits [B, R, T, V] of the word after each of `words` [B, R, T], and the
        attention."""
        outputs, attention = self.unroll(memory, words)
        return self.logits(outputs), attention

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits [..., V] from outputs [..., O]."""
        weight = self.embedding.weight if self.vocabulary is None else self.vocabulary.weight
        bridged = self.bridge(self.dense(self.output_dropout(outputs)))
        return functional.linear(bridged, weight, self.vocabulary_bias)

    def embed(self, words: Tensor) -> Tensor:
        """The embeddings [..., E] of words [...]."""
        embedded: Tensor = self.embedding_dropout(self.embedding(words))
        return embedded

    def read_grid(self, grid: Tensor) -> Tensor:
        """The normalised and projected grid [B, P, D']; `grid` may be float16, as in feature
        tables."""
        normalised = self.normalise(grid.to(self.embedding.weight.dtype))
        read: Tensor = self.picture_dropout(self.projection(normalised))
        return read

    def read_vector(self, vector: Tensor) -> Tensor:
        """The normalised vector [B, D]."""
        read: Tensor = self.picture_dropout(self.normalise(vector.to(self.embedding.weight.dtype)))
        return read
