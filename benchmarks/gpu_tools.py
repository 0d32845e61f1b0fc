"""What the sections of `gpu.py` share: results, rates, and what the profiler sees."""

import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# What the host calls to start work on a GPU, and to wait for it.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch",)
SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# Operations that would make the host wait for a GPU: numbers read, sizes that depend on data.
WOULD_WAIT = ("aten::_local_scalar_dense", "aten::nonzero")
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Setting:
    """How a section runs."""

    short: bool  # a few seconds on a processor: it shows that the section works
    folder: str  # for files, removed at the end

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def seconds(self) -> float:
        """Of one measurement."""
        return 0.05 if self.short else 2.0

    @property
    def path(self) -> Path:
        return Path(self.folder)


@dataclass
class Report:
    """The results of a section. They are written after each measurement: a section that is ended
    keeps those that it has."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, value: float | str, unit: str) -> None:
        self.rows.append({"what": what, "value": value, "unit": unit})
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(self.rows))
        written.replace(self.path)

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of a section, whose failure costs this part only."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the reason is a result
            reason = str(error).strip().splitlines() or [""]
            self.add(what, f"{type(error).__name__}: {reason[0][:160]}", "failed")
            release_memory()


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rate(function: Callable[[], object], count: int, seconds: float) -> float:
    """How many of `count` a second, of the median of several calls."""
    function()  # whatever happens only once
    synchronise()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        function()
        synchronise()
        times.append(time.perf_counter() - start)
    return count / statistics.median(times)


@dataclass(frozen=True)
class Profiled:
    """What one call did, by the profiler. Without a GPU there are operators only."""

    operators: int
    launches: int
    graphs: int  # launched as a whole
    synchronisations: int
    would_wait: int  # operators that wait for a GPU
    busy: float  # share of the time in which the GPU did something
    overlap: float  # share of the busy time in which two streams did something

    def add_to(self, report: Report, what: str) -> None:
        on_gpu = ("launches", "graphs", "synchronisations", "busy", "overlap")
        for name, value in asdict(self).items():
            if torch.cuda.is_available() or name not in on_gpu:
                unit = "share" if name in ("busy", "overlap") else "a batch"
                report.add(f"{what}: {name.replace('_', ' ')}", value, unit)


def profiled(function: Callable[[], object], batches: int = 1) -> Profiled:
    """Profile a call that works on so many batches; counts are those of one batch."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    function()
    synchronise()
    with profile(activities=activities) as found:
        function()
        synchronise()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text())["traceEvents"], batches)


def read_trace(events: list[dict[str, Any]], batches: int) -> Profiled:
    """Of the events of a trace."""
    names = Counter(event.get("name", "") for event in events)
    on_gpu = [event for event in events if event.get("cat") in ON_GPU]

    def count(which: tuple[str, ...]) -> int:
        return round(sum(names[name] for name in which) / batches)

    spans = [
        (event["ts"], event["ts"] + event["dur"], event["args"].get("stream")) for event in on_gpu
    ]
    busy, shared = covered(spans)
    whole = max((end for _, end, _ in spans), default=0) - min((s for s, _, _ in spans), default=0)
    operators = sum(event.get("cat") == "cpu_op" for event in events)
    return Profiled(
        operators=round(operators / batches),
        launches=count(LAUNCHES),
        graphs=count(GRAPHS),
        # The one at the end of the profile is not the function's.
        synchronisations=max(0, count(SYNCHRONISATIONS) - (1 if on_gpu and batches == 1 else 0)),
        would_wait=count(WOULD_WAIT),
        busy=busy / whole if whole else 0.0,
        overlap=shared / busy if busy else 0.0,
    )


def covered(spans: list[tuple[float, float, Any]]) -> tuple[float, float]:
    """The time in which at least one span lies, and in which spans of two streams lie."""
    edges = sorted(
        [(start, 1, stream) for start, _, stream in spans]
        + [(end, -1, stream) for _, end, stream in spans],
        key=lambda edge: (edge[0], edge[1]),
    )
    running: Counter[Any] = Counter()
    busy = shared = 0.0
    before = edges[0][0] if edges else 0.0
    for now, change, stream in edges:
        streams = sum(count > 0 for count in running.values())
        busy += (now - before) * (streams > 0)
        shared += (now - before) * (streams > 1)
        running[stream] += change
        before = now
    return busy, shared


class BusyMeter:
    """How busy the GPU is, as the driver says it: the share of time in which a kernel ran."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []  # time, percent
        self.reason = "" if shutil.which("nvidia-smi") else "nvidia-smi is not there"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "BusyMeter":
        if not self.reason:
            command = [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
            ]
            self._process = subprocess.Popen(
                [*command, "-lms", "100"], stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # [N/A]
                self.samples.append((time.monotonic(), float(line)))

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def share(self) -> float | None:
        """The mean between the first and the last time that it was busy."""
        busy = [place for place, (_, percent) in enumerate(self.samples) if percent]
        if not busy:
            return None
        return statistics.mean(part for _, part in self.samples[busy[0] : busy[-1] + 1]) / 100
