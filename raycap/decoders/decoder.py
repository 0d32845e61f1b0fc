"""What every decoder is: a picture's memory and the words so far become the scores of the next word.

Everything has the shape [B, K, ...]: B pictures, K captions of each in parallel. K counts the references in teacher
forcing and the beams in search, so a picture is remembered once and shared by all its captions.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycap.decoders import DecoderOptions
from raycap.errors import UserError
from raycap.vocabulary import PAD

# Named tensors: a memory's begin with [B, ...], a state's with [B, K, ...], so that search can pick rows of either.
Tensors = dict[str, Tensor]


class DecoderStep(NamedTuple):
    """One word further."""

    logits: Tensor  # [B, K, V] of the next word
    state: Tensors  # each [B, K, ...]
    attention: Tensor | None  # [B, K, P], sums to 1 over P


class Unrolled(NamedTuple):
    """Whole captions, teacher-forced, up to the vocabulary; what is behind a last word means nothing."""

    outputs: Tensor  # [B, R, T, O], what `scores` takes
    attention: Tensor | None  # [B, R, T, P]


class Decoder(nn.Module, ABC):
    """The words' way in and out, the picture's way in, and the protocol between them."""

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
        self.grid_width = projected or width
        self.embedding = nn.Embedding(vocabulary_size, options.embedding_width, padding_idx=PAD)
        self.embedding_dropout = nn.Dropout(options.embedding_dropout)
        # Without weights of its own: every layer behind it has them, and some decoders read only grid or vector.
        normalise = options.normalise_picture
        self.normalise = (
            nn.LayerNorm(width, elementwise_affine=False) if normalise else nn.Identity()
        )
        self.projection = (
            nn.Sequential(nn.Linear(width, projected), nn.ReLU()) if projected else nn.Identity()
        )
        self.picture_dropout = nn.Dropout(options.grid_dropout)
        self.output_dropout = nn.Dropout(options.output_dropout)
        bridged = options.tied_words and output_width != options.embedding_width
        self.bridge = (
            nn.Linear(output_width, options.embedding_width) if bridged else nn.Identity()
        )
        # Tied, the weight is the embedding's own: kept under one name, so that a saved decoder holds it once.
        self.tied = options.tied_words
        self.vocabulary = (
            None if self.tied else nn.Linear(output_width, vocabulary_size, bias=False)
        )
        self.vocabulary_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self._start_from(options, embeddings)

    def _start_from(self, options: DecoderOptions, embeddings: np.ndarray | None) -> None:
        weight = self.embedding.weight
        weight.requires_grad_(options.embedding_trainable)
        if embeddings is None:
            nn.init.uniform_(weight, -0.1, 0.1)
        elif embeddings.shape != tuple(weight.shape):
            raise UserError(
                f"the embedding matrix is {embeddings.shape[0]} words x {embeddings.shape[1]}, the decoder's is "
                f"{weight.shape[0]} x {weight.shape[1]}: set decoder.embedding_width to {embeddings.shape[1]}"
            )
        else:
            with torch.no_grad():
                weight.copy_(torch.as_tensor(embeddings))
        if self.vocabulary is not None:
            nn.init.uniform_(self.vocabulary.weight, -0.1, 0.1)

    @abstractmethod
    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        """What is computed once per picture, from its grid [B, P, D] and vector [B, D]; each tensor [B, ...]."""

    @abstractmethod
    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        """The state before `<start>` of `captions` captions of each picture; each tensor [B, captions, ...]."""

    @abstractmethod
    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        """Read one word of each caption [B, K] and score the next."""

    @abstractmethod
    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        """Read whole captions [B, R, T] (from `<start>`, then PAD) by the same cell as `step`.

        A loss needs `scores` of the true words only, and padding is half of a batch: pick those from `outputs`.
        """

    def forward(self, memory: Tensors, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scores [B, R, T, V] of the word after each of `words` [B, R, T] (teacher forcing), and attention."""
        outputs, attention = self.unroll(memory, words)
        return self.logits(outputs), attention

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits [..., V] from outputs [..., O]."""
        weight = self.embedding.weight if self.vocabulary is None else self.vocabulary.weight
        return functional.linear(
            self.bridge(self.output_dropout(outputs)), weight, self.vocabulary_bias
        )

    def embed(self, words: Tensor) -> Tensor:
        """Words' vectors [..., E]."""
        embedded: Tensor = self.embedding_dropout(self.embedding(words))
        return embedded

    def read_grid(self, grid: Tensor) -> Tensor:
        """The grid [B, P, D'] as the decoder's own layers take it (in feature tables it is float16)."""
        read: Tensor = self.picture_dropout(
            self.projection(self.normalise(grid.to(self.embedding.weight.dtype)))
        )
        return read

    def read_vector(self, vector: Tensor) -> Tensor:
        """The vector [B, D] as the decoder's own layers take it."""
        read: Tensor = self.picture_dropout(self.normalise(vector.to(self.embedding.weight.dtype)))
        return read
