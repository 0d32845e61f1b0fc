"""Random crops and mirror images of training pictures, and their options."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raycap.errors import UserError

if TYPE_CHECKING:  # the options are read without torch
    from torch import Tensor

DRAWS = 5  # random numbers per picture: width, height, both shifts, mirror
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training pictures, different each time a picture is used."""

    crop: float = 0.0
    """Most that is cut off, as a share of each side; the rest is enlarged to the full size."""
    flip: bool = False
    """Mirror every other picture, except those whose captions say left or right."""
    views: int = 0
    """Encode this many changed versions of each picture once, and train on one of these or on the
    plain picture; 0: change pictures at every step, so that the encoder runs at every step."""

    def __post_init__(self) -> None:
        if not 0 <= self.crop < 1:
            raise UserError(f"augmentation.crop is {self.crop}: give a share from 0 to below 1")
        if self.views < 0 or (self.views and not self.on):
            raise UserError(
                f"augmentation.views is {self.views}: give a count, and augmentation.crop or flip "
                "to change them by"
            )

    @property
    def on(self) -> bool:
        return self.flip or self.crop > 0


def augment(pixels: Tensor, options: Augmentation, draws: Tensor, has_sides: Tensor) -> Tensor:
    """Each picture of uint8 [B, 3, S, S], cropped and perhaps mirrored, at its old size.

    `draws` [B, DRAWS] are random numbers from 0 to 1. Pictures whose captions name a side
    (`has_sides` [B]) are not mirrored.
    """
    import torch
    from torch.nn import functional

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
    import torch

    draws = []
    for key in keys:
        seed = int.from_bytes(hashlib.sha256(f"{view} {key}".encode()).digest()[:8])
        draws.append(np.random.default_rng(seed).random(DRAWS, np.float32))
    return torch.from_numpy(np.stack(draws))


def names_sides(references: Sequence[Sequence[str] | None]) -> Tensor:
    """[B] whether the captions of a picture say left or right."""
    import torch

    captions = [" ; ".join(of_picture or ()) for of_picture in references]
    return torch.tensor([SIDES.search(text) is not None for text in captions])
