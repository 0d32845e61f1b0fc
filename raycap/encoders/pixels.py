"""The encoder `pixels`, which needs no weights: the low frequencies of the colours of each
patch."""

import math

import torch
from torch import Tensor

from raycap.encoders import Pixels
from raycap.encoders.encoder import Encoder, Trunk


class CosineTrunk(Trunk):
    """A discrete cosine transform of each patch. For natural pictures it keeps nearly as much
    information as any linear transform with as few numbers can."""

    basis: Tensor  # [K, patch]
    gain: Tensor  # [K, K]

    def __init__(self, patch: int, frequencies: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # arithmetic on the meta device loads torch's compiler: 2 s
            frequency = torch.arange(frequencies)[:, None]  # [K, 1]
            pixel = torch.arange(patch)[None]  # [1, patch]
            basis = torch.cos(math.pi * frequency * (2 * pixel + 1) / (2 * patch)) / patch
            # In natural pictures, amplitudes fall with frequency. The gain brings them to one
            # scale.
            gain = 1.0 + frequency + frequency.T
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("gain", gain, persistent=False)

    def grid_at(self, size: int) -> tuple[int, int]:
        return size // self.basis.shape[1], 3 * self.basis.shape[0] ** 2

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, 3 K K, H, H], [B, 3 K K]."""
        patch = self.basis.shape[1]
        side = pixels.shape[2] // patch
        patches = pixels.reshape(-1, 3, side, patch, side, patch)  # [B, 3, H, patch, H, patch]
        spectrum = torch.einsum("bchpwq,kp,lq->bcklhw", patches, self.basis, self.basis)
        features = (spectrum * self.gain[:, :, None, None]).flatten(1, 3)  # [B, 3 K K, H, H]
        return features, features.mean((2, 3))


def build(options: Pixels) -> Encoder:
    """The encoder. It has no weights to load or train."""
    return Encoder(CosineTrunk(options.patch, options.frequencies), options.preprocessing())
