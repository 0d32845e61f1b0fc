"""Decodes plain JPEGs on the device that the model runs on: on a GPU with nvJPEG.

The reader has looked at their headers (`PictureFile.is_plain_jpeg`): other pictures never come
here. A file that the device cannot decode is read on the processor, which knows the reason.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from raycap.errors import UserError
from raycap.images import Picture, Reading, Square
from raycap.images.guard import read_guarded
from raycap.images.pixels import resize_plan


def decode_jpegs(
    files: Sequence[NDArray[np.uint8]], reading: Reading, square: Square, device: torch.device
) -> list[Tensor | Picture]:
    """Each file as a square [S, S, 3] on the device, or as the processor has read it."""
    found: list[Tensor | Picture] = []
    for file, decoded in zip(files, _decode(files, device), strict=True):
        if decoded is None:
            plain = Square(square.size, square.resize, square.interpolation)
            found.append(read_guarded(file.tobytes(), reading, plain))
        else:
            found.append(_resized(decoded, square))
    return found


def _decode(files: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor | None]:
    """The pixels [3, H, W] of each file; None if the device cannot decode it."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise UserError(
            "this version of torchvision decodes no JPEGs: leave out --jpegs-on-device"
        ) from error
    # Arrow's memory is read-only, which torch only remarks upon; newer versions of torchvision
    # name another package.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bodies = [torch.from_numpy(file) for file in files]

        def decode(some: list[Tensor]) -> list[Tensor]:
            decoded: list[Tensor] = decode_jpeg(some, ImageReadMode.RGB, device=device)
            return decoded

        try:
            return list(decode(bodies)) if bodies else []
        except RuntimeError:  # it does not say which file is at fault
            pass
        found: list[Tensor | None] = []
        for body in bodies:
            try:
                found += decode([body])
            except RuntimeError:
                found.append(None)
        return found


def _resized(pixels: Tensor, square: Square) -> Tensor:
    """Pixels [3, H, W] as a square [S, S, 3], with an antialiased filter."""
    height, width = pixels.shape[1:]
    size, box = resize_plan((width, height), square.size, square.resize)
    left, top, right, bottom = (round(edge) for edge in box)
    part = pixels[None, :, top:bottom, left:right].float()
    scaled = interpolate(part, size[::-1], mode=square.interpolation, antialias=True)
    return scaled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
