"""Pictures changed as a photographer might have taken them: from another place, or in a mirror."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raycap.training import Augmentation

DRAWS = 5  # for each picture: of width, height, both shifts, and the mirror
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def augmented(pixels: Tensor, options: Augmentation, draws: Tensor, has_sides: Tensor) -> Tensor:
    """Each picture of uint8 [B, 3, S, S] cropped and perhaps mirrored by its `draws` [B, DRAWS] from 0 to 1, at its
    old size; one that has sides [B] is not mirrored."""
    kept = 1 - options.crop * draws[:, :2]  # [B, 2] of width and height
    shift = (1 - kept) * (2 * draws[:, 2:4] - 1)
    if options.flip:
        kept[:, 0] *= torch.where((draws[:, 4] < 0.5) & ~has_sides, -1.0, 1.0)
    frame = draws.new_zeros(len(draws), 2, 3)
    frame[:, 0, 0], frame[:, 1, 1], frame[:, :, 2] = kept[:, 0], kept[:, 1], shift
    grid = functional.affine_grid(frame, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def draws_of(keys: Sequence[str], view: int) -> Tensor:
    """[B, DRAWS] of these pictures for a view of this number: always the same."""
    seeds = [int.from_bytes(hashlib.sha256(f"{view} {key}".encode()).digest()[:8]) for key in keys]
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(DRAWS, np.float32) for seed in seeds]))


def tell_sides(references: Sequence[Sequence[str] | None]) -> Tensor:
    """[B] whether people said left or right of a picture."""
    return torch.tensor([any(SIDES.search(caption) for caption in own or ()) for own in references])
