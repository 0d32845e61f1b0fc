"""Pixels to a grid of features: the encoders there are and their options. Only `build` brings in torch."""

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
RANDOM = "random"  # weights that describe nothing


@dataclass(frozen=True)
class Torchvision:
    """An ImageNet classifier of torchvision, cut before its pooling."""

    name: ClassVar[str]  # torchvision's
    smallest: ClassVar[int] = 32  # pixels: the grid has a cell for each 32

    weights: str = "torchvision"
    """torchvision (downloaded once; torchvision:IMAGENET1K_V2 names a version), a path or URI of a state dict with
    torchvision's names (safetensors, or tensors saved by torch.save), or random (describes nothing: for trials)."""
    size: int = 224
    """Side of the square picture that enters, in pixels."""
    resize: Resize = "squash"
    """How a picture becomes square: squash (all of it, distorted), crop (its middle) or pad (with borders)."""
    interpolation: Interpolation = "bilinear"
    """How pixels are made when a picture is resized."""
    mean: Colour = IMAGENET_MEAN
    """Subtracted from the colours (red, green, blue on 0..1): what the weights were trained with."""
    std: Colour = IMAGENET_STD
    """Divides the colours after that: what the weights were trained with."""
    grid: int | None = None
    """Pool (or repeat) the features to so many rows and columns, such as 14; none: as they come."""
    trainable: Trainable = "none"
    """What training may change: none, last (the last stage: a ResNet's layer4, Keras' conv5_block1 on), or all."""

    def __post_init__(self) -> None:
        self.preprocessing()
        _check(self.weights, self.grid)
        if self.size < self.smallest:
            raise UserError(
                f"size is {self.size}: {self.name} needs pictures of at least {self.smallest} pixels"
            )

    def preprocessing(self) -> Preprocessing:
        """What pictures must look like at its door."""
        return Preprocessing(self.size, self.resize, self.interpolation, self.mean, self.std)

    def build(self, pretrained: bool = True) -> "Encoder":
        """In float32 on the CPU. Without `pretrained` the weights are left for the caller to load."""
        from raycap.encoders import convolutional

        return convolutional.build(self, pretrained)


@dataclass(frozen=True)
class ResNet18(Torchvision):
    """torchvision's ResNet-18: 7x7 cells of 512 features at 224 pixels."""

    name = "resnet18"


@dataclass(frozen=True)
class ResNet34(Torchvision):
    """torchvision's ResNet-34: 7x7 cells of 512 features at 224 pixels."""

    name = "resnet34"


@dataclass(frozen=True)
class ResNet50(Torchvision):
    """torchvision's ResNet-50: 7x7 cells of 2048 features at 224 pixels."""

    name = "resnet50"

    stride_in_1x1: bool = False
    """Whether the weights have the original layout of He et al. (Caffe, Keras): stages 2 to 4 halve the picture in
    their first 1x1 convolution, not in the 3x3 after it. The wrong layout costs quality silently."""


@dataclass(frozen=True)
class ResNet101(ResNet50):
    """torchvision's ResNet-101: 7x7 cells of 2048 features at 224 pixels."""

    name = "resnet101"


@dataclass(frozen=True)
class MobileNetV2(Torchvision):
    """torchvision's MobileNetV2, for small machines: 7x7 cells of 1280 features at 224 pixels."""

    name = "mobilenet_v2"


@dataclass(frozen=True)
class MobileNetV3Large(Torchvision):
    """torchvision's MobileNetV3 (large), for small machines: 7x7 cells of 960 features at 224 pixels."""

    name = "mobilenet_v3_large"


@dataclass(frozen=True)
class MobileNetV3Small(Torchvision):
    """torchvision's MobileNetV3 (small), for the smallest machines: 7x7 cells of 576 features at 224 pixels."""

    name = "mobilenet_v3_small"


@dataclass(frozen=True)
class EfficientNetB0(Torchvision):
    """torchvision's EfficientNet-B0, for small machines: 7x7 cells of 1280 features at 224 pixels."""

    name = "efficientnet_b0"

    interpolation: Interpolation = "bicubic"
    """How pixels are made when a picture is resized."""


@dataclass(frozen=True)
class ViTB16(Torchvision):
    """torchvision's ViT-B/16: 14x14 patches of 768 features at 224 pixels, the class token beside them."""

    name = "vit_b_16"
    patch: ClassVar[int] = 16  # pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patches(self.size, self.patch)

    def build(self, pretrained: bool = True) -> "Encoder":
        """In float32 on the CPU. Without `pretrained` the weights are left for the caller to load."""
        from raycap.encoders import transformer

        return transformer.build(self, pretrained)


@dataclass(frozen=True)
class Timm:
    """Any picture model of timm (CLIP, SigLIP, DINOv2, EVA, ConvNeXt, ...); needs `pip install 'raycap[timm]'`."""

    model: str = "vit_base_patch16_clip_224.openai"
    """timm's name of the model, with the tag of its weights behind the dot."""
    weights: str = "timm"
    """timm (downloaded once), a path or URI of a state dict with timm's names (safetensors, or tensors saved by
    torch.save), or random (describes nothing: for trials)."""
    size: int | None = None
    """Side of the square picture that enters, in pixels; none: what timm says of the model, as in the next four."""
    resize: Resize | None = None
    """How a picture becomes square: squash (all of it, distorted), crop (its middle) or pad (with borders)."""
    interpolation: Interpolation | None = None
    """How pixels are made when a picture is resized."""
    mean: Colour | None = None
    """Subtracted from the colours (red, green, blue on 0..1)."""
    std: Colour | None = None
    """Divides the colours after that."""
    grid: int | None = None
    """Pool (or repeat) the features to so many rows and columns, such as 14; none: as they come."""
    trainable: Trainable = "none"
    """What training may change: none, last (the last stage or block), or all."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError(
                "model is empty: give timm's name of a model, such as vit_base_patch16_clip_224.openai"
            )
        if self.size is not None and self.size < 1:
            raise UserError(
                f"size is {self.size}: give pixels, or leave it out for what timm says of the model"
            )
        _check(self.weights, self.grid)

    def preprocessing(self) -> Preprocessing:
        """What pictures must look like at its door: as timm says, where no option says otherwise."""
        from raycap.encoders import tower

        return tower.preprocessing(self)

    def build(self, pretrained: bool = True) -> "Encoder":
        """In float32 on the CPU. Without `pretrained` the weights are left for the caller to load."""
        from raycap.encoders import tower

        return tower.build(self, pretrained)


@dataclass(frozen=True)
class Pixels:
    """An encoder without weights: the low frequencies of each patch. For trials: its captions are poor."""

    size: int = 224
    """Side of the square picture that enters, in pixels."""
    patch: int = 32
    """Side of a patch in pixels: the grid has size / patch rows and columns."""
    frequencies: int = 8
    """Frequencies kept along each side of a patch: 3 x 8 x 8 = 192 features for 8."""
    resize: Resize = "squash"
    """How a picture becomes square: squash (all of it, distorted), crop (its middle) or pad (with borders)."""
    interpolation: Interpolation = "bilinear"
    """How pixels are made when a picture is resized."""

    def __post_init__(self) -> None:
        self.preprocessing()
        if not 1 <= self.frequencies <= self.patch:
            raise UserError(
                f"frequencies is {self.frequencies}: give 1 to {self.patch}, the pixels of a patch"
            )
        check_patches(self.size, self.patch)

    def preprocessing(self) -> Preprocessing:
        """What pictures must look like at its door."""
        return Preprocessing(
            self.size, self.resize, self.interpolation, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        )

    def build(self, pretrained: bool = True) -> "Encoder":
        """The same for every `pretrained`: there is nothing to load."""
        from raycap.encoders import frequencies

        return frequencies.build(self)


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
            "an encoder without weights describes nothing: leave `weights` out to download them, give a FILE, "
            "use the encoder `pixels`, or say `random` if that is what you want"
        )
    if grid is not None and grid < 1:
        raise UserError(
            f"grid is {grid}: give the rows and columns wanted, such as 14, or leave it out"
        )
