"""The options of the decoders. Torch is imported only when a decoder is built.

To add a decoder, write a subclass of `Decoder` in a file of its own, a class of options here, and
its lines in `DECODERS` and `DecoderChoice`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raycap.errors import UserError
from raycap.options import from_plain

if TYPE_CHECKING:
    import numpy as np

    from raycap.decoders.decoder import Decoder


@dataclass(frozen=True)
class DecoderOptions:
    """The options of every decoder."""

    hidden_width: int = 512
    """Width of the decoder's state."""
    embedding_width: int = 256
    """Width of a word's embedding; with GloVe, the width of its vectors."""
    embedding_trainable: bool = True
    """Train the embeddings; off keeps the initial ones."""
    tied_words: bool = False
    """Use the embeddings as the weights of the output layer too."""
    normalise_picture: bool = False
    """Layer norm on the grid and on the vector from the encoder."""
    projection_width: int = 0
    """Project the grid to this width (linear, ReLU) before all other layers; 0 for no
    projection."""
    grid_dropout: float = 0.0
    """Dropout on the grid (after its projection) and on the vector."""
    embedding_dropout: float = 0.0
    """Dropout on the embeddings."""
    layer_dropout: float = 0.0
    """Dropout between layers; in a transformer, on the output of each part of a block."""
    output_dropout: float = 0.5
    """Dropout before the output layer."""
    output_layers: tuple[int, ...] = ()
    """Widths of dense layers (linear, ReLU) before the output layer, one after the other."""

    def __post_init__(self) -> None:
        if min(self.output_layers, default=1) < 1:
            raise UserError(
                f"decoder.output_layers is {list(self.output_layers)}: give widths of at least 1"
            )
        for name in ("hidden_width", "embedding_width"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"decoder.{name} is {getattr(self, name)}: give a width of at least 1"
                )
        if self.projection_width < 0:
            raise UserError(
                f"decoder.projection_width is {self.projection_width}: give a width, or 0 for none"
            )
        for name in ("grid_dropout", "embedding_dropout", "layer_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"decoder.{name} is {getattr(self, name)}: give a share from 0 to below 1"
                )


@dataclass(frozen=True)
class Recurrent(DecoderOptions):
    """LSTM or GRU, with attention over the grid or without."""

    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    layers: int = 1
    """Recurrent layers, 1 to 3."""
    attention: Literal["additive", "multi_head", "none"] = "additive"
    """Attention over the grid: additive (Bahdanau), multi_head (dot products), or none."""
    attention_width: int = 512
    """Width of the attention's keys and queries."""
    heads: int = 8
    """Heads of multi_head attention, which divide attention_width."""
    vector_enters: Literal["initial_state", "first_input", "both", "nowhere"] = "initial_state"
    """Where the picture's vector enters: as the first state, as an input before the first word,
    both, or nowhere."""
    gated_context: bool = False
    """Scale the attended context by a gate that depends on the state (as in Show, Attend and
    Tell)."""
    deep_output: bool = False
    """One more layer before the output layer, on the state, the context and the last word."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.layers <= 3:
            raise UserError(f"decoder.layers is {self.layers}: give 1, 2 or 3")
        if self.attention == "none" and self.vector_enters == "nowhere":
            raise UserError(
                "decoder.vector_enters is nowhere and decoder.attention is none: the picture "
                "would not be seen at all; let its vector enter as initial_state or first_input, "
                "or choose an attention"
            )
        if self.attention == "none" and self.gated_context:
            raise UserError(
                "decoder.gated_context needs an attention to gate: decoder.attention is none"
            )
        if self.attention == "none" and self.projection_width:
            raise UserError(
                "decoder.projection_width is for the grid, which decoder.attention none never "
                "reads: leave it 0; the vector is projected to embedding_width as first_input, to "
                "hidden_width as initial_state"
            )
        _check_attention(self.attention, self.attention_width, self.heads)

    def build(
        self,
        vocabulary_size: int,
        positions: int,
        width: int,
        embeddings: np.ndarray | None = None,
    ) -> Decoder:
        """The decoder for grids [B, positions, width]; `embeddings` [vocabulary, embedding_width]
        are initial ones."""
        from raycap.decoders.recurrent import AttentiveRecurrent, PlainRecurrent

        kind = PlainRecurrent if self.attention == "none" else AttentiveRecurrent
        return kind(self, vocabulary_size, width, embeddings)


@dataclass(frozen=True)
class TopDown(DecoderOptions):
    """Two LSTMs: one for attention, one for language (Anderson et al. 2018, on grids)."""

    projection_width: int = 512
    """Project the grid to this width (linear, ReLU) before all other layers; 0 for no
    projection."""
    attention: Literal["additive", "multi_head"] = "additive"
    """Attention over the grid: additive (Bahdanau) or multi_head (dot products)."""
    attention_width: int = 512
    """Width of the attention's keys and queries."""
    heads: int = 8
    """Heads of multi_head attention, which divide attention_width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attention(self.attention, self.attention_width, self.heads)

    def build(
        self,
        vocabulary_size: int,
        positions: int,
        width: int,
        embeddings: np.ndarray | None = None,
    ) -> Decoder:
        """The decoder for grids [B, positions, width]; `embeddings` [vocabulary, embedding_width]
        are initial ones."""
        from raycap.decoders.recurrent import TopDownDecoder

        return TopDownDecoder(self, vocabulary_size, width, embeddings)


@dataclass(frozen=True)
class Transformer(DecoderOptions):
    """A small pre-norm transformer; a search keeps the keys and values of earlier words."""

    layers: int = 3
    """Number of blocks, each of self-attention, attention over the grid, and a feed-forward
    part."""
    heads: int = 8
    """Heads of each attention, which divide hidden_width."""
    layer_dropout: float = 0.1
    """Dropout on the output of each part of a block."""
    output_dropout: float = 0.1
    """Dropout before the output layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise UserError(f"decoder.layers is {self.layers}: give at least 1")
        if self.heads < 1 or self.hidden_width % self.heads or self.hidden_width % 2:
            raise UserError(
                f"decoder.hidden_width {self.hidden_width} must be even and a multiple of heads, "
                f"{self.heads}"
            )

    def build(
        self,
        vocabulary_size: int,
        positions: int,
        width: int,
        embeddings: np.ndarray | None = None,
    ) -> Decoder:
        """The decoder for grids [B, positions, width]; `embeddings` [vocabulary, embedding_width]
        are initial ones."""
        from raycap.decoders.transformer import TransformerDecoder

        return TransformerDecoder(self, vocabulary_size, width, embeddings)


def _check_attention(attention: str, width: int, heads: int) -> None:
    if width < 1:
        raise UserError(f"decoder.attention_width is {width}: give a width of at least 1")
    if attention == "multi_head" and (heads < 1 or width % heads):
        raise UserError(f"decoder.attention_width {width} must be a multiple of heads, {heads}")


DecoderChoice = Recurrent | TopDown | Transformer

DECODERS: dict[str, type[DecoderChoice]] = {
    "recurrent": Recurrent,
    "top_down": TopDown,
    "transformer": Transformer,
}


MOST_MEMBERS = 16


@dataclass(frozen=True)
class Ensemble:
    """Several decoders that predict each word together, by the mean of their probabilities.

    It is made of trained decoders (`raycap combine`) and not trained itself.
    """

    members: tuple[dict[str, Any], ...]
    """The options of each decoder, with its kind: {"kind": "top_down", ...}."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.members) <= MOST_MEMBERS:
            raise UserError(
                f"decoder.members are {len(self.members)}: an ensemble has 2 to {MOST_MEMBERS}"
            )
        self.decoders()

    def decoders(self) -> tuple[DecoderChoice, ...]:
        """The options of each decoder."""
        return tuple(from_plain(DECODERS, member, "decoder") for member in self.members)

    def build(
        self,
        vocabulary_size: int,
        positions: int,
        width: int,
        embeddings: np.ndarray | None = None,
    ) -> Decoder:
        """The decoder for grids [B, positions, width]."""
        from raycap.decoders.ensemble import EnsembleDecoder

        built = [
            member.build(vocabulary_size, positions, width, embeddings)
            for member in self.decoders()
        ]
        return EnsembleDecoder(built)


# Those of captioner folders: besides the decoders that can be trained, what is made of them.
SAVED_DECODERS: Mapping[str, Any] = {**DECODERS, "ensemble": Ensemble}
