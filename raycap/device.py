"""The device and the precision of a model: chosen from the hardware unless options name them."""

import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raycap.errors import UserError

if TYPE_CHECKING:  # the command line lists the choices without loading torch
    import torch

PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]
# Of what can be trained, and of models whose layers are all in one precision.
FloatName = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES: dict[PrecisionName, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
}
# Arithmetic that rounds sums, and so by the size of the batch. In fp32, batches are padded to a
# size from which on nothing changes; in int8, sums are exact.
ROUNDED_BY_BATCH: tuple[PrecisionName, ...] = ("bf16", "fp16")
# Instructions that add products of 8-bit numbers without overflow.
INT8_UNITS = {"avx512_vnni", "avx_vnni"}


@dataclass(frozen=True)
class Precision:
    """A device, the type of its arithmetic, and the reason for both."""

    device: "torch.device"
    dtype: "torch.dtype"
    reason: str

    @property
    def name(self) -> PrecisionName:
        """Its name in options."""
        dtype = str(self.dtype).removeprefix("torch.")
        return next(name for name, of_name in _DTYPES.items() if of_name == dtype)

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}: {self.reason}"

    def autocast(self) -> AbstractContextManager[object]:
        """For training: float32 weights, arithmetic in `dtype`. float16 needs a gradient
        scaler."""
        import torch

        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_precision(device: str = "auto", precision: PrecisionName = "auto") -> Precision:
    """The fastest precision that `device` has in hardware, unless `precision` names one.

    Raises UserError if the device cannot compute in it. Emulated arithmetic is slow, and allowed.
    """
    import torch

    chosen = _device(device)
    if precision != "auto":
        named = Precision(chosen, getattr(torch, _DTYPES[precision]), "as asked for")
        check_supported(named)
        return named
    name, reason = _fastest(chosen)
    return Precision(chosen, getattr(torch, _DTYPES[name]), reason)


def check_supported(precision: Precision) -> None:
    """Raises UserError if the device has no convolution or matrix product in this precision."""
    import torch

    if precision.dtype == torch.float32:
        return
    if precision.dtype == torch.int8:
        _check_int8(precision.device)
        return
    try:
        picture = torch.zeros(1, 8, 8, 8, device=precision.device, dtype=precision.dtype)
        kernel = torch.zeros(8, 8, 3, 3, device=precision.device, dtype=precision.dtype)
        torch.nn.functional.conv2d(picture, kernel)
        picture[0, 0] @ picture[0, 0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        dtype = str(precision.dtype).removeprefix("torch.")
        raise UserError(
            f"the device {precision.device} of {socket.gethostname()} cannot compute in {dtype} "
            f"({str(error).splitlines()[0]}): give --precision fp32, or keep the model on nodes "
            "that can (--cluster.model-on)"
        ) from error


def _check_int8(device: "torch.device") -> None:
    """Raises UserError if sums of products of 8-bit numbers are slow or overflow."""
    import torch

    host = socket.gethostname()
    if device.type != "cpu":
        raise UserError(
            f"--precision int8 is for processors, and {host} has the device {device}: give "
            "--device cpu with it, or --precision bf16"
        )
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not INT8_UNITS & _processor_flags() or not has_onednn:
        raise UserError(
            f"--precision int8: the processor of {host} has neither avx512_vnni nor avx_vnni: "
            "give --precision fp32, or keep the model on nodes that have it (--cluster.model-on)"
        )


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"there is no device {name!r}: give auto, cpu, cuda, cuda:1 or mps"
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {name} was asked for, but torch sees {count} CUDA device(s): give auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "device mps was asked for, but torch cannot use one on this machine: give auto or cpu"
        )
    return device


def _fastest(device: "torch.device") -> tuple[PrecisionName, str]:
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        chip = f"{torch.cuda.get_device_name(device)} (capability {major}.{minor})"
        if major >= 8:  # Ampere
            return "bf16", f"{chip} computes in bf16"
        if major == 7:  # Volta, Turing: float16 has tensor cores, bfloat16 is emulated
            return "fp16", f"{chip} computes in fp16, not in bf16"
        return "fp32", f"{chip} has no fast half precision"
    if device.type == "cpu":
        units = sorted({"avx512_bf16", "amx_bf16"} & _processor_flags())
        if units:
            return "bf16", f"the processor has {' and '.join(units)}"
        return "fp32", "the processor has neither avx512_bf16 nor amx_bf16"
    return "fp32", "half precision was not tried on this kind of device"


def _processor_flags() -> set[str]:
    """The features of an x86 processor under Linux; none elsewhere (emulated bf16 is slower than
    fp32)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
