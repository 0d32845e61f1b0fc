"""A small pre-norm transformer decoder. Its state is the keys and values of the words so far."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycap.decoders import Transformer
from raycap.decoders.decoder import Decoder, DecoderStep, Tensors, Unrolled
from raycap.decoders.layers import init_linear


class Block(nn.Module):
    """Self-attention, attention over the grid, and a feed-forward part, each with a pre-norm."""

    def __init__(self, options: Transformer) -> None:
        super().__init__()
        width = options.hidden_width
        self.heads = options.heads
        self.before_words, self.before_grid, self.before_forward = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.words = nn.Linear(width, 3 * width)
        self.words_out = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.grid_out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(options.layer_dropout)

    def forward(
        self, stream: Tensor, past: Tensor, memory: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new stream [B, K, T, W], the past with these words, and the attention [B, K, T, P].

        `memory` holds the keys and values of the grid [B, 2, heads, P, W / heads], `past` those of
        the words before [B, K, 2, heads, T0, W / heads]. With `position` [1], the past has room
        for all words, and the only new one stands there.
        """
        context, past = self._attend_to_words(self.before_words(stream), past, position)
        stream = stream + self.dropout(self.words_out(context))
        context, attention = self._attend_to_grid(self.before_grid(stream), memory)
        stream = stream + self.dropout(self.grid_out(context))
        return stream + self.dropout(self.feed(self.before_forward(stream))), past, attention

    def _attend_to_words(
        self, stream: Tensor, past: Tensor, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        parts = self.words(stream).view(*stream.shape[:3], 3, self.heads, -1)
        query, key, value = parts.permute(3, 0, 1, 4, 2, 5)  # [B, K, heads, T, W / heads]
        added = torch.stack([key, value], 2)  # [B, K, 2, heads, T, W / heads]
        if position is None:
            past = torch.cat([past, added], -2)
            total, new = past.shape[-2], query.shape[-2]
            causal = torch.ones(new, total, dtype=torch.bool, device=stream.device)
            causal = causal.tril(total - new)
        else:
            past = past.index_copy(-2, position, added)
            places = torch.arange(past.shape[-2], device=stream.device)
            causal = (places <= position).unsqueeze(0)
        context = functional.scaled_dot_product_attention(
            query, past[:, :, 0], past[:, :, 1], attn_mask=causal
        )
        return context.transpose(2, 3).flatten(-2), past

    def _attend_to_grid(self, stream: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        # All words of all captions of a picture are queries of one attention, so that the grid
        # need not be repeated.
        keys, values = memory.unbind(1)  # [B, heads, P, W / heads]
        query = self.query(stream).view(len(stream), -1, self.heads, keys.shape[-1])
        query = query.transpose(1, 2)  # [B, heads, K * T, W / heads]
        compared = query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5  # [B, heads, K * T, P]
        weights = torch.softmax(compared, -1, dtype=torch.float32)
        context = (weights.to(values.dtype) @ values).transpose(1, 2).reshape(stream.shape)
        return context, weights.mean(1).view(*stream.shape[:3], -1)


class TransformerDecoder(Decoder):
    """The sum of word, position and picture vector goes through the blocks. The attention that is
    returned is that of the last block."""

    def __init__(
        self, options: Transformer, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden = options.hidden_width
        super().__init__(options, vocabulary_size, width, hidden, embeddings)
        self.word_input = nn.Linear(options.embedding_width, hidden)
        self.vector_input = nn.Linear(width, hidden, bias=False)
        # The keys and values of the grid for all blocks, in one product.
        self.grid_input = nn.Linear(self.grid_width, options.layers * 2 * hidden)
        self.heads = options.heads
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.after = nn.LayerNorm(hidden)
        init_linear(self.word_input)
        init_linear(self.vector_input)
        init_linear(self.grid_input)
        init_linear(self.blocks)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        projected = self.grid_input(self.read_grid(grid))
        projected = projected.view(*grid.shape[:2], len(self.blocks), 2, self.heads, -1)
        blocks = projected.permute(2, 0, 3, 4, 1, 5)  # [blocks, B, 2, heads, P, W / heads]
        memory = {f"block_{number}": block for number, block in enumerate(blocks)}
        return memory | {"vector": self.vector_input(self.read_vector(vector))}

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        state = {}
        for name, part in memory.items():
            if name != "vector":  # [B, 2, heads, P, W / heads]
                shape = (len(part), captions, *part.shape[1:3], 0, part.shape[-1])
                state[name] = part.new_empty(shape)
        return state

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        outputs, state, attention = self._run(words.unsqueeze(2), state, memory)
        return DecoderStep(self.logits(outputs.squeeze(2)), state, attention.squeeze(2))

    def fixed_state(self, memory: Tensors, captions: int, length: int) -> Tensors:
        empty = self.initial_state(memory, captions)
        return {
            name: part.new_zeros(*part.shape[:4], length, part.shape[-1])
            for name, part in empty.items()
        }

    def step_at(
        self, position: Tensor, words: Tensor, state: Tensors, memory: Tensors
    ) -> DecoderStep:
        outputs, state, attention = self._run(words.unsqueeze(2), state, memory, position)
        return DecoderStep(self.logits(outputs.squeeze(2)), state, attention.squeeze(2))

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        state = self.initial_state(memory, words.shape[1])
        outputs, _, attention = self._run(words, state, memory)
        return Unrolled(outputs, attention)

    def _run(
        self, words: Tensor, state: Tensors, memory: Tensors, position: Tensor | None = None
    ) -> tuple[Tensor, Tensors, Tensor]:
        """Outputs [B, K, T, W] of the words [B, K, T], the state after them, and the attention."""
        first = state["block_0"].shape[-2] if position is None else position
        places = first + torch.arange(words.shape[2], device=words.device)
        stream = self.word_input(self.embed(words)) + memory["vector"][:, None, None]
        stream = stream + _positions(places, stream)
        after = {}
        for (name, past), block in zip(state.items(), self.blocks, strict=True):
            stream, after[name], attention = block(stream, past, memory[name], position)
        return self.after(stream), after, attention


def _positions(places: Tensor, like: Tensor) -> Tensor:
    """Sinusoidal encodings [T, W] of the places [T]."""
    half = like.shape[-1] // 2
    speed = torch.exp(torch.arange(half, device=like.device) * (-math.log(10_000.0) / half))
    angle = places.to(torch.float32).unsqueeze(1) * speed  # [T, W / 2]
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1).to(like.dtype)
