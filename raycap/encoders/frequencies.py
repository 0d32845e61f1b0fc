"""The encoder without weights: each patch as the low frequencies of its colours (a discrete cosine transform)."""

import math

import torch
from torch import Tensor

from raycap.encoders import Pixels
from raycap.encoders.encoder import Encoder, Trunk


class Frequencies(Trunk):
    """A fixed projection: no seed, and close to the best that so few numbers can keep of a natural picture."""

    basis: Tensor  # [K, patch]
    gain: Tensor  # [K, K]

    def __init__(self, patch: int, frequencies: int) -> None:
        super().__init__()
        frequency = torch.arange(frequencies)[:, None]  # [K, 1]
        pixel = torch.arange(patch)[None]  # [1, patch]
        basis = torch.cos(math.pi * frequency * (2 * pixel + 1) / (2 * patch)) / patch
        self.register_buffer("basis", basis, persistent=False)
        # natural pictures have amplitudes that fall with frequency: this brings all features to one order of size
        self.register_buffer("gain", 1.0 + frequency + frequency.T, persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, 3 K K, H, H], [B, 3 K K]."""
        patch = self.basis.shape[1]
        side = pixels.shape[2] // patch
        cells = pixels.reshape(-1, 3, side, patch, side, patch)  # [B, 3, H, patch, H, patch]
        spectrum = (
            torch.einsum("bchpwq,kp,lq->bcklhw", cells, self.basis, self.basis)
            * self.gain[:, :, None, None]
        )
        features = spectrum.flatten(1, 3)
        return features, features.mean((2, 3))


def build(options: Pixels) -> Encoder:
    """Nothing to load and nothing to train."""
    return Encoder(Frequencies(options.patch, options.frequencies), options.preprocessing())
