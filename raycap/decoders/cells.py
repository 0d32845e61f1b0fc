"""Recurrent cells whose input is already projected, so that a whole caption's words are projected at once."""

import torch
from torch import Tensor, nn

GATES = {"lstm": 4, "gru": 3}


class LstmCell(nn.Module):
    """Gates in torch's order: input, forget, cell, output."""

    def __init__(self, hidden_width: int) -> None:
        super().__init__()
        self.recurring = nn.Linear(hidden_width, 4 * hidden_width)
        start_recurrence(self.recurring.weight, self.recurring.bias, gates=4)

    def forward(self, entering: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next (hidden, cell), each [B, K, H], from the projected input [B, K, 4H]."""
        enter, forget, new, leave = (entering + self.recurring(hidden)).chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell), cell


class GruCell(nn.Module):
    """Gates in torch's order: reset, update, new."""

    def __init__(self, hidden_width: int) -> None:
        super().__init__()
        self.recurring = nn.Linear(hidden_width, 3 * hidden_width)
        start_recurrence(self.recurring.weight, self.recurring.bias, gates=3)

    def forward(self, entering: Tensor, hidden: Tensor) -> tuple[Tensor]:
        """The next hidden state [B, K, H] from the projected input [B, K, 3H]."""
        reset, update, new = entering.chunk(3, -1)
        reset_recurring, update_recurring, new_recurring = self.recurring(hidden).chunk(3, -1)
        update = torch.sigmoid(update + update_recurring)
        new = torch.tanh(new + torch.sigmoid(reset + reset_recurring) * new_recurring)
        return (new + update * (hidden - new),)


CELLS: dict[str, type[LstmCell] | type[GruCell]] = {"lstm": LstmCell, "gru": GruCell}


def start_recurrence(weight: Tensor, bias: Tensor, gates: int) -> None:
    """Orthogonal for each gate; an LSTM begins by remembering (forget gate's bias 1)."""
    with torch.no_grad():
        for block in weight.chunk(gates, 0):
            nn.init.orthogonal_(block)
        bias.zero_()
        if gates == GATES["lstm"]:
            bias.chunk(gates)[1].fill_(1.0)


def start_linear(module: nn.Module) -> None:
    """Xavier for every linear layer below `module`, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
