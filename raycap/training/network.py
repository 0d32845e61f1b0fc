"""What is trained: the decoder, and the encoder in front of it where pictures come as pixels."""

from torch import Tensor, nn

from raycap.decoders.decoder import Decoder, Tensors
from raycap.encoders.encoder import Encoder


class Network(nn.Module):
    """Pictures of either kind to a decoder's memory. `encoder` is None where pictures come as features."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder

    def remember(self, pictures: Tensor) -> Tensors:
        """From features [B, P + 1, D], the vector below the grid, or pixels [B, S, S, 3]."""
        if self.encoder is None:
            return self.decoder.remember(pictures[:, :-1], pictures[:, -1])
        return self.decoder.remember(*self.encoder(pictures.permute(0, 3, 1, 2)))
