"""What a captioner wants each picture as: a square, a grid of its own proportions, or a file.

    Square(224)                                       uint8 [224, 224, 3]
    SquareOrJpeg(224)                                 the same, or uint8 [N], a plain JPEG
    Fit(multiple_of=28, max_pixels=1_003_520)         uint8 [H, W, 3], another size for each shape
    Encoded(max_side=1024, format="jpeg")             uint8 [N], the bytes of a new file

Sizes are computed as the models' own processors do it, so that these find nothing to resize.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from raycap.errors import UserError
from raycap.images.pixels import Interpolation, Kernel, Resize

LONGEST_SIDE = 8192  # pixels
MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Square:
    """The square of pixels that every picture becomes."""

    size: int = 224
    """Side in pixels."""
    resize: Resize = "squash"
    """squash (distorted), crop (its middle) or pad (with borders)"""
    interpolation: Interpolation = "bicubic"
    """The antialiased filter."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LONGEST_SIDE:
            raise UserError(f"size is {self.size}: give a side of 1 to 8192 pixels, such as 224")


@dataclass(frozen=True)
class SquareOrJpeg(Square):
    """The same square, or a plain JPEG as it is: uint8 [N], the bytes of the file. The device that
    the model runs on decodes and resizes it."""


@dataclass(frozen=True)
class Fit:
    """The whole picture, about in its own proportions, in a size that a model can cut into parts.

    Fit(multiple_of=28, min_pixels=3136, max_pixels=1_003_520)         as Qwen2-VL
    Fit(multiple_of=512, longest_side=2048, interpolation="lanczos")   as SmolVLM
    Fit(multiple_of=448, max_tiles=12)                                 as InternVL
    Fit(max_pixels=2**20)                                   any size, never enlarged
    """

    max_pixels: int = 2**20
    """At most so many pixels, unless `longest_side` or `max_tiles` says how many."""
    multiple_of: int = 1
    """Both sides are a multiple of this: the side of a patch or of a tile."""
    min_pixels: int = 0
    """Smaller pictures are enlarged to at least so many pixels."""
    longest_side: int = 0
    """If given, the longer side is brought to this, and then both to the next multiples."""
    max_tiles: int = 0
    """If given, the picture becomes a grid of squares of `multiple_of`: at most so many, in the
    proportions nearest to its own."""
    min_tiles: int = 1
    """With `max_tiles`: at least so many."""
    interpolation: Kernel = "bicubic"
    """The antialiased filter."""

    def __post_init__(self) -> None:
        tile = self.multiple_of
        if not 1 <= tile <= LONGEST_SIDE:
            raise UserError(f"multiple_of is {tile}: give 1 to {LONGEST_SIDE} pixels")
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise UserError(f"max_pixels is {self.max_pixels}: give 1 to {MOST_PIXELS}")
        if not 0 <= self.min_pixels <= self.max_pixels:
            raise UserError(f"min_pixels is {self.min_pixels}: give 0 to max_pixels")
        if not 0 <= self.longest_side <= LONGEST_SIDE:
            raise UserError(f"longest_side is {self.longest_side}: give 1 to {LONGEST_SIDE}")
        if not 0 <= self.max_tiles * tile**2 <= MOST_PIXELS or self.max_tiles < 0:
            raise UserError(f"max_tiles is {self.max_tiles}: they have over {MOST_PIXELS} pixels")
        if self.max_tiles and not 1 <= self.min_tiles <= self.max_tiles:
            raise UserError(f"min_tiles is {self.min_tiles}: give 1 to max_tiles")

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an upright picture becomes."""
        if self.max_tiles:
            return self._tiled(width, height)
        if self.longest_side:
            return self._with_longest_side(width, height)
        return self._between(width, height)

    def _between(self, width: int, height: int) -> tuple[int, int]:
        """Between min_pixels and max_pixels, as Qwen2-VL's `smart_resize`."""
        step = self.multiple_of
        wide, high = round(width / step) * step, round(height / step) * step
        if wide * high > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            wide, high = (math.floor(side / scale / step) * step for side in (width, height))
        elif wide * high < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            wide, high = (math.ceil(side * scale / step) * step for side in (width, height))
        return max(step, wide), max(step, high)

    def _with_longest_side(self, width: int, height: int) -> tuple[int, int]:
        """The longer side as asked for, both rounded up, as Idefics3 does it in two steps."""
        step = self.multiple_of
        aspect = width / height  # the steps round as there, or a row of tiles could be missing
        if width >= height:
            wide, high = self.longest_side, int(self.longest_side / aspect)
            high = max(1, high + high % 2)
        else:
            wide, high = int(self.longest_side * aspect), self.longest_side
            wide = max(1, wide + wide % 2)
        aspect = wide / high
        if wide >= high:
            wide = math.ceil(wide / step) * step
            high = math.ceil(int(wide / aspect) / step) * step
        else:
            high = math.ceil(high / step) * step
            wide = math.ceil(int(high * aspect) / step) * step
        return max(step, wide), max(step, high)

    def _tiled(self, width: int, height: int) -> tuple[int, int]:
        """The grid whose proportions are nearest. Of two that are equally near, the larger one,
        unless it has twice the picture's pixels, as InternVL."""
        tile = self.multiple_of
        aspect, best, nearest = width / height, (1, 1), math.inf
        for columns, rows in _grids(self.min_tiles, self.max_tiles):
            distance = abs(aspect - columns / rows)
            is_filled = width * height > 0.5 * tile * tile * columns * rows
            if distance < nearest or (distance == nearest and is_filled):
                best, nearest = (columns, rows), distance
        return best[0] * tile, best[1] * tile


@lru_cache(maxsize=16)
def _grids(least: int, most: int) -> list[tuple[int, int]]:
    """Columns and rows of all grids with so many tiles, the smallest first."""
    grids = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


@dataclass(frozen=True)
class Encoded:
    """A new file: upright, in sRGB, without metadata, never enlarged."""

    max_side: int = 1024
    """Its longer side in pixels, at most."""
    format: Literal["jpeg", "png"] = "jpeg"
    """png is exact and several times larger"""
    quality: int = 90
    """Of a jpeg, 1 to 100."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= LONGEST_SIDE:
            raise UserError(f"max_side is {self.max_side}: give 1 to {LONGEST_SIDE} pixels")
        if self.format not in ("jpeg", "png"):
            raise UserError(f"format is {self.format!r}: give jpeg or png")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}: give 1 to 100, such as 90")

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an upright picture becomes."""
        scale = min(1.0, self.max_side / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


Intake = Square | Fit | Encoded
