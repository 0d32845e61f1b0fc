"""Builds networks whose weights are loaded afterwards."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RANDOM = (
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
)


class unset_weights(TorchFunctionMode):  # noqa: N801 - used as a function, like torch.no_grad
    """Within this context, networks are built without random weights: any numbers are in them.

    Random numbers take longer than to load others. On the device `meta`, for which torch makes
    them in Python, they would load torch's compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        if func is torch.linalg.qr:  # for orthogonal weights
            return args[0], args[0]
        return func(*args, **(kwargs or {}))
