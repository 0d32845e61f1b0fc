"""A stand-in for `torch.cuda` on a processor. It runs everything at once, and knows which
operation would have waited for which on a GPU: `races` are operations on the same memory, one of
which writes it, that nothing has ordered.

    cuda = StandInForCuda()
    lanes = CudaLanes(torch.device("cpu"), batch=4, cuda=cuda)
    with cuda.watching():
        ...
    assert cuda.races() == []

Operations outside of streams count as those of the host.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# For each stream and the host: how many of its operations have been done before.
Clock = dict[str, int]


@dataclass(frozen=True)
class Access:
    """One operation's use of a tensor's memory."""

    name: str
    actor: str
    number: int  # of the actor's operations
    before: Clock
    memory: int
    writes: bool

    def is_before(self, other: "Access") -> bool:
        return other.before.get(self.actor, 0) >= self.number


class StandInForCuda:
    def __init__(self, ignores: str = "") -> None:
        """`ignores` names a kind of wait that is left out: `STREAM waits` or `host waits`."""
        self.ignores = ignores
        self.clocks: dict[str, Clock] = {"host": {}}
        self.accesses: list[Access] = []
        self._kept: list[Any] = []  # tensors, so that no memory is used twice
        self._current = threading.local()
        self._streams = 0

    # What `lanes` uses of torch.cuda.

    def Stream(self, device: torch.device, priority: int = 0) -> "Stream":  # noqa: N802
        self._streams += 1
        return Stream(self, ("copies", "encoder", "search")[self._streams - 1])

    def Event(self) -> "Event":  # noqa: N802
        return Event(self)

    @contextlib.contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before = self.current_stream(None)
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def current_stream(self, _device: Any) -> Any:
        return getattr(self._current, "stream", None)

    def synchronize(self, _device: Any) -> None:
        for clock in list(self.clocks.values()):
            merge(self.clocks["host"], clock)

    # What tests use.

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with _Watch(self):
            yield

    def note(self, name: str, tensors: list[Tensor], writes: list[Tensor]) -> None:
        """An operation of the present stream, or of the host."""
        stream = self.current_stream(None)
        actor = stream.name if stream is not None else "host"
        clock = self.clocks.setdefault(actor, {})
        merge(clock, self.clocks["host"])  # it was launched by the host
        number = clock.get(actor, 0) + 1
        before = dict(clock)
        clock[actor] = number
        self._kept += [*tensors, *writes]
        written = {memory_of(tensor) for tensor in writes}
        used = {memory_of(tensor) for tensor in tensors} | written
        self.accesses += [
            Access(name, actor, number, before, memory, memory in written) for memory in used
        ]

    def races(self) -> list[tuple[str, str]]:
        of_memory: dict[int, list[Access]] = {}
        for access in self.accesses:
            of_memory.setdefault(access.memory, []).append(access)
        found = []
        for accesses in of_memory.values():
            if len({access.actor for access in accesses}) == 1:
                continue
            for place, later in enumerate(accesses):
                for earlier in accesses[:place]:
                    is_ordered = earlier.actor == later.actor or earlier.is_before(later)
                    if (earlier.writes or later.writes) and not is_ordered:
                        names = [f"{one.actor}: {one.name}" for one in (earlier, later)]
                        found.append((names[0], names[1]))
        return found


@dataclass
class Stream:
    cuda: StandInForCuda
    name: str

    def wait_event(self, event: "Event") -> None:
        if self.cuda.ignores != f"{self.name} waits":
            merge(self.cuda.clocks.setdefault(self.name, {}), event.clock)


@dataclass
class Event:
    cuda: StandInForCuda

    def __post_init__(self) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        self.clock = dict(self.cuda.clocks.get(stream.name, {}))

    def synchronize(self) -> None:
        if self.cuda.ignores != "host waits":
            merge(self.cuda.clocks["host"], self.clock)


class _Watch(TorchFunctionMode):
    def __init__(self, cuda: StandInForCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        given = _tensors([*arguments, *(options or {}).values()])
        made = _tensors([result])
        name = getattr(function, "__name__", "")
        old = {memory_of(tensor) for tensor in given}
        writes = [tensor for tensor in made if memory_of(tensor) not in old]
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):  # in place
            writes += given[:1]
        self._cuda.note(name, given, writes)
        return result


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def merge(clock: Clock, other: Clock) -> None:
    for actor, number in other.items():
        clock[actor] = max(clock.get(actor, 0), number)
