"""LSTM and GRU decoders: with attention over the grid, or on the picture's vector alone."""

import numpy as np
import torch
from torch import Tensor, nn

from raycap.decoders import Recurrent
from raycap.decoders.attention import build_attention
from raycap.decoders.attentive import AttentiveDecoder
from raycap.decoders.cells import CELLS, GATES, start_linear, start_recurrence
from raycap.decoders.decoder import Decoder, DecoderStep, Tensors, Unrolled

# What a cell carries from word to word, each [B, K, layers, H].
STATES = {"lstm": ("hidden", "cell"), "gru": ("hidden",)}


class VectorEntrance(nn.Module):
    """How the picture's vector comes in: as the first state, as an input before the first word, or both."""

    def __init__(self, options: Recurrent, width: int) -> None:
        super().__init__()
        self.names = STATES[options.cell]
        self.shape = (len(self.names), options.layers, options.hidden_width)
        as_state = options.vector_enters in ("initial_state", "both")
        as_input = options.vector_enters in ("first_input", "both")
        self.state = nn.Linear(width, int(np.prod(self.shape))) if as_state else None
        self.input = nn.Linear(width, options.embedding_width) if as_input else None

    def prepare(self, vector: Tensor) -> Tensors:
        """The first state [B, layers, H] under the cell's own names, and the first input [B, E] if there is one."""
        if self.state is None:
            first = vector.new_zeros(len(vector), *self.shape)
        else:
            first = torch.tanh(self.state(vector)).view(-1, *self.shape)
        memory = dict(zip(self.names, first.unbind(1), strict=True))
        return memory if self.input is None else memory | {"first_input": self.input(vector)}

    def state_of_one(self, memory: Tensors) -> Tensors:
        """The first state of one caption of each picture, [B, 1, layers, H]."""
        return {name: memory[name].unsqueeze(1) for name in self.names}


def _for_all(state: Tensors, captions: int) -> Tensors:
    """The state of one caption [B, 1, ...], shared by `captions` of them."""
    return {name: part.expand(-1, captions, *part.shape[2:]) for name, part in state.items()}


class PlainRecurrent(Decoder):
    """torch's own LSTM or GRU: the whole caption in one fused call, a step in a call of length one."""

    def __init__(
        self, options: Recurrent, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden, embedded = options.hidden_width, options.embedding_width
        output_width = embedded if options.deep_output else hidden
        super().__init__(options, vocabulary_size, width, output_width, embeddings)
        self.entrance = VectorEntrance(options, width)
        kind = nn.LSTM if options.cell == "lstm" else nn.GRU
        dropout = options.layer_dropout if options.layers > 1 else 0.0
        self.recurrence = kind(embedded, hidden, options.layers, batch_first=True, dropout=dropout)
        self.deep = nn.Linear(hidden + embedded, embedded) if options.deep_output else None
        start_linear(self.entrance)
        for name, parameter in self.recurrence.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                bias = getattr(self.recurrence, name.replace("weight", "bias"))
                start_recurrence(parameter, bias, GATES[options.cell])
            elif name.startswith("bias_ih"):
                nn.init.zeros_(parameter)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        return self.entrance.prepare(self.read_vector(vector))

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        state = self.entrance.state_of_one(memory)
        if "first_input" in memory:
            _, state = self._run(memory["first_input"][:, None, None], state)
        return _for_all(state, captions)

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        outputs, state = self._run(self.embed(words.unsqueeze(2)), state)
        return DecoderStep(self.logits(outputs.squeeze(2)), state, None)

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        return Unrolled(
            self._run(self.embed(words), self.initial_state(memory, words.shape[1]))[0], None
        )

    def _run(self, embedded: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Outputs [B, K, T, O] and the state after all T of the words' vectors [B, K, T, E]."""
        rows = embedded.shape[:2]
        # torch's own layout: [layers, B * K, H]
        parts = tuple(part.flatten(0, 1).transpose(0, 1).contiguous() for part in state.values())
        outputs, after = self.recurrence(
            embedded.flatten(0, 1), parts if len(parts) > 1 else parts[0]
        )
        after = after if len(parts) > 1 else (after,)
        outputs = outputs.unflatten(0, rows)  # [B, K, T, H]
        if self.deep is not None:
            outputs = torch.tanh(self.deep(torch.cat([outputs, embedded], -1)))
        return outputs, {
            name: part.transpose(0, 1).unflatten(0, rows)
            for name, part in zip(state, after, strict=True)
        }


class AttentiveRecurrent(AttentiveDecoder):
    """LSTM or GRU that looks at the grid, with its last state, before each word."""

    def __init__(
        self, options: Recurrent, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden, embedded = options.hidden_width, options.embedding_width
        output_width = embedded if options.deep_output else hidden
        super().__init__(options, vocabulary_size, width, output_width, embeddings)
        self.entrance = VectorEntrance(options, width)
        self.attention = build_attention(
            options.attention, self.grid_width, hidden, options.attention_width, options.heads
        )
        context, gates = self.attention.context_width, GATES[options.cell] * hidden
        self.word_input = nn.Linear(embedded, gates)
        self.context_input = nn.Linear(context, gates, bias=False)
        self.layer_inputs = nn.ModuleList(
            nn.Linear(hidden, gates) for _ in range(options.layers - 1)
        )
        self.layer_dropout = nn.Dropout(options.layer_dropout)
        self.gate = nn.Linear(hidden, 1) if options.gated_context else None
        self.deep = (
            nn.Linear(hidden + context + embedded, embedded) if options.deep_output else None
        )
        # The projection of a weighted sum is the weighted sum of projections: of a wide grid it is cheaper to
        # project the positions once than what was attended at each word. Deep output needs the context itself.
        self.early = options.attention == "additive" and self.deep is None and context >= gates
        start_linear(self)
        self.cells = nn.ModuleList(CELLS[options.cell](hidden) for _ in range(options.layers))

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        memory = self.entrance.prepare(self.read_vector(vector)) | self.attention.prepare(
            self.read_grid(grid)
        )
        if self.early:
            memory["values"] = self.context_input(memory["values"])  # [B, P, G]
        return memory

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        state = self.entrance.state_of_one(memory)
        if "first_input" in memory:
            _, state, _ = self.advance(
                self.enter(memory["first_input"].unsqueeze(1)), state, memory
            )
        return _for_all(state, captions)

    def enter(self, embedded: Tensor) -> Tensor:
        entering: Tensor = self.word_input(embedded)
        return entering

    def advance(
        self, entering: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        context, attention = self.attention(state["hidden"][:, :, -1], memory)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(state["hidden"][:, :, -1])) * context
        entering = entering + (context if self.early else self.context_input(context))
        layers: list[tuple[Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            if layer:
                entering = self.layer_inputs[layer - 1](self.layer_dropout(layers[-1][0]))
            layers.append(cell(entering, *(part[:, :, layer] for part in state.values())))
        state = {
            name: torch.stack(parts, 2)
            for name, parts in zip(state, zip(*layers, strict=True), strict=True)
        }
        leaving = layers[-1][0]
        return (
            (leaving if self.deep is None else torch.cat([leaving, context], -1)),
            state,
            attention,
        )

    def leave(self, leaving: Tensor, embedded: Tensor) -> Tensor:
        return (
            leaving
            if self.deep is None
            else torch.tanh(self.deep(torch.cat([leaving, embedded], -1)))
        )
