"""The top-down decoder: an attention LSTM that sees the whole picture, and a language LSTM that speaks."""

import numpy as np
import torch
from torch import Tensor, nn

from raycap.decoders import TopDown
from raycap.decoders.attention import build_attention
from raycap.decoders.attentive import AttentiveDecoder
from raycap.decoders.cells import LstmCell, start_linear
from raycap.decoders.decoder import Tensors


class TopDownDecoder(AttentiveDecoder):
    """The attention LSTM reads the last word, the picture's vector and what the language LSTM said."""

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
        start_linear(self)
        self.attention_cell = LstmCell(hidden)
        self.language_cell = LstmCell(hidden)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        vector = self.vector_input(self.read_vector(vector))
        return {"vector": vector} | self.attention.prepare(self.read_grid(grid))

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        shape = (len(memory["vector"]), captions, self.language_cell.recurring.in_features)
        zeros = memory["vector"].new_zeros(shape)
        return dict.fromkeys(
            ("attention_hidden", "attention_cell", "language_hidden", "language_cell"), zeros
        )

    def enter(self, embedded: Tensor) -> Tensor:
        entering: Tensor = self.word_input(embedded)
        return entering

    def advance(
        self, entering: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        entering = (
            entering + memory["vector"].unsqueeze(1) + self.said_input(state["language_hidden"])
        )
        looking, looking_cell = self.attention_cell(
            entering, state["attention_hidden"], state["attention_cell"]
        )
        context, attention = self.attention(looking, memory)
        entering = self.language_input(self.layer_dropout(torch.cat([looking, context], -1)))
        saying, saying_cell = self.language_cell(
            entering, state["language_hidden"], state["language_cell"]
        )
        state = {
            "attention_hidden": looking,
            "attention_cell": looking_cell,
            "language_hidden": saying,
            "language_cell": saying_cell,
        }
        return saying, state, attention
