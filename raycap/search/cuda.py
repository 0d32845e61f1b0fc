"""What the search for devices does on CUDA only: a graph of its step, and copies to the host
without a wait. `device.py` holds all the rest.

    replay = record_graph(step, restart, device)     # one launch instead of about a hundred
    flags.send(done, 4); ...; flags.first_done()     # looked at some steps later
    HostCopy(tensors).wait()                         # waits for the captions of a batch
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Of a step before it is recorded: libraries choose their kernels and allocate their workspaces.
WARM_UPS = 3


def record_graph(
    step: Callable[[], None], restart: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """A function that does what `step` does, on the same tensors, in a single launch.

    `restart` makes the tensors those before the first step. A RuntimeError says that the step
    cannot be recorded.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                restart()
                step()
            restart()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy and encode at the same time, which must not end the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    return graph.replay


class HostCopy:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors
        ]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._arrival = _event_now(tensors[0].device)

    def wait(self) -> list[Tensor]:
        """The copies, when they have arrived."""
        self._arrival.synchronize()
        return self._copies


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without a wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class DoneFlags:
    """Whether all pictures of a batch were done at some steps, sent to the host without a wait.

    On a processor they arrive at once.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._device = device
        self._flags = torch.zeros(count, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._values = self._flags.numpy()  # the same memory: read without an operator of torch
        self._steps: list[int] = []
        self._events: list[torch.cuda.Event] = []

    def clear(self) -> None:
        """Forget the flags of the last batch. An old one that is still on its way is overwritten
        before the event of the new one."""
        self._steps, self._events = [], []

    def send(self, all_done: Tensor, step: int) -> None:
        """Send the flag [1] as it is after so many steps."""
        place = len(self._steps)
        self._flags[place : place + 1].copy_(all_done, non_blocking=True)
        self._steps.append(step)
        if self._device.type == "cuda":
            self._events.append(_event_now(self._device))

    def wait(self) -> None:
        """Until all flags that were sent have arrived."""
        if self._events:
            self._events[-1].synchronize()

    def first_done(self) -> int | None:
        """After how many steps all pictures were done, by the flags that have arrived."""
        for place, step in enumerate(self._steps):
            if self._events and not self._events[place].query():  # type: ignore[no-untyped-call]
                return None
            if self._values[place]:
                return step
        return None


class LastUse:
    """Keeps a batch from changing tensors that the last one, on another stream, still reads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Let the current stream wait; the host does not."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def mark(self) -> None:
        """All work up to now uses the tensors."""
        if self._device.type == "cuda":
            self._event = _event_now(self._device)


def _event_now(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
