"""The weights of a captioner as they lie in model.safetensors.

    content = pack(tensors, "int8")     # the file
    state = unpack(content, name)       # the same tensors, rounded, in float32

In int8 a matrix `decoder.words.weight` [R, ...] is rounded to whole numbers from -127 to 127, with
one scale for each row in `decoder.words.weight:scale` [R]. All else is float16 then.
"""

from collections.abc import Mapping
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raycap.errors import UserError

Numbers = Literal["float32", "float16", "int8"]
SCALE = ":scale"
MOST_WHOLE = 127
# Smaller matrices would save next to nothing.
FEWEST_ROUNDED = 256
# Of the largest number of a row: where a few numbers stand out, a smaller scale rounds the others
# better. The best one of these is taken.
CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)


def pack(tensors: Mapping[str, Tensor], numbers: Numbers) -> bytes:
    """The content of model.safetensors."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            packed[name] = tensor.contiguous()
        elif numbers == "int8" and tensor.ndim > 1 and tensor.numel() >= FEWEST_ROUNDED:
            packed[name], packed[name + SCALE] = _rounded(tensor.float())
        else:
            kind = torch.float32 if numbers == "float32" else torch.float16
            packed[name] = tensor.to(kind).contiguous()
    return safetensors.torch.save(packed)


def _rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of the tensor's shape, and the scale of each row, with the least squared
    error."""
    rows = tensor.flatten(1)
    highest = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    best_error = torch.full_like(highest, torch.inf)
    best_scale = highest / MOST_WHOLE
    for share in CLIPPED:
        scale = share * highest / MOST_WHOLE
        error = (_whole(rows, scale) * scale - rows).square().sum(1, keepdim=True)
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    whole = _whole(rows, best_scale).to(torch.int8).view(tensor.shape).contiguous()
    return whole, best_scale.squeeze(1).contiguous()


def _whole(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows / scale).round().clamp(-MOST_WHOLE, MOST_WHOLE)


def unpack(content: bytes, name: str) -> dict[str, Tensor]:
    """What `pack` wrote, with float32 in place of whole numbers and their scales.

    `name` is the file's, for messages. The file may be from anybody.
    """
    again = "get the captioner folder again"
    try:
        packed = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{name} is no whole safetensors file: {again}") from error
    state = {key: tensor for key, tensor in packed.items() if not key.endswith(SCALE)}
    for key in packed.keys() - state.keys():
        scale, whole = packed[key], state.get(key.removesuffix(SCALE))
        if (
            whole is None
            or whole.dtype != torch.int8
            or not scale.is_floating_point()
            or scale.shape != whole.shape[:1]
        ):
            raise UserError(f"{name}: {key[:100]!r} is no scale of whole numbers; {again}")
        by_row = scale.float().view(-1, *(1,) * (whole.ndim - 1))
        state[key.removesuffix(SCALE)] = whole.float() * by_row
    for key, tensor in state.items():
        if tensor.dtype == torch.int8:
            raise UserError(f"{name}: {key[:100]!r} lacks its scale; {again}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name}: {key[:100]!r} holds values that are no numbers; {again}")
    return state
