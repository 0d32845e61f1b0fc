"""torchvision's convolutional networks, cut before their pooling: ResNet, MobileNet, EfficientNet."""

from collections import OrderedDict
from itertools import pairwise

import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raycap.encoders import RANDOM, ResNet50, Torchvision
from raycap.encoders.encoder import Encoder, Trunk
from raycap.encoders.weights import fill, of_torchvision, repeatable


class Convolutions(Trunk):
    """A chain of layers whose last map is the grid; the vector is the mean of the map."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        cells = self.layers(pixels)
        return cells, cells.float().mean((2, 3))

    def last_stage(self) -> list[nn.Module]:
        """From the last layer that halves the picture: a ResNet's layer4."""
        layers = list(self.layers)
        return layers[max(place for place, layer in enumerate(layers) if _halves(layer)) :]

    def fold(self) -> None:
        """Batch norm in inference is a scale and a shift: they go into the weights of the convolution before it."""
        for part in list(self.modules()):
            # torchvision names a convolution and then its norm, in the order in which they run
            for (name, layer), (norm_name, norm) in pairwise(list(part.named_children())):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(part, name, fuse_conv_bn_eval(layer, norm))
                    setattr(part, norm_name, nn.Identity())


def _halves(layer: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) and part.stride == (2, 2) for part in layer.modules())


def build(options: Torchvision, pretrained: bool) -> Encoder:
    """The network with its weights, then cut."""
    with repeatable():
        network = torchvision.models.get_model(options.name, weights=None)
    residual = isinstance(network, torchvision.models.ResNet)
    head = "fc" if residual else "classifier"
    setattr(network, head, nn.Identity())
    if isinstance(options, ResNet50) and options.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    if pretrained and options.weights != RANDOM:
        fill(network, of_torchvision(options.name, options.weights), options.weights, (head,))
    layers = (
        nn.Sequential(OrderedDict(list(network.named_children())[:-2]))
        if residual
        else network.features
    )
    return Encoder(Convolutions(layers), options.preprocessing(), options.grid, options.trainable)
