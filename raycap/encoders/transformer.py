"""torchvision's vision transformer: its patch tokens are the grid, its class token is the vector."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from raycap.encoders import RANDOM, ViTB16
from raycap.encoders.encoder import Encoder, Trunk
from raycap.encoders.weights import fill, of_torchvision, repeatable


class Patches(Trunk):
    """torchvision's network without its classifier."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.patches = network.conv_proj
        self.class_token = network.class_token  # [1, 1, D]
        self.blocks = network.encoder  # adds the place of each token, and ends in a layer norm

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        cells = self.patches(pixels)  # [B, D, H, H]
        tokens = torch.cat(
            [self.class_token.expand(len(cells), -1, -1), cells.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = self.blocks(tokens)  # [B, 1 + P, D]
        return tokens[:, 1:].transpose(1, 2).reshape(cells.shape), tokens[:, 0]

    def last_stage(self) -> list[nn.Module]:
        """The last block and the norm behind it."""
        return [self.blocks.layers[-1], self.blocks.ln]


def build(options: ViTB16, pretrained: bool) -> Encoder:
    """The network with its weights; another size than the weights' own stretches the places of the patches."""
    with repeatable():
        network = torchvision.models.get_model(options.name, weights=None, image_size=options.size)
    network.heads = nn.Identity()
    if pretrained and options.weights != RANDOM:
        state = of_torchvision(options.name, options.weights)
        if "encoder.pos_embedding" in state:
            state = interpolate_embeddings(options.size, options.patch, state)
        fill(network, state, options.weights, ("heads",))
    return Encoder(Patches(network), options.preprocessing(), options.grid, options.trainable)
