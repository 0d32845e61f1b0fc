"""ResNet and MobileNetV2, with the names of torchvision's weights.

Loading torchvision takes longer than captioning a photo, because it loads torch's compiler. These
two need nothing of it. Their random weights are the same as torchvision's, to the last bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 1000  # of ImageNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015)."""

    growth = 1

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = _conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        maps = self.relu(self.bn1(self.conv1(maps)))
        result: Tensor = self.relu(self.bn2(self.conv2(maps)).add_(shortcut))
        return result


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut. The 3x3 one has the stride."""

    growth = 4

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = _conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.growth, 1)
        self.bn3 = nn.BatchNorm2d(width * self.growth)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        maps = self.relu(self.bn1(self.conv1(maps)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        result: Tensor = self.relu(self.bn3(self.conv3(maps)).add_(shortcut))
        return result


class ResNet(nn.Module):
    """A residual network with so many blocks in each of its four stages."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...]):
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(blocks):
            width, stride = 64 * 2**stage, 2 if stage else 1
            layers = []
            for number in range(count):
                after, step = width * block.growth, 1 if number else stride
                downsample = None
                if step != 1 or channels != after:
                    downsample = nn.Sequential(
                        _conv(channels, after, 1, step), nn.BatchNorm2d(after)
                    )
                layers.append(block(channels, width, step, downsample))
                channels = after
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.width = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, CLASSES)
        _init_convolutions(self, "relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, 1000] of normalised pixels [B, 3, S, S]."""
        for layer in list(self.children())[:-1]:
            pixels = layer(pixels)
        logits: Tensor = self.fc(torch.flatten(pixels, 1))
        return logits


class InvertedResidual(nn.Module):
    """Few channels, many in between, few again; a shortcut if the shape stays (Sandler et al.
    2018)."""

    def __init__(self, channels: int, after: int, stride: int, expansion: int):
        super().__init__()
        self.has_shortcut = stride == 1 and channels == after
        between = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm_relu6(channels, between, 1))
        layers.append(_conv_norm_relu6(between, between, 3, stride, groups=between))
        layers += [_conv(between, after, 1), nn.BatchNorm2d(after)]
        self.conv = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.conv(maps)
        return maps + result if self.has_shortcut else result


class MobileNetV2Network(nn.Module):
    """For small machines."""

    width = 1280  # of the last feature map
    # Expansion, channels, blocks, and the stride of the first of them.
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm_relu6(3, 32, 3, 2)]
        channels = 32
        for expansion, after, blocks, stride in self.stages:
            for number in range(blocks):
                step = 1 if number else stride
                layers.append(InvertedResidual(channels, after, step, expansion))
                channels = after
        layers.append(_conv_norm_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        logits = nn.Linear(1280, CLASSES)
        self.classifier = nn.Sequential(nn.Dropout(0.2), logits)
        _init_convolutions(self, "leaky_relu")
        nn.init.normal_(logits.weight, 0, 0.01)
        nn.init.zeros_(logits.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, 1000] of normalised pixels [B, 3, S, S]."""
        logits: Tensor = self.classifier(self.features(pixels).mean((2, 3)))
        return logits


# By torchvision's names.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": lambda: ResNet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": lambda: ResNet(Bottleneck, (3, 4, 23, 3)),
    "mobilenet_v2": MobileNetV2Network,
}


def _conv(channels: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the maps, up to its stride."""
    return nn.Conv2d(channels, after, size, stride, padding=size // 2, groups=groups, bias=False)


def _conv_norm_relu6(
    channels: int, after: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = _conv(channels, after, size, stride, groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6(inplace=True))


def _init_convolutions(network: nn.Module, nonlinearity: str) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight,
                mode="fan_out",
                nonlinearity=nonlinearity,  # type: ignore[arg-type]
            )
