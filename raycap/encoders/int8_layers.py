"""Layers that compute in int8, by torch's oneDNN operators.

Maps are uint8, in the order of channels_last. Weights are int8, with a step for each output
channel. Sums of products are exact.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST_STORED = 255  # of uint8, for maps
MOST_WEIGHT = 127
# Weights are laid out for batches of this size. Others give the same numbers, more slowly.
USUAL_PICTURES = 16


class Steps(NamedTuple):
    """How a map is stored: number = size * (stored - zero)."""

    size: float
    zero: int


class Limits(NamedTuple):
    """What an activation cuts off."""

    low: float = -math.inf
    high: float = math.inf


class Int8Convolution(nn.Module):
    """A convolution of uint8 maps, a bias, and perhaps a shortcut that is added."""

    def __init__(
        self, layer: nn.Conv2d, side: int, source: Steps, result: Steps | None, limits: Limits
    ) -> None:
        """`side` is that of the maps which it takes.

        It makes uint8 maps with the steps of `result`, which end at the limits; without `result`
        it makes float32.
        """
        super().__init__()
        assert layer.bias is not None
        whole, self._weight_steps = whole_numbers(layer.weight.detach())
        self._bias = layer.bias.detach().clone()
        self._source, self._result, self._limits = source, result, limits
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        self._how = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        shape = [USUAL_PICTURES, layer.in_channels, side, side]
        self._weight = torch.ops.onednn.qconv_prepack(
            whole, self._weight_steps, source.size, source.zero, *self._how, shape
        )

    def forward(
        self, maps: Tensor, shortcut: Tensor | None = None, steps: Steps | None = None
    ) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']. The shortcut has these steps and is overwritten."""
        weight = (self._weight, self._weight_steps, self._zeros)
        source, run = self._source, torch.ops.onednn.qconv2d_pointwise
        none: tuple[str, list[float], str] = ("none", [], "")  # no activation
        if self._result is None:
            how: tuple[Any, ...] = (*self._how, 1.0, 0, torch.float32, *none)
            numbers: Tensor = run(maps, *source, *weight, self._bias, *how)
            if shortcut is not None and steps is not None:
                numbers += (shortcut.float() - steps.zero) * steps.size
            return numbers.clamp_(*self._limits)
        how = (*self._how, *self._result, torch.uint8)
        if shortcut is None or steps is None:
            stored: Tensor = run(maps, *source, *weight, self._bias, *how, *none)
            return stored
        summed: Tensor = run.binary(
            maps, *source, *weight, shortcut, self._bias, *how, *steps, "sum", 1.0, *none
        )
        return summed


class Int8Residual(nn.Module):
    """Convolutions beside a shortcut, which may have one too."""

    def __init__(
        self, path: list[Int8Convolution], shortcut: Int8Convolution | None, steps: Steps
    ) -> None:
        """`steps` are those of the shortcut where it is added."""
        super().__init__()
        self.path, self.shortcut, self._steps = nn.ModuleList(path), shortcut, steps

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; the maps are overwritten."""
        shortcut = maps if self.shortcut is None else self.shortcut(maps)
        *first, last = self.path
        for layer in first:
            maps = layer(maps)
        result: Tensor = last(maps, shortcut, self._steps)
        return result


class Int8MaxPool(nn.Module):
    """The largest number of each window. torch's own takes no uint8 maps of this size."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        super().__init__()
        self._size, self._stride, self._padding = window_of(layer)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        lowest = torch.zeros(1, dtype=torch.uint8)
        rows = framed(maps, self._padding, lowest).permute(0, 2, 3, 1)
        return self._highest(self._highest(rows, 1), 2).permute(0, 3, 1, 2)

    def _highest(self, maps: Tensor, axis: int) -> Tensor:
        """The largest of the neighbours along one axis."""
        windows = maps.unfold(axis, self._size, self._stride)
        first, *others = windows.unbind(-1)
        for other in others:
            first = torch.maximum(first, other)
        return first


class PixelBorder(nn.Module):
    """Pixels inside a border of one colour."""

    def __init__(self, width: int, colour: Tensor) -> None:
        super().__init__()
        self._width = width
        self._colour = colour.round().clamp(0, MOST_STORED).to(torch.uint8)  # [3]

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> [B, 3, S + 2 W, S + 2 W]."""
        return framed(pixels, self._width, self._colour)


def framed(maps: Tensor, width: int, colour: Tensor) -> Tensor:
    """Maps [B, C, H, W] inside a border of this colour [C], in the order of channels_last."""
    count, channels, height, breadth = maps.shape
    frame = maps.new_empty(count, height + 2 * width, breadth + 2 * width, channels)
    frame[:] = colour
    frame[:, width : width + height, width : width + breadth] = maps.permute(0, 2, 3, 1)
    return frame.permute(0, 3, 1, 2)


def window_of(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Side, stride and padding of the windows of a layer."""
    size, stride, padding = (
        int(each[0] if isinstance(each, tuple) else each)
        for each in (layer.kernel_size, layer.stride, layer.padding)
    )
    return size, stride, padding


def whole_numbers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as int8, and the step of each output channel."""
    rows = weight.flatten(1)
    steps = rows.abs().amax(1).clamp(min=1e-12) / MOST_WEIGHT
    whole = (rows / steps[:, None]).round().to(torch.int8)
    return whole.view(weight.shape).contiguous(), steps
