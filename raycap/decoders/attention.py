"""Looking at the grid: a state's query against the grid's keys, which all captions of a picture share."""

import torch
from torch import Tensor, nn


class Additive(nn.Module):
    """Bahdanau's attention: v . tanh(key + query).

    Computed as 2 v . sigmoid(2 key + 2 query), which is the same up to a constant that the softmax drops: torch's
    sigmoid is some ten times as fast as its tanh on a CPU, and this is the largest tensor of a decoder.
    """

    def __init__(self, grid_width: int, query_width: int, attention_width: int) -> None:
        super().__init__()
        self.context_width = grid_width
        self.key = nn.Linear(grid_width, attention_width)
        self.query = nn.Linear(query_width, attention_width, bias=False)
        self.weigh = nn.Linear(
            attention_width, 1, bias=False
        )  # a bias would change nothing under the softmax

    def prepare(self, grid: Tensor) -> dict[str, Tensor]:
        """Keys [B, P, A] and values [B, P, D']."""
        return {"keys": 2 * self.key(grid), "values": grid}

    def forward(self, query: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Context [B, K, D'] and weights [B, K, P] for the states [B, K, H]."""
        compared = torch.sigmoid_(
            memory["keys"].unsqueeze(1) + 2 * self.query(query).unsqueeze(2)
        )  # [B, K, P, A]
        weights = torch.softmax(2 * self.weigh(compared).squeeze(-1), -1, dtype=torch.float32)
        return weights.to(memory["values"].dtype) @ memory["values"], weights


class MultiHead(nn.Module):
    """Scaled dot products with several heads; the weights reported are the heads' mean."""

    def __init__(
        self, grid_width: int, query_width: int, attention_width: int, heads: int
    ) -> None:
        super().__init__()
        self.context_width = attention_width
        self.heads = heads
        self.key = nn.Linear(grid_width, attention_width, bias=False)  # nor would one here
        self.value = nn.Linear(grid_width, attention_width)
        self.query = nn.Linear(query_width, attention_width)

    def prepare(self, grid: Tensor) -> dict[str, Tensor]:
        """Keys and values [B, heads, P, A / heads]."""
        return {"keys": self._by_head(self.key(grid)), "values": self._by_head(self.value(grid))}

    def forward(self, query: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Context [B, K, A] and weights [B, K, P] for the states [B, K, H]."""
        keys, values = memory["keys"], memory["values"]
        compared = self._by_head(self.query(query)) @ keys.transpose(-1, -2)  # [B, heads, K, P]
        weights = torch.softmax(compared * keys.shape[-1] ** -0.5, -1, dtype=torch.float32)
        context = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)  # [B, K, A]
        return context, weights.mean(1)

    def _by_head(self, tensor: Tensor) -> Tensor:  # [B, N, A] -> [B, heads, N, A / heads]
        return tensor.view(*tensor.shape[:2], self.heads, -1).transpose(1, 2)


def build_attention(
    kind: str, grid_width: int, query_width: int, attention_width: int, heads: int
) -> Additive | MultiHead:
    """The attention named by a decoder's options."""
    if kind == "additive":
        return Additive(grid_width, query_width, attention_width)
    return MultiHead(grid_width, query_width, attention_width, heads)
