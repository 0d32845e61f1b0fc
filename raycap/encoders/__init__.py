"""The options of the encoders, which compute a grid of features from pixels. Torch is imported
only when an encoder is built.

To add an encoder, write a `Trunk` in a file of its own, a class of options here, and its line in
`ENCODERS`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from raycap.encoders.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    Preprocessing,
    check_patches,
)
from raycap.errors import UserError
from raycap.images import Interpolation, Resize

if TYPE_CHECKING:
    from raycap.encoders.encoder import Encoder

Trainable = Literal["none", "last", "all"]
# What training does with the statistics of batch norms in trained layers.
BatchNorm = Literal["auto", "frozen", "synchronised", "trained"]
RANDOM = "random"  # random weights, for trials


@dataclass(frozen=True)
class Torchvision:
    """An ImageNet classifier of torchvision, cut before its pooling."""

    name: ClassVar[str]  # torchvision's
    smallest: ClassVar[int] = 32  # pixels: the grid has a position for each 32

    weights: str = "torchvision"
    """torchvision (downloaded once; torchvision:IMAGENET1K_V2 names a version), a path or URI of a
    state dict with torchvision's names (safetensors, or tensors saved by torch.save), or random
    (for trials)."""
    size: int = 224
    """Side of the square input picture in pixels."""
    resize: Resize = "squash"
    """How a picture becomes square: squash (distorted), crop (its middle) or pad (with
    borders)."""
    interpolation: Interpolation = "bilinear"
    """Filter for resizing pictures."""
    mean: Colour = IMAGENET_MEAN
    """Mean that is subtracted from the colours (RGB from 0 to 1), as the weights were trained."""
    std: Colour = IMAGENET_STD
    """Standard deviation that the colours are then divided by, as the weights were trained."""
    grid: int | None = None
    """Pool (or repeat) the grid to this many rows and columns, such as 14; none: no pooling."""
    trainable: Trainable = "none"
    """Layers that training changes: none, last (the last stage: a ResNet's layer4) or all."""

    def __post_init__(self) -> None:
        self.preprocessing()
        _check(self.weights, self.grid)
        if self.size < self.smallest:
            raise UserError(
                f"size is {self.size}: {self.name} needs pictures of at least {self.smallest} "
                "pixels"
            )

    def preprocessing(self) -> Preprocessing:
        """How a picture becomes its input."""
        return Preprocessing(self.size, self.resize, self.interpolation, self.mean, self.std)

    def build(self, pretrained: bool = True) -> "Encoder":
        """The encoder in float32 on the CPU; without `pretrained` the caller loads the weights."""
        from raycap.encoders.torchvision_models import build_convolutional

        return build_convolutional(self, pretrained)


@dataclass(frozen=True)
class ResNet18(Torchvision):
    """torchvision's ResNet-18: 7x7 positions of 512 features at 224 pixels."""

    name = "resnet18"


@dataclass(frozen=True)
class ResNet34(Torchvision):
    """torchvision's ResNet-34: 7x7 positions of 512 features at 224 pixels."""

    name = "resnet34"


@dataclass(frozen=True)
class ResNet50(Torchvision):
    """torchvision's ResNet-50: 7x7 positions of 2048 features at 224 pixels."""

    name = "resnet50"

    stride_in_1x1: bool = False
    """Whether the weights have the original layout of He et al. (Caffe, Keras), in which stages 2
    to 4 halve the picture in their first 1x1 convolution. The wrong layout costs quality without
    an error."""


@dataclass(frozen=True)
class ResNet101(ResNet50):
    """torchvision's ResNet-101: 7x7 positions of 2048 features at 224 pixels."""

    name = "resnet101"


@dataclass(frozen=True)
class MobileNetV2(Torchvision):
    """torchvision's MobileNetV2, for small machines: 7x7 positions of 1280 features at 224
    pixels."""

    name = "mobilenet_v2"


@dataclass(frozen=True)
class MobileNetV3Large(Torchvision):
    """torchvision's MobileNetV3 (large), for small machines: 7x7 positions of 960 features at 224
    pixels."""

    name = "mobilenet_v3_large"


@dataclass(frozen=True)
class MobileNetV3Small(Torchvision):
    """torchvision's MobileNetV3 (small), for the smallest machines: 7x7 positions of 576 features
    at 224 pixels."""

    name = "mobilenet_v3_small"


@dataclass(frozen=True)
class EfficientNetB0(Torchvision):
    """torchvision's EfficientNet-B0, for small machines: 7x7 positions of 1280 features at 224
    pixels."""

    name = "efficientnet_b0"

    interpolation: Interpolation = "bicubic"
    """Filter for resizing pictures."""


@dataclass(frozen=True)
class ViTB16(Torchvision):
    """torchvision's ViT-B/16: 14x14 patches of 768 features at 224 pixels, and the class token."""

    name = "vit_b_16"
    patch: ClassVar[int] = 16  # pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patches(self.size, self.patch)

    def build(self, pretrained: bool = True) -> "Encoder":
        """The encoder in float32 on the CPU; without `pretrained` the caller loads the weights."""
        from raycap.encoders.torchvision_models import build_transformer

        return build_transformer(self, pretrained)


@dataclass(frozen=True)
class Timm:
    """Any picture model of timm (CLIP, SigLIP, DINOv2, EVA, ConvNeXt, ...); needs `pip install
    'raycap[timm]'`."""

    model: str = "vit_base_patch16_clip_224.openai"
    """timm's name of the model, with the tag of its weights after the dot."""
    weights: str = "timm"
    """timm (downloaded once), a path or URI of a state dict with timm's names (safetensors, or
    tensors saved by torch.save), or random (for trials)."""
    size: int | None = None
    """Side of the square input picture in pixels; none: timm's value for the model, as in the next
    four."""
    resize: Resize | None = None
    """How a picture becomes square: squash (distorted), crop (its middle) or pad (with
    borders)."""
    interpolation: Interpolation | None = None
    """Filter for resizing pictures."""
    mean: Colour | None = None
    """Mean that is subtracted from the colours (RGB from 0 to 1)."""
    std: Colour | None = None
    """Standard deviation that the colours are then divided by."""
    grid: int | None = None
    """Pool (or repeat) the grid to this many rows and columns, such as 14; none: no pooling."""
    trainable: Trainable = "none"
    """Layers that training changes: none, last (the last stage or block) or all."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError(
                "model is empty: give timm's name of a model, such as "
                "vit_base_patch16_clip_224.openai"
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}: give pixels, or leave it out for timm's value")
        _check(self.weights, self.grid)

    def preprocessing(self) -> Preprocessing:
        """How a picture becomes its input: timm's values, with the options that are set."""
        from raycap.encoders import timm_models

        return timm_models.preprocessing(self)

    def build(self, pretrained: bool = True) -> "Encoder":
        """The encoder in float32 on the CPU; without `pretrained` the caller loads the weights."""
        from raycap.encoders import timm_models

        return timm_models.build(self, pretrained)


@dataclass(frozen=True)
class Pixels:
    """An encoder without weights: the low frequencies of each patch. For trials: captions are
    poor."""

    size: int = 224
    """Side of the square input picture in pixels."""
    patch: int = 32
    """Side of a patch in pixels: the grid has size / patch rows and columns."""
    frequencies: int = 8
    """Frequencies kept along each side of a patch: 3 x 8 x 8 = 192 features for 8."""
    resize: Resize = "squash"
    """How a picture becomes square: squash (distorted), crop (its middle) or pad (with
    borders)."""
    interpolation: Interpolation = "bilinear"
    """Filter for resizing pictures."""

    def __post_init__(self) -> None:
        self.preprocessing()
        if not 1 <= self.frequencies <= self.patch:
            raise UserError(
                f"frequencies is {self.frequencies}: give 1 to {self.patch}, the pixels of a patch"
            )
        check_patches(self.size, self.patch)

    def preprocessing(self) -> Preprocessing:
        """How a picture becomes its input."""
        return Preprocessing(
            self.size, self.resize, self.interpolation, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        )

    def build(self, pretrained: bool = True) -> "Encoder":
        """The encoder; there are no weights to load."""
        from raycap.encoders import pixels

        return pixels.build(self)


EncoderOptions = Torchvision | Timm | Pixels

ENCODERS: dict[str, type[EncoderOptions]] = {
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_large": MobileNetV3Large,
    "mobilenet_v3_small": MobileNetV3Small,
    "efficientnet_b0": EfficientNetB0,
    "vit_b_16": ViTB16,
    "timm": Timm,
    "pixels": Pixels,
}


def _check(weights: str, grid: int | None) -> None:
    if weights in ("", "none"):
        raise UserError(
            "an encoder without weights describes nothing: leave `weights` out to download them, "
            "give a FILE, use the encoder `pixels`, or give `random` if you want random weights"
        )
    if grid is not None and grid < 1:
        raise UserError(
            f"grid is {grid}: give the number of rows and columns, such as 14, or leave it out"
        )
