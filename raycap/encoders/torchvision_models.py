"""Encoders from torchvision's models: ResNet, MobileNet, EfficientNet, and the vision
transformer. Torchvision is loaded only for those that are not in `networks`."""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raycap.encoders import RANDOM, ResNet50, Torchvision, ViTB16, int8
from raycap.encoders.encoder import Encoder, Trunk
from raycap.encoders.networks import NETWORKS, ResNet
from raycap.encoders.weights import fixed_seed, load_weights, torchvision_weights
from raycap.unset_weights import unset_weights


class ConvolutionalTrunk(Trunk):
    """A convolutional network without pooling and classifier. The grid is the last feature map,
    the vector is its mean."""

    def __init__(self, layers: nn.Sequential, width: int = 0) -> None:
        """`width` is that of the last feature map, where it is known to be a 32nd of the
        picture."""
        super().__init__()
        self.layers = layers
        self._width = width

    def grid_at(self, size: int) -> tuple[int, int] | None:
        return (math.ceil(size / 32), self._width) if self._width else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        grid = self.layers(pixels)
        return grid, grid.float().mean((2, 3))

    def last_stage(self) -> list[nn.Module]:
        """The layers from the last one that halves the picture: a ResNet's layer4."""
        return list(self.layers)[self._first_of_last_stage() :]

    def _first_of_last_stage(self) -> int:
        start = 0
        for index, layer in enumerate(self.layers):
            for part in layer.modules():
                if isinstance(part, nn.Conv2d) and part.stride == (2, 2):
                    start = index
        return start

    def stem(self) -> "ConvolutionalTrunk":
        return ConvolutionalTrunk(self.layers[: self._first_of_last_stage()])

    def after_stem(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.layers[self._first_of_last_stage() :](grid)
        return grid, grid.float().mean((2, 3))

    def fold(self) -> None:
        """Fold each batch norm into the convolution before it."""
        for part in list(self.modules()):
            # torchvision names a convolution and its norm in the order in which they run.
            for (name, layer), (norm_name, norm) in pairwise(list(part.named_children())):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(part, name, fuse_conv_bn_eval(layer, norm))
                    setattr(part, norm_name, nn.Identity())

    @property
    def supports_int8(self) -> bool:
        return int8.supports_int8(self.layers)

    def in_int8(self, scale: Tensor, shift: Tensor, size: int) -> "ConvolutionalTrunk":
        return ConvolutionalTrunk(int8.int8_layers(self.layers, scale, shift, size), self._width)


class TransformerTrunk(Trunk):
    """A vision transformer without its classifier. The grid is made of the patch tokens, the
    vector is the class token."""

    def __init__(self, network: Any) -> None:  # torchvision's VisionTransformer
        super().__init__()
        self.patches = network.conv_proj
        self.class_token = network.class_token  # [1, 1, D]
        self.blocks = network.encoder  # adds the position of each token, ends in a layer norm

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        patches = self.patches(pixels)  # [B, D, H, H]
        class_token = self.class_token.expand(len(patches), -1, -1)  # [B, 1, D]
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.blocks(tokens)  # [B, 1 + P, D]
        return tokens[:, 1:].transpose(1, 2).reshape(patches.shape), tokens[:, 0]

    def last_stage(self) -> list[nn.Module]:
        """The last block and the norm after it."""
        return [self.blocks.layers[-1], self.blocks.ln]


def build_convolutional(options: Torchvision, pretrained: bool) -> Encoder:
    """The encoder of a convolutional network."""
    network: Any = _build(options.name, pretrained)
    is_resnet = isinstance(network, ResNet)
    head = "fc" if is_resnet else "classifier"
    setattr(network, head, nn.Identity())
    if isinstance(options, ResNet50) and options.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    if pretrained and options.weights != RANDOM:
        state = torchvision_weights(options.name, options.weights)
        load_weights(network, state, options.weights, (head,))
    if is_resnet:
        children = list(network.named_children())
        layers = nn.Sequential(OrderedDict(children[:-2]))  # without pooling and classifier
    else:
        layers = network.features
    trunk = ConvolutionalTrunk(layers, getattr(network, "width", 0))
    return Encoder(trunk, options.preprocessing(), options.grid, options.trainable)


def _build(name: str, pretrained: bool) -> nn.Module:
    """The network with random weights; without any if the caller loads them."""
    if name in NETWORKS:
        with fixed_seed() if pretrained else unset_weights():
            return NETWORKS[name]()
    import torchvision

    with fixed_seed():
        network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network


def build_transformer(options: ViTB16, pretrained: bool) -> Encoder:
    """The encoder of the vision transformer. If `size` differs from that of the weights, position
    embeddings are interpolated."""
    import torchvision
    from torchvision.models.vision_transformer import interpolate_embeddings

    with fixed_seed():
        network = torchvision.models.get_model(options.name, weights=None, image_size=options.size)
    network.heads = nn.Identity()
    if pretrained and options.weights != RANDOM:
        state = torchvision_weights(options.name, options.weights)
        if "encoder.pos_embedding" in state:
            state = interpolate_embeddings(options.size, options.patch, state)
        load_weights(network, state, options.weights, ("heads",))
    trunk = TransformerTrunk(network)
    return Encoder(trunk, options.preprocessing(), options.grid, options.trainable)
