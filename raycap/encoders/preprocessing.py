"""How pictures are prepared for an encoder: shape and colours. Does not import torch."""

import math
from dataclasses import dataclass

from raycap.errors import UserError
from raycap.images import Square

Colour = tuple[float, float, float]

IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing(Square):
    """A square of pixels whose colours, from 0 to 1, become (colour - mean) / std."""

    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.std) <= 0:
            raise UserError(
                f"std is {self.std}: the colours are divided by it, so give numbers above 0"
            )


def check_patches(size: int, patch: int) -> None:
    """Raises UserError if patches do not fill the picture."""
    if size % patch:
        fits = math.ceil(size / patch) * patch
        raise UserError(
            f"size is {size}, which patches of {patch} pixels do not fill: give {fits}, for "
            "example"
        )
