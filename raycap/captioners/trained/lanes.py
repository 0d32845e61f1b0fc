"""Where the batches of a trained captioner are computed: on a processor, or in streams of a GPU.

    with lanes.encoding(pictures, count) as pixels:    # uint8 [B, 3, S, S], on the device
        memory = ...
    is_encoded = lanes.mark()                          # in `encoding`
    with lanes.searching(is_encoded):
        words = lanes.to_host(...)
        is_found = lanes.mark()
    is_found.wait()                                    # in any thread: then `words` are there

A processor does one thing after the other. A GPU has three streams, for copies, the encoder and
the search. One thread launches everything, so a search that is captured as a CUDA graph meets no
other launches. It launches the encoder for the next batch before it searches for the captions of
this one: both then run side by side.

Everything in this file about CUDA that must hold is checked in tests/test_lanes.py with a stand-in
that knows which operation waits for which. It has not been run on a GPU.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

# A picture in host memory [S, S, 3], or one that is on the device already.
SquarePixels = NDArray[np.uint8] | Tensor
# Buffers for pixels: one is filled, one is copied, one is read by the encoder.
BUFFERS = 3


class Mark:
    """A point in the work of a device."""

    def wait(self) -> None:
        """Return when everything before it is done. Any thread may wait."""


class Lanes:
    """A processor, or a device without streams."""

    ahead = 0  # batches that are encoded before the one that is searched

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def encoding(self, pictures: Sequence[SquarePixels], count: int) -> Iterator[Tensor]:
        """The pixels of pictures on the device [count, 3, S, S], black ones behind them."""
        with record_function("raycap: copy"):
            pixels = torch.empty(count, *pictures[0].shape, dtype=torch.uint8)
            _fill(pixels, pictures)
            pixels = pixels.to(self.device)
        with record_function("raycap: encode"):
            yield pixels.permute(0, 3, 1, 2)

    @contextmanager
    def searching(self, after: Mark) -> Iterator[None]:
        """Use what was there at the mark."""
        with record_function("raycap: search"):
            yield

    def mark(self) -> Mark:
        """After what was launched so far, in the present lane."""
        return Mark()

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in host memory. It is there when a later mark is reached."""
        return tensor.cpu()


class CudaMark(Mark):
    """An event of a stream."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()  # other threads of Python go on meanwhile


class _Buffer:
    """The pixels of one batch, in pinned memory and on the device."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, cuda: Any) -> None:
        self.pinned = _pinned(shape, torch.uint8, device)
        self.pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        self.is_copied, self.is_read = cuda.Event(), cuda.Event()


class CudaLanes(Lanes):
    """A GPU with a stream for copies, one for the encoder and one for the search."""

    ahead = 1

    def __init__(self, device: torch.device, batch: int, cuda: Any = torch.cuda) -> None:
        """`batch` is the largest one. The model is on the device already."""
        super().__init__(device)
        self._batch, self._cuda = batch, cuda
        # The streams of torch do not wait for the default one, which has moved the weights.
        cuda.synchronize(device)
        self._copies, self._encoder = cuda.Stream(device), cuda.Stream(device)
        # Its small kernels go before those of the encoder, which fill the GPU anyway.
        self._search = cuda.Stream(device, priority=-1)
        self._buffers: Iterator[_Buffer] | None = None

    @contextmanager
    def encoding(self, pictures: Sequence[SquarePixels], count: int) -> Iterator[Tensor]:
        if self._buffers is None:
            shape = (self._batch, *pictures[0].shape)
            kept = [_Buffer(shape, self.device, self._cuda) for _ in range(BUFFERS)]
            self._buffers = itertools.cycle(kept)
        buffer = next(self._buffers)
        buffer.is_copied.synchronize()  # the batch before it in this buffer has left the host
        with record_function("raycap: copy"):
            _fill(buffer.pinned[:count], pictures)
            with self._cuda.stream(self._copies):
                self._copies.wait_event(buffer.is_read)
                buffer.pixels[:count].copy_(buffer.pinned[:count], non_blocking=True)
                buffer.is_copied.record(self._copies)
        decoder = self._cuda.current_stream(self.device)
        with record_function("raycap: encode"), self._cuda.stream(self._encoder):
            self._encoder.wait_event(buffer.is_copied)
            try:
                for place, picture in enumerate(pictures):
                    if isinstance(picture, Tensor):  # decoded on the device, by the present stream
                        self._encoder.wait_stream(decoder)
                        buffer.pixels[place].copy_(picture)
                        picture.record_stream(self._encoder)  # its memory is not reused before
                yield buffer.pixels[:count].permute(0, 3, 1, 2)
            finally:
                buffer.is_read.record(self._encoder)

    @contextmanager
    def searching(self, after: Mark) -> Iterator[None]:
        assert isinstance(after, CudaMark)
        with record_function("raycap: search"), self._cuda.stream(self._search):
            self._search.wait_event(after.event)
            yield

    def mark(self) -> Mark:
        event = self._cuda.Event()
        event.record(self._cuda.current_stream(self.device))
        return CudaMark(event)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        pinned = _pinned(tuple(tensor.shape), tensor.dtype, self.device)
        # torch keeps pinned memory until the copies from it are done.
        return pinned.copy_(tensor).to(self.device, non_blocking=True)

    def to_host(self, tensor: Tensor) -> Tensor:
        pinned = _pinned(tuple(tensor.shape), tensor.dtype, self.device)
        return pinned.copy_(tensor, non_blocking=True)


def lanes_of(device: torch.device, batch: int) -> Lanes:
    """The lanes of a device, for batches of at most so many pictures."""
    return CudaLanes(device, batch) if device.type == "cuda" else Lanes(device)


@contextmanager
def memory_share(device: torch.device, share: float) -> Iterator[None]:
    """Let this process use only a share of a GPU's memory, and release it at the end."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    try:
        yield
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _pinned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory from which a GPU copies while the host goes on."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def _fill(buffer: Tensor, pictures: Sequence[SquarePixels]) -> None:
    """Copy the pictures that are in host memory into a buffer [B, S, S, 3], each to its place.
    Places behind them become black."""
    squares = buffer.numpy()
    for place, picture in enumerate(pictures):
        if not isinstance(picture, Tensor):
            squares[place] = picture
        elif picture.device.type == "cpu":
            squares[place] = picture.numpy()
    squares[len(pictures) :] = 0
