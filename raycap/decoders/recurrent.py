"""Recurrent decoders: LSTM and GRU, with attention over the grid or without, and top-down."""

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycap.decoders import Recurrent, TopDown
from raycap.decoders.decoder import Decoder, DecoderStep, Tensors, Unrolled
from raycap.decoders.layers import (
    CELLS,
    GATES,
    LstmCell,
    build_attention,
    init_linear,
    init_recurrent,
)
from raycap.vocabulary import PAD

# The names of the tensors in the state of each kind of cell, each [B, K, layers, H].
STATES = {"lstm": ("hidden", "cell"), "gru": ("hidden",)}


class VectorInput(nn.Module):
    """Uses the picture's vector as the first state, as an input before the first word, or both."""

    def __init__(self, options: Recurrent, width: int) -> None:
        super().__init__()
        self.names = STATES[options.cell]
        self.shape = (len(self.names), options.layers, options.hidden_width)
        as_state = options.vector_enters in ("initial_state", "both")
        as_input = options.vector_enters in ("first_input", "both")
        self.state = nn.Linear(width, int(np.prod(self.shape))) if as_state else None
        self.input = nn.Linear(width, options.embedding_width) if as_input else None

    def prepare(self, vector: Tensor) -> Tensors:
        """The first state [B, layers, H], by the names in STATES, and the first input [B, E] if
        there is one."""
        if self.state is None:
            first = vector.new_zeros(len(vector), *self.shape)
        else:
            first = torch.tanh(self.state(vector)).view(-1, *self.shape)
        memory = dict(zip(self.names, first.unbind(1), strict=True))
        if self.input is not None:
            memory["first_input"] = self.input(vector)
        return memory

    def first_state(self, memory: Tensors) -> Tensors:
        """The first state of one caption of each picture, [B, 1, layers, H]."""
        return {name: memory[name].unsqueeze(1) for name in self.names}


def share(state: Tensors, captions: int) -> Tensors:
    """Expand the state of one caption [B, 1, ...] to `captions` captions of each picture."""
    return {name: part.expand(-1, captions, *part.shape[2:]) for name, part in state.items()}


class PlainRecurrent(Decoder):
    """torch's own LSTM or GRU on the picture's vector alone: a whole caption in one fused call."""

    def __init__(
        self, options: Recurrent, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden, embedded = options.hidden_width, options.embedding_width
        output_width = embedded if options.deep_output else hidden
        super().__init__(options, vocabulary_size, width, output_width, embeddings)
        self.entrance = VectorInput(options, width)
        kind = nn.LSTM if options.cell == "lstm" else nn.GRU
        dropout = options.layer_dropout if options.layers > 1 else 0.0
        self.recurrence = kind(embedded, hidden, options.layers, batch_first=True, dropout=dropout)
        self.deep = nn.Linear(hidden + embedded, embedded) if options.deep_output else None
        init_linear(self.entrance)
        for name, parameter in self.recurrence.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                bias = getattr(self.recurrence, name.replace("weight", "bias"))
                init_recurrent(parameter, bias, GATES[options.cell])
            elif name.startswith("bias_ih"):
                nn.init.zeros_(parameter)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        return self.entrance.prepare(self.read_vector(vector))

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        state = self.entrance.first_state(memory)
        if "first_input" in memory:
            _, state = self._run(memory["first_input"][:, None, None], state)
        return share(state, captions)

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        outputs, state = self._run(self.embed(words.unsqueeze(2)), state)
        return DecoderStep(self.logits(outputs.squeeze(2)), state, None)

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        state = self.initial_state(memory, words.shape[1])
        outputs, _ = self._run(self.embed(words), state)
        return Unrolled(outputs, None)

    def _run(self, embedded: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Outputs [B, K, T, O] of embedded words [B, K, T, E], and the state after them."""
        rows = embedded.shape[:2]
        # torch's own layout: [layers, B * K, H]
        parts = tuple(part.flatten(0, 1).transpose(0, 1).contiguous() for part in state.values())
        given = parts if len(parts) > 1 else parts[0]
        outputs, after = self.recurrence(embedded.flatten(0, 1), given)
        after = after if len(parts) > 1 else (after,)
        outputs = outputs.unflatten(0, rows)  # [B, K, T, H]
        if self.deep is not None:
            outputs = torch.tanh(self.deep(torch.cat([outputs, embedded], -1)))
        new_state = {}
        for name, part in zip(state, after, strict=True):
            new_state[name] = part.transpose(0, 1).unflatten(0, rows)
        return outputs, new_state


class AttentiveDecoder(Decoder):
    """A decoder that attends to the grid before each word.

    Everything that does not depend on the state is computed for all words of a caption at once
    (`project_words`, `project_outputs`). `run_cell` is called for each word.
    """

    _compiled_cell: Callable[..., tuple[Tensor, Tensors, Tensor]] | None = None

    def compile_cell(self) -> None:
        """Compile the cell for training. The loop over words has another length in each batch: as
        a whole it would be compiled again for each."""
        self._compiled_cell = torch.compile(self.run_cell, dynamic=True)

    @abstractmethod
    def project_words(self, embedded: Tensor) -> Tensor:
        """The words' share of the cell's input [..., G] from their embeddings [..., E]."""

    @abstractmethod
    def run_cell(
        self, projected: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        """The cell's output [B, K, L], its state and its attention [B, K, P] after a projected
        word [B, K, G]."""

    def project_outputs(self, outputs: Tensor, embedded: Tensor) -> Tensor:
        """Decoder outputs [..., O] from cell outputs [..., L] and the words' embeddings [...,
        E]."""
        return outputs

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        embedded = self.embed(words)  # [B, K, E]
        outputs, state, attention = self.run_cell(self.project_words(embedded), state, memory)
        return DecoderStep(self.logits(self.project_outputs(outputs, embedded)), state, attention)

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        # Sort by length, longest first. Then the captions that still have a word at some position
        # are the first ones of the batch, and the rest is skipped.
        lengths = (words != PAD).sum(-1)  # [B, R]
        captions = torch.argsort(lengths, dim=1, descending=True, stable=True)  # [B, R]
        pictures = torch.argsort(lengths.amax(1), descending=True, stable=True)  # [B]
        captions_back, pictures_back = torch.argsort(captions, 1), torch.argsort(pictures)
        words = words[pictures.unsqueeze(1), captions[pictures]]
        memory = {name: part[pictures] for name, part in memory.items()}
        embedded = self.embed(words)  # [B, R, T, E]
        outputs, attention = self._run_cells(self.project_words(embedded), memory, words)
        back = pictures_back.unsqueeze(1), captions_back
        return Unrolled(self.project_outputs(outputs, embedded)[back], attention[back])

    def _run_cells(
        self, projected: Tensor, memory: Tensors, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cell outputs [B, R, T, L] and attention [B, R, T, P] of projected words [B, R, T, G].

        At each position, only the first pictures and captions are computed: up to the last one
        that still has a word.
        """
        state = self.initial_state(memory, projected.shape[1])
        compiled = self._compiled_cell if self.training else None
        run_cell = compiled or self.run_cell
        outputs, attentions = [], []
        sizes = _sizes(words)
        for word, (pictures, captions) in zip(projected.unbind(2), sizes, strict=True):
            missing = (0, 0, 0, word.shape[1] - captions, 0, word.shape[0] - pictures)
            state = {name: part[:pictures, :captions] for name, part in state.items()}
            memory = {name: part[:pictures] for name, part in memory.items()}
            word = word[:pictures, :captions]
            if compiled is not None:  # it would be compiled for each layout
                word = word.contiguous()
                state = {name: part.contiguous() for name, part in state.items()}
            output, state, attention = run_cell(word, state, memory)
            outputs.append(functional.pad(output, missing))
            attentions.append(functional.pad(attention, missing))
        return torch.stack(outputs, 2), torch.stack(attentions, 2)


def _sizes(words: Tensor) -> list[tuple[int, int]]:
    """For each position, the number of first pictures and the number of first captions that
    include all words at that position in [B, R, T].

    On Flickr8k with 32 pictures, this computes 20% more than the words themselves. The whole
    padded batch would be twice as large.
    """
    has_word = words != PAD
    sizes = []
    for present in (has_word.any(1), has_word.any(0)):  # [B, T] and [R, T]
        number = torch.arange(1, present.shape[0] + 1, device=words.device).unsqueeze(1)
        sizes.append((present * number).amax(0).clamp(min=1))
    pictures, captions = torch.stack(sizes).tolist()
    return list(zip(pictures, captions, strict=True))


class AttentiveRecurrent(AttentiveDecoder):
    """LSTM or GRU that attends to the grid with its last state."""

    def __init__(
        self, options: Recurrent, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden, embedded = options.hidden_width, options.embedding_width
        output_width = embedded if options.deep_output else hidden
        super().__init__(options, vocabulary_size, width, output_width, embeddings)
        self.entrance = VectorInput(options, width)
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
        self.deep = None
        if options.deep_output:
            self.deep = nn.Linear(hidden + context + embedded, embedded)
        # The projection of a weighted sum is the weighted sum of projections. For a wide grid it
        # is cheaper to project its positions once than the context of each word. Deep output needs
        # the context itself.
        self.projects_grid = (
            options.attention == "additive" and self.deep is None and context >= gates
        )
        init_linear(self)
        self.cells = nn.ModuleList(CELLS[options.cell](hidden) for _ in range(options.layers))

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        memory = self.entrance.prepare(self.read_vector(vector))
        memory |= self.attention.prepare(self.read_grid(grid))
        if self.projects_grid:
            memory["values"] = self.context_input(memory["values"])  # [B, P, G]
        return memory

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        state = self.entrance.first_state(memory)
        if "first_input" in memory:
            projected = self.project_words(memory["first_input"].unsqueeze(1))
            _, state, _ = self.run_cell(projected, state, memory)
        return share(state, captions)

    def project_words(self, embedded: Tensor) -> Tensor:
        projected: Tensor = self.word_input(embedded)
        return projected

    def run_cell(
        self, projected: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        last = state["hidden"][:, :, -1]  # [B, K, H]
        context, attention = self.attention(last, memory)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(last)) * context
        given = projected + (context if self.projects_grid else self.context_input(context))
        layers: list[tuple[Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            if layer:
                given = self.layer_inputs[layer - 1](self.layer_dropout(layers[-1][0]))
            layers.append(cell(given, *(part[:, :, layer] for part in state.values())))
        parts = zip(*layers, strict=True)  # each part of the state, for all layers
        state = {name: torch.stack(part, 2) for name, part in zip(state, parts, strict=True)}
        output = layers[-1][0]
        if self.deep is not None:
            output = torch.cat([output, context], -1)
        return output, state, attention

    def project_outputs(self, outputs: Tensor, embedded: Tensor) -> Tensor:
        if self.deep is None:
            return outputs
        return torch.tanh(self.deep(torch.cat([outputs, embedded], -1)))


class TopDownDecoder(AttentiveDecoder):
    """Two LSTMs: the attention LSTM reads the last word, the picture's vector and the output of
    the language LSTM, which writes the words."""

    def __init__(
        self, options: TopDown, vocabulary_size: int, width: int, embeddings: np.ndarray | None
    ) -> None:
        hidden = options.hidden_width
        super().__init__(options, vocabulary_size, width, hidden, embeddings)
        self.attention = build_attention(
            options.attention, self.grid_width, hidden, options.attention_width, options.heads
        )
        self.word_input = nn.Linear(options.embedding_width, 4 * hidden)
        self.vector_input = nn.Linear(width, 4 * hidden, bias=False)
        self.said_input = nn.Linear(hidden, 4 * hidden, bias=False)
        self.language_input = nn.Linear(hidden + self.attention.context_width, 4 * hidden)
        self.layer_dropout = nn.Dropout(options.layer_dropout)
        init_linear(self)
        self.attention_cell = LstmCell(hidden)
        self.language_cell = LstmCell(hidden)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        projected = self.vector_input(self.read_vector(vector))
        return {"vector": projected} | self.attention.prepare(self.read_grid(grid))

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        shape = (len(memory["vector"]), captions, self.language_cell.recurring.in_features)
        zeros = memory["vector"].new_zeros(shape)
        names = ("attention_hidden", "attention_cell", "language_hidden", "language_cell")
        return dict.fromkeys(names, zeros)

    def project_words(self, embedded: Tensor) -> Tensor:
        projected: Tensor = self.word_input(embedded)
        return projected

    def run_cell(
        self, projected: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        given = projected + memory["vector"].unsqueeze(1)
        given = given + self.said_input(state["language_hidden"])
        attention_hidden, attention_cell = self.attention_cell(
            given, state["attention_hidden"], state["attention_cell"]
        )
        context, attention = self.attention(attention_hidden, memory)
        both = torch.cat([attention_hidden, context], -1)
        language_hidden, language_cell = self.language_cell(
            self.language_input(self.layer_dropout(both)),
            state["language_hidden"],
            state["language_cell"],
        )
        state = {
            "attention_hidden": attention_hidden,
            "attention_cell": attention_cell,
            "language_hidden": language_hidden,
            "language_cell": language_cell,
        }
        return language_hidden, state, attention
