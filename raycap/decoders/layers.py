"""Layers of decoders: attention over the grid, recurrent cells, and the initial weights."""

import torch
from torch import Tensor, nn

GATES = {"lstm": 4, "gru": 3}


class AdditiveAttention(nn.Module):
    """Bahdanau's attention: v . tanh(key + query).

    It is computed as 2 v . sigmoid(2 key + 2 query), which differs by a constant that the softmax
    removes. On a CPU, torch's sigmoid is about ten times as fast as its tanh, and this is the
    largest tensor of a decoder.
    """

    def __init__(self, grid_width: int, query_width: int, attention_width: int) -> None:
        super().__init__()
        self.context_width = grid_width
        self.key = nn.Linear(grid_width, attention_width)
        self.query = nn.Linear(query_width, attention_width, bias=False)
        # Without a bias, which the softmax would remove.
        self.weigh = nn.Linear(attention_width, 1, bias=False)

    def prepare(self, grid: Tensor) -> dict[str, Tensor]:
        """Keys [B, P, A] and values [B, P, D] of a grid [B, P, D]."""
        return {"keys": 2 * self.key(grid), "values": grid}

    def forward(self, query: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Context [B, K, D] and weights [B, K, P] for the states [B, K, H]."""
        keys = memory["keys"].unsqueeze(1)  # [B, 1, P, A]
        compared = torch.sigmoid_(keys + 2 * self.query(query).unsqueeze(2))  # [B, K, P, A]
        weights = torch.softmax(2 * self.weigh(compared).squeeze(-1), -1, dtype=torch.float32)
        return weights.to(memory["values"].dtype) @ memory["values"], weights


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads. It returns the mean weights of the
    heads."""

    def __init__(
        self, grid_width: int, query_width: int, attention_width: int, heads: int
    ) -> None:
        super().__init__()
        self.context_width = attention_width
        self.heads = heads
        # Without a bias, which the softmax would remove.
        self.key = nn.Linear(grid_width, attention_width, bias=False)
        self.value = nn.Linear(grid_width, attention_width)
        self.query = nn.Linear(query_width, attention_width)

    def prepare(self, grid: Tensor) -> dict[str, Tensor]:
        """Keys and values [B, heads, P, A / heads] of a grid [B, P, D]."""
        return {
            "keys": self._split_heads(self.key(grid)),
            "values": self._split_heads(self.value(grid)),
        }

    def forward(self, query: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Context [B, K, A] and weights [B, K, P] for the states [B, K, H]."""
        keys, values = memory["keys"], memory["values"]
        compared = self._split_heads(self.query(query)) @ keys.transpose(-1, -2)
        compared = compared * keys.shape[-1] ** -0.5  # [B, heads, K, P]
        weights = torch.softmax(compared, -1, dtype=torch.float32)
        context = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)  # [B, K, A]
        return context, weights.mean(1)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        """[B, N, A] -> [B, heads, N, A / heads]."""
        return tensor.view(*tensor.shape[:2], self.heads, -1).transpose(1, 2)


def build_attention(
    kind: str, grid_width: int, query_width: int, attention_width: int, heads: int
) -> AdditiveAttention | MultiHeadAttention:
    """The attention that a decoder's options name."""
    if kind == "additive":
        return AdditiveAttention(grid_width, query_width, attention_width)
    return MultiHeadAttention(grid_width, query_width, attention_width, heads)


class LstmCell(nn.Module):
    """An LSTM cell whose input is already projected, so that all words of a caption can be
    projected at once. Gates are in torch's order: input, forget, cell, output."""

    def __init__(self, hidden_width: int) -> None:
        super().__init__()
        self.recurring = nn.Linear(hidden_width, 4 * hidden_width)
        init_recurrent(self.recurring.weight, self.recurring.bias, gates=4)

    def forward(self, projected: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next (hidden, cell), each [B, K, H], from the projected input [B, K, 4H]."""
        gates = projected + self.recurring(hidden)
        input_gate, forget_gate, new, output_gate = gates.chunk(4, -1)
        cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(new)
        return torch.sigmoid(output_gate) * torch.tanh(cell), cell


class GruCell(nn.Module):
    """A GRU cell whose input is already projected. Gates are in torch's order: reset, update,
    new."""

    def __init__(self, hidden_width: int) -> None:
        super().__init__()
        self.recurring = nn.Linear(hidden_width, 3 * hidden_width)
        init_recurrent(self.recurring.weight, self.recurring.bias, gates=3)

    def forward(self, projected: Tensor, hidden: Tensor) -> tuple[Tensor]:
        """The next hidden state [B, K, H] from the projected input [B, K, 3H]."""
        reset, update, new = projected.chunk(3, -1)
        reset_recurring, update_recurring, new_recurring = self.recurring(hidden).chunk(3, -1)
        update = torch.sigmoid(update + update_recurring)
        new = torch.tanh(new + torch.sigmoid(reset + reset_recurring) * new_recurring)
        return (new + update * (hidden - new),)


CELLS: dict[str, type[LstmCell] | type[GruCell]] = {"lstm": LstmCell, "gru": GruCell}


def init_recurrent(weight: Tensor, bias: Tensor, gates: int) -> None:
    """Orthogonal weights for each gate; the forget gate of an LSTM starts with a bias of 1."""
    with torch.no_grad():
        for block in weight.chunk(gates, 0):
            nn.init.orthogonal_(block)
        bias.zero_()
        if gates == GATES["lstm"]:
            bias.chunk(gates)[1].fill_(1.0)


def init_linear(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer in `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
