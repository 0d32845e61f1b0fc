"""Random crops and mirror images of training pictures."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raycap.training.options import Augmentation

DRAWS = 5  # random numbers per picture: width, height, both shifts, mirror
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def augment(pixels: Tensor, options: Augmentation, draws: Tensor, has_sides: Tensor) -> Tensor:
    """Each picture of uint8 [B, 3, S, S], cropped and perhaps mirrored, at its old size.

    `draws` [B, DRAWS] are random numbers from 0 to 1. Pictures whose captions name a side
    (`has_sides` [B]) are not mirrored.
    """
    kept = 1 - options.crop * draws[:, :2]  # [B, 2] of width and height
    shift = (1 - kept) * (2 * draws[:, 2:4] - 1)
    if options.flip:
        kept[:, 0] *= torch.where((draws[:, 4] < 0.5) & ~has_sides, -1.0, 1.0)
    affine = draws.new_zeros(len(draws), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = kept[:, 0], kept[:, 1], shift
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    changed = functional.grid_sample(
        pixels.float(), grid, padding_mode="border", align_corners=False
    )
    return changed.round().clamp(0, 255).to(torch.uint8)


def draws_of(keys: Sequence[str], view: int) -> Tensor:
    """[B, DRAWS] for these pictures in the view of this number: always the same."""
    draws = []
    for key in keys:
        seed = int.from_bytes(hashlib.sha256(f"{view} {key}".encode()).digest()[:8])
        draws.append(np.random.default_rng(seed).random(DRAWS, np.float32))
    return torch.from_numpy(np.stack(draws))


def names_sides(references: Sequence[Sequence[str] | None]) -> Tensor:
    """[B] whether the captions of a picture say left or right."""
    captions = [" ; ".join(of_picture or ()) for of_picture in references]
    return torch.tensor([SIDES.search(text) is not None for text in captions])
