"""ResNet and MobileNetV2 in int8, for processors that add products of whole numbers quickly.

    layers = int8_layers(layers, scale, shift, size)
    grid = layers(pixels)        # uint8 [B, 3, S, S] in, float32 [B, D, H, H] out

Which numbers a map may hold follows from the batch norms: they know the mean and the deviation of
each channel. So no pictures are needed to choose how maps are stored, and the features of a
picture depend on no other one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raycap.encoders.int8_layers import (
    MOST_STORED,
    Int8Convolution,
    Int8MaxPool,
    Int8Residual,
    Limits,
    PixelBorder,
    Steps,
    window_of,
)
from raycap.encoders.networks import BasicBlock, Bottleneck, InvertedResidual

# Numbers farther than so many deviations from the mean of their channel are cut off.
DEVIATIONS = 6.0
# Equally probable points by which a normal distribution is drawn.
POINTS = 512
RELU = Limits(low=0.0)
KNOWN = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    BasicBlock,
    Bottleneck,
    InvertedResidual,
)


@dataclass(frozen=True)
class Convolution:
    """A convolution with its batch norm folded into it."""

    layer: nn.Conv2d
    mean: Tensor  # [C], of its output before the activation
    deviation: Tensor  # [C]
    limits: Limits


@dataclass(frozen=True)
class Residual:
    """Convolutions beside a shortcut, and the activation behind their sum."""

    path: Sequence[Convolution]
    shortcut: Convolution | None
    limits: Limits


Part = Convolution | Residual | nn.MaxPool2d


class Maps(NamedTuple):
    """What is known about the output of a layer."""

    mean: Tensor  # [C]
    deviation: Tensor  # [C]
    steps: Steps
    side: int


def supports_int8(layers: nn.Module) -> bool:
    """Whether `int8_layers` knows all these layers."""
    return all(isinstance(layer, KNOWN) for layer in _flat(layers))


def int8_layers(layers: nn.Module, scale: Tensor, shift: Tensor, size: int) -> nn.Sequential:
    """The layers, which take colours (pixel * scale + shift), as layers that take pixels
    [B, 3, size, size]."""
    first, *others = _parts(layers)
    assert isinstance(first, Convolution)
    border, first = _for_pixels(first, scale.flatten(), shift.flatten())
    middle = torch.full((3,), MOST_STORED / 2)
    maps = Maps(middle, middle / 2, Steps(1.0, 0), border(torch.zeros(1, 3, size, size)).shape[2])
    built: list[nn.Module] = [border]
    for place, part in enumerate([first, *others]):
        layer, maps = _built(part, maps, is_last=place == len(others))
        built.append(layer)
    return nn.Sequential(*built)


def _flat(layers: nn.Module) -> Iterator[nn.Module]:
    if isinstance(layers, nn.Sequential):
        for layer in layers:
            yield from _flat(layer)
    else:
        yield layers


def _parts(layers: nn.Module) -> Iterator[Part]:
    flat = [*_flat(layers), None, None]
    for layer, norm, activation in zip(flat, flat[1:], flat[2:], strict=False):
        if isinstance(layer, nn.Conv2d):
            assert isinstance(norm, nn.BatchNorm2d)
            yield _folded(layer, norm, _limits_of(activation))
        elif isinstance(layer, nn.MaxPool2d):
            yield layer
        elif isinstance(layer, BasicBlock | Bottleneck):
            numbers = (1, 2) if isinstance(layer, BasicBlock) else (1, 2, 3)
            path = [
                _folded(getattr(layer, f"conv{number}"), getattr(layer, f"bn{number}"), RELU)
                for number in numbers
            ]
            shortcut = None
            if isinstance(layer.downsample, nn.Sequential):
                [shortcut] = _convolutions(layer.downsample)
            yield Residual(path, shortcut, RELU)
        elif isinstance(layer, InvertedResidual):
            path = _convolutions(layer.conv)
            if layer.has_shortcut:
                yield Residual(path, None, Limits())
            else:
                yield from path


def _convolutions(layers: nn.Module) -> list[Convolution]:
    return [part for part in _parts(layers) if isinstance(part, Convolution)]


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d, limits: Limits) -> Convolution:
    folded = fuse_conv_bn_eval(layer, norm)
    return Convolution(folded, norm.bias.detach(), norm.weight.detach().abs(), limits)


def _limits_of(activation: nn.Module | None) -> Limits:
    if isinstance(activation, nn.ReLU6):
        return Limits(0.0, 6.0)
    return RELU if isinstance(activation, nn.ReLU) else Limits()


def _for_pixels(
    first: Convolution, scale: Tensor, shift: Tensor
) -> tuple[PixelBorder, Convolution]:
    """The first convolution for pixels instead of colours, and the border that it needs instead
    of its padding: black is no zero there."""
    layer = first.layer
    assert layer.bias is not None and isinstance(layer.padding[0], int)
    border = PixelBorder(layer.padding[0], -shift / scale)
    with torch.no_grad():
        layer.bias += (layer.weight * shift[:, None, None]).sum((1, 2, 3))
        layer.weight *= scale[:, None, None]
    layer.padding = (0, 0)
    return border, first


def _built(part: Part, maps: Maps, is_last: bool) -> tuple[nn.Module, Maps]:
    """The layer that takes these maps, and what is known of its output. The last one makes
    float32."""
    if isinstance(part, nn.MaxPool2d):
        return Int8MaxPool(part), maps._replace(side=_side(maps.side, part))
    if isinstance(part, Residual):
        return _built_residual(part, maps, is_last)
    return _built_convolution(part, maps, is_last)


def _built_convolution(
    part: Convolution, maps: Maps, is_last: bool
) -> tuple[Int8Convolution, Maps]:
    mean, deviation = _cut(part.mean, part.deviation, part.limits)
    steps = _steps(part.mean, part.deviation, part.limits)
    result = None if is_last else steps
    layer = Int8Convolution(part.layer, maps.side, maps.steps, result, part.limits)
    return layer, Maps(mean, deviation, steps, _side(maps.side, part.layer))


def _built_residual(part: Residual, maps: Maps, is_last: bool) -> tuple[Int8Residual, Maps]:
    shortcut, beside = None, maps
    if part.shortcut is not None:
        shortcut, beside = _built_convolution(part.shortcut, maps, is_last=False)
    *first, last = part.path
    path = []
    for convolution in first:
        layer, maps = _built_convolution(convolution, maps, is_last=False)
        path.append(layer)
    summed = replace(
        last,
        mean=last.mean + beside.mean,
        deviation=torch.hypot(last.deviation, beside.deviation),
        limits=part.limits,
    )
    layer, maps = _built_convolution(summed, maps, is_last)
    return Int8Residual([*path, layer], shortcut, beside.steps), maps


def _steps(mean: Tensor, deviation: Tensor, limits: Limits) -> Steps:
    """How an output is stored that is distributed like this before its activation."""
    low = min(0.0, float((mean - DEVIATIONS * deviation).min()))
    high = max(0.0, float((mean + DEVIATIONS * deviation).max()))
    low, high = max(low, limits.low), min(high, limits.high)
    size = max(high - low, 1e-6) / MOST_STORED
    return Steps(size, round(-low / size))


def _cut(mean: Tensor, deviation: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """Mean and deviation of normal distributions behind an activation."""
    shares = (torch.arange(POINTS) + 0.5) / POINTS
    numbers = mean[:, None] + deviation[:, None] * torch.special.ndtri(shares)  # [C, POINTS]
    numbers = numbers.clamp(*limits)
    return numbers.mean(1), numbers.std(1)


def _side(side: int, layer: nn.Conv2d | nn.MaxPool2d) -> int:
    """Of the maps that the layer makes of maps with this side."""
    size, stride, padding = window_of(layer)
    return (side + 2 * padding - size) // stride + 1
