"""The encoder: from uint8 pixels to a grid of features and one vector for the whole picture."""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from raycap.device import Precision, PrecisionName
from raycap.encoders import BatchNorm, Trainable
from raycap.encoders.batch_norm import synchronise
from raycap.encoders.preprocessing import Preprocessing
from raycap.errors import UserError

# Pictures whose maps stay in the cache of two threads.
CACHED_PICTURES = 16


class Features(NamedTuple):
    """The features of pictures, in float32."""

    grid: Tensor  # [B, P, D], row by row from the top left
    vector: Tensor  # [B, D], of the whole picture


class Trunk(nn.Module):
    """The network in an encoder. It computes a grid [B, D, H, H] and a vector [B, D] from
    normalised pixels [B, 3, S, S]."""

    def grid_at(self, size: int) -> tuple[int, int] | None:
        """Side and width of the grid of pictures of this size; None if only a pass can tell."""
        return None

    def last_stage(self) -> list[nn.Module]:
        """The layers that `trainable: last` trains."""
        raise NotImplementedError

    def stem(self) -> "Trunk | None":
        """The layers before the last stage as a trunk of their own; None if the network cannot be
        cut there."""
        return None

    def after_stem(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the last stage for the grid of the stem."""
        raise NotImplementedError

    def fold(self) -> None:
        """Merge layers for faster inference. The network cannot be trained afterwards."""

    @property
    def supports_int8(self) -> bool:
        """Whether `in_int8` can be called."""
        return False

    def in_int8(self, scale: Tensor, shift: Tensor, size: int) -> "Trunk":
        """This trunk in int8. It takes pixels instead of colours, pixel * scale + shift."""
        raise NotImplementedError


class Encoder(nn.Module):
    """Normalises colours, runs the trunk, and pools its output to the grid."""

    scale: Tensor  # [3, 1, 1]
    shift: Tensor  # [3, 1, 1]

    def __init__(
        self,
        trunk: Trunk,
        preprocessing: Preprocessing,
        grid: int | None = None,
        trainable: Trainable = "none",
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.preprocessing = preprocessing
        self.size = preprocessing.size
        self.resize = preprocessing.resize
        self.interpolation = preprocessing.interpolation
        # Whether training changes its weights, so that they differ from those that the options
        # name.
        self.is_own = trainable != "none"
        self.batch_norm: BatchNorm = "auto"
        self._grid = grid
        self._dtype = torch.float32  # of what the trunk takes
        # pixel * scale + shift = (pixel / 255 - mean) / std. Not saved: it follows from the
        # options.
        with torch.device("cpu"):  # arithmetic on the meta device loads torch's compiler: 2 s
            mean = torch.tensor(preprocessing.mean)[:, None, None]  # [3, 1, 1]
            std = torch.tensor(preprocessing.std)[:, None, None]
            scale, shift = 1 / (255 * std), -mean / std
        device = torch.get_default_device()
        self.register_buffer("scale", scale.to(device), persistent=False)
        self.register_buffer("shift", shift.to(device), persistent=False)
        self.requires_grad_(False)
        # A tuple, which torch does not register as child modules.
        self._trained: tuple[nn.Module, ...] = ()
        if trainable != "none":
            self._trained = (trunk,) if trainable == "all" else tuple(trunk.last_stage())
        for part in self._trained:
            part.requires_grad_(True)
        self.eval()
        self.side, self.width = trunk.grid_at(self.size) or self._grid_of_example()
        if grid is not None:
            self.side = grid
        self.positions = self.side * self.side

    def _grid_of_example(self) -> tuple[int, int]:
        # Not inference_mode: a network that caches tensors here could not be trained later.
        with torch.no_grad():
            example = self(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))
        positions, width = example.grid.shape[1:]
        return math.isqrt(positions), width

    def forward(self, pixels: Tensor) -> Features:
        """The features of uint8 pixels [B, 3, S, S] in RGB, from any device."""
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}; they must be "
                f"uint8 [B, 3, {self.size}, {self.size}]"
            )
        pixels = pixels.to(self.scale.device, non_blocking=True)
        some = self._pictures_at_once(pixels)
        if len(pixels) > some:
            starts = range(0, len(pixels), some)
            parts = [self(pixels[start : start + some]) for start in starts]
            return Features(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if self._dtype == torch.uint8:
            return self._features(*self.trunk(pixels))
        colours = pixels.to(torch.float32, memory_format=torch.channels_last)
        colours = torch.addcmul(self.shift, colours, self.scale)  # [B, 3, S, S]
        return self._features(*self.trunk(colours.to(self._dtype)))

    def stem(self) -> "Encoder | None":
        """The frozen layers as an encoder of their own, whose features `from_stem` completes; None
        where not only the last stage is trained, or where the network cannot be cut there."""
        is_last_trained = self._trained and self.trunk not in self._trained
        trunk = self.trunk.stem() if is_last_trained else None
        return None if trunk is None else Encoder(trunk, self.preprocessing)

    def from_stem(self, grid: Tensor) -> Features:
        """The features of pictures, from the grid [B, P', D'] that `stem` made of them."""
        side = round(grid.shape[1] ** 0.5)
        cells = grid.to(self._dtype).transpose(1, 2).reshape(len(grid), grid.shape[2], side, side)
        cells = cells.contiguous(memory_format=torch.channels_last)
        return self._features(*self.trunk.after_stem(cells))

    def _features(self, grid: Tensor, vector: Tensor) -> Features:
        grid = grid.float()  # [B, D, H, H]
        if self._grid is not None:
            grid = adaptive_avg_pool2d(grid, self._grid)
        return Features(grid.flatten(2).transpose(1, 2), vector.float())

    def _pictures_at_once(self, pixels: Tensor) -> int:
        """A processor's cache holds the maps of a few pictures: 16 at once take a fifth less time
        than 64. The features are the same."""
        is_exact = self._dtype in (torch.float32, torch.uint8)
        is_on_processor = is_exact and self.scale.device.type == "cpu"
        if not is_on_processor or torch.is_grad_enabled():
            return len(pixels)
        return CACHED_PICTURES * max(1, torch.get_num_threads() // 2)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode. Frozen layers stay in inference mode: no dropout, and batch norms
        keep their statistics.

        With `batch_norm` auto, batch norms in a trained last stage keep their statistics too.
        These come from a million pictures, and a training step has only a few.
        """
        super().train(False)
        self.training = mode
        for part in self._trained:
            part.train(mode)
        is_whole = self.trunk in self._trained
        if self.batch_norm == "frozen" or (self.batch_norm == "auto" and not is_whole):
            for part in self.trunk.modules():
                if isinstance(part, nn.modules.batchnorm._NormBase):
                    part.train(False)
        return self

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are not frozen."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def for_training(self, precision: Precision, batch_norm: BatchNorm = "auto") -> Self:
        """This encoder on the device, in float32. Call it under `precision.autocast()`."""
        self.batch_norm = batch_norm
        if batch_norm == "synchronised":
            for part in self._trained:
                synchronise(part)
        return self.to(precision.device).to(memory_format=torch.channels_last)

    @property
    def is_trained(self) -> bool:
        """Whether training changes some of its weights."""
        return any(True for _ in self.trainable_parameters())

    def check_precision(self, precision: PrecisionName) -> None:
        """Raises UserError if this encoder cannot compute in it."""
        if precision == "int8" and not self.trunk.supports_int8:
            raise UserError(
                "--precision int8: only the ResNet and MobileNetV2 encoders have it, and this is "
                "another one: give fp32 or bf16"
            )

    def for_inference(self, precision: Precision) -> "Encoder":
        """A frozen and folded copy on the device, in this precision. Only the original can be
        saved or trained."""
        self.check_precision(precision.name)
        frozen = copy.deepcopy(self).requires_grad_(False)
        frozen._trained = ()
        frozen.eval()
        if precision.name == "int8":
            frozen.trunk = frozen.trunk.in_int8(frozen.scale, frozen.shift, frozen.size)
            frozen._dtype = torch.uint8
        else:
            frozen.trunk.fold()
            frozen.trunk.to(dtype=precision.dtype)
            frozen._dtype = precision.dtype
        frozen.to(precision.device).to(memory_format=torch.channels_last)
        return frozen
