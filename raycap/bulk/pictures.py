"""The way in on Ray: a source becomes a stream of manifest rows, and each row an opened picture or a reason."""

import functools
import hashlib
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, Dataset
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.fetch.hosts import FETCHED
from raycap.images import Picture, Reading, Square, read_picture
from raycap.images.guard import needs_guard, read_guarded, read_in_child
from raycap.schema import FAILED_TO_DECODE, FAILED_TO_FETCH, SUCCESS
from raycap.sources import Source

# Rows that one task opens: enough to pay for the task, few enough that a small folder keeps every core busy.
ROWS_PER_TASK = 256
# A stream that stands still so long, plus what its pictures may take, is stuck. The slowest fetch is far below.
SECONDS_WITHOUT_PROGRESS = 900


class Listed(Protocol):
    """A source, or what stands before one."""

    def tables(self) -> Iterator[pa.Table]:
        """Manifest rows, perhaps with more columns, in tables of one schema."""


def manifest(source: Listed, rows_per_task: int = ROWS_PER_TASK) -> Dataset:
    """The rows of a source, listed lazily by one task that holds no processor: listing is waiting, and on a machine
    with one core a lister that held it would starve the pictures."""
    listing = ray.data.read_datasource(_Listing(source), override_num_blocks=1, num_cpus=0)
    rows: Dataset = listing.repartition(target_num_rows_per_block=rows_per_task)
    return rows


class _Listing(Datasource):
    def __init__(self, source: Listed) -> None:
        self._source = source

    def get_name(self) -> str:
        return "Manifest"

    def estimate_inmemory_data_size(self) -> int | None:
        return None  # nobody knows before the listing ends

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        source = self._source

        def read() -> Iterable[Block]:
            return source.tables()

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, unknown, per_task_row_limit=per_task_row_limit)]


def opened(
    rows: Dataset,
    source: Source,
    fetch: Fetch,
    reading: Reading,
    square: Square,
    keep_pixels: bool,
    rows_per_task: int = ROWS_PER_TASK,
    nodes: dict[str, str] | None = None,
) -> Dataset:
    """Fetch and decode every row, on processor tasks (of nodes with that label); no row is lost, a bad one has a
    reason."""
    # The longest that a task may take without a fault is when every picture in it hangs.
    patience = SECONDS_WITHOUT_PROGRESS + rows_per_task * reading.timeout
    for context in (rows.context, DataContext.get_current()):  # the first is a copy of the second
        context.execution_no_progress_timeout_s = patience
    return rows.map_batches(
        open_pictures,  # type: ignore[arg-type]
        batch_format="pyarrow",
        batch_size=rows_per_task,
        label_selector=nodes,
        fn_kwargs={
            "fetch": fetch,
            "reading": reading,
            "square": square,
            "trust": source.trust,
            "keep_pixels": keep_pixels,
        },
    )


def open_pictures(
    table: pa.Table,
    fetch: Fetch,
    reading: Reading,
    square: Square,
    trust: Trust,
    keep_pixels: bool,
) -> pa.Table:
    """Manifest rows in; out the same rows with status, reason, format, size, digest and pixels instead of `bytes`
    and `error`. Bodies are read as they arrive, so memory holds a few of them, however many rows there are."""
    status, digest = [FAILED_TO_FETCH] * len(table), [""] * len(table)
    pictures = [Picture(None, "", 0, 0, "")] * len(table)
    took: list[dict[str, Any] | None] = [None] * len(table)
    # Unreadable pictures stay black; their status says so, and nobody looks at them.
    side = square.size if keep_pixels else 0
    pixels = np.zeros((len(table), side, side, 3), np.uint8)
    read = _reader()
    for row, fetched in _bodies(table, _fetcher(fetch, trust)):
        took[row] = _took(fetched)
        if fetched.error:
            pictures[row] = replace(pictures[row], error=fetched.error)
            continue
        picture = read(fetched.data, reading, square)
        status[row] = FAILED_TO_DECODE if picture.error else SUCCESS
        digest[row] = hashlib.sha256(fetched.data).hexdigest()
        if keep_pixels and picture.pixels is not None:
            pixels[row] = picture.pixels
        pictures[row] = replace(picture, pixels=None)
        del fetched, picture  # the next body is on its way
    columns: dict[str, pa.Array] = {
        "status": pa.array(status, pa.string()),
        "error_message": pa.array([picture.error for picture in pictures], pa.string()),
        "format": pa.array([picture.format for picture in pictures], pa.string()),
        "width": pa.array([picture.width for picture in pictures], pa.int32()),
        "height": pa.array([picture.height for picture in pictures], pa.int32()),
        "sha256": pa.array(digest, pa.string()),
        FETCHED.name: pa.array(took, FETCHED.type),
    }
    if keep_pixels:
        columns["pixels"] = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    table = table.drop_columns(["bytes", "error"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _bodies(table: pa.Table, fetcher: Fetcher) -> Iterator[tuple[int, Fetched]]:
    """The number of each row with its bytes, in the order in which they arrive: those in the table come first."""
    to_fetch = []
    for row, (data, error) in enumerate(
        zip(table["bytes"], table["error"].to_pylist(), strict=True)
    ):
        if error:  # the source knows that the row cannot be used: it is not fetched
            yield row, Fetched(b"", error)
        elif data.is_valid:
            yield row, Fetched(data.as_py(), "")
        else:
            to_fetch.append(row)
    uris = table["uri"].take(to_fetch).to_pylist() if to_fetch else []
    for place, fetched in fetcher.fetch_each(uris):
        yield to_fetch[place], fetched
        del fetched


def _took(fetched: Fetched) -> dict[str, Any] | None:
    """For `hosts.HostCounts`."""
    if not fetched.requests:
        return None
    return {"bytes": len(fetched.data), "requests": fetched.requests, "seconds": fetched.seconds}


def _reader() -> Callable[[bytes, Reading, Square], Picture]:
    """How this task reads its pictures.

    A worker that hangs in a picture, or dies of it, leaves no word of which one it was. So when Ray runs a task
    again, each picture is read in a child process, and the one that is to blame gets its reason. The first time,
    ordinary pictures are read here, which is faster, and an alarm ends a worker that hangs.
    """
    attempt = _attempt()
    if attempt is None:
        return read_guarded
    return (
        read_in_child
        if attempt
        else _read_with_alarm
        if hasattr(signal, "setitimer")
        else read_guarded
    )


def _attempt() -> int | None:
    """How often Ray has tried this task before; None where this is no task."""
    worker: Any = ray._private.worker.global_worker  # Ray says it nowhere else
    if not worker.connected or worker.mode != ray.WORKER_MODE:
        return None
    return int(worker.core_worker.get_current_task_attempt_number())


def _read_with_alarm(data: bytes, reading: Reading, square: Square) -> Picture:
    if needs_guard(data, reading):
        return read_in_child(data, reading, square)
    # SIGALRM ends the process in the midst of C code too. Nothing else in a worker uses it.
    signal.setitimer(signal.ITIMER_REAL, reading.timeout)
    try:
        return read_picture(data, reading, square)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@functools.cache
def _fetcher(fetch: Fetch, trust: Trust) -> Fetcher:
    """One for each worker process, so that connections outlive a task."""
    # A picture's fault becomes its row's reason; Pillow's remarks about metadata would fill the logs of a long job.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return Fetcher(fetch, trust)
