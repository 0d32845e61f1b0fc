"""The network that is trained: the decoder and, if pictures are read as pixels, the encoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raycap.captioners.trained import folder
from raycap.decoders.decoder import Decoder, Tensors
from raycap.encoders.encoder import Encoder, Features
from raycap.errors import UserError


class Network(nn.Module):
    """A decoder, and the encoder if it runs at every step: on pixels, or on the features of its
    frozen stem. `encoder` is None if pictures are read as complete features."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder

    def encode_if_frozen(self, pictures: Tensor) -> Tensor:
        """The features of pixels if the encoder is frozen, so that it runs once per step.
        Otherwise the pictures as they are."""
        if self.encoder is None or self.encoder.is_trained:
            return pictures
        with torch.no_grad():
            grid, vector = self.encoder(pictures.permute(0, 3, 1, 2))
        return torch.cat([grid, vector.unsqueeze(1)], 1)

    def prepare(self, pictures: Tensor) -> Tensors:
        """The decoder's memory, from features [B, P + 1, D] (the grid, then the vector), complete
        or of the stem of a trained encoder, or from pixels [B, S, S, 3]."""
        return self.decoder.prepare(*self.features(pictures))

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The complete grid [B, P, D] and vector [B, D]."""
        if pictures.dtype == torch.uint8:
            assert self.encoder is not None
            found: Features = self.encoder(pictures.permute(0, 3, 1, 2))
            return found
        if self.encoder is not None and self.encoder.is_trained:
            return self.encoder.from_stem(pictures[:, :-1])
        return pictures[:, :-1], pictures[:, -1]


def load_weights(network: Network, captioner: str) -> None:
    """Load the weights in a captioner folder."""
    tensors = folder.state_of(captioner)
    try:
        network.decoder.load_state_dict(without_prefix("decoder.", tensors))
        encoder = without_prefix("encoder.", tensors)
        if network.encoder is not None and encoder:
            network.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise UserError(f"cannot start from the weights of {captioner}: {error}") from error


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, named without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
