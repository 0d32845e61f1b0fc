"""What is trained: the decoder, and the encoder in front of it where pictures come as pixels."""

import torch
from torch import Tensor, nn

from raycap.decoders.decoder import Decoder, Tensors
from raycap.encoders.encoder import Encoder


class Network(nn.Module):
    """Pictures of either kind to a decoder's memory. `encoder` is None where pictures come as features."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder

    def look(self, pictures: Tensor) -> Tensor:
        """Pixels become features if their encoder does not learn: looked at once, for all that a step asks."""
        if self.encoder is None or any(True for _ in self.encoder.trainable_parameters()):
            return pictures
        with torch.no_grad():
            grid, vector = self.encoder(pictures.permute(0, 3, 1, 2))
        return torch.cat([grid, vector.unsqueeze(1)], 1)

    def remember(self, pictures: Tensor) -> Tensors:
        """From features [B, P + 1, D], the vector below the grid, or pixels [B, S, S, 3]."""
        if pictures.dtype != torch.uint8:
            return self.decoder.remember(pictures[:, :-1], pictures[:, -1])
        assert self.encoder is not None
        return self.decoder.remember(*self.encoder(pictures.permute(0, 3, 1, 2)))
