"""From a source to loaded pictures on Ray: a stream of manifest rows, and each row a picture or a
reason."""

import functools
import json
import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataContext, Dataset
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycap.bulk.options import BulkOptions
from raycap.bulk.selection import chosen_rows
from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.fetch.hosts import FETCHED
from raycap.images import Picture, Reading, Square, read_picture, read_whole
from raycap.images.guard import needs_guard, read_guarded, read_in_child
from raycap.images.loading import Read, load_pictures
from raycap.sources import Notes, Source

# Rows that one task loads: enough to pay for the task, few enough that a small folder keeps every
# core busy.
ROWS_PER_TASK = 256
# If nothing is finished for so long, plus what the pictures may take, the stream is stuck. The
# slowest fetch is far below that.
SECONDS_WITHOUT_PROGRESS = 900


class LazyManifest(Protocol):
    """A source, or the pending rows of one."""

    def tables(self) -> Iterator[pa.Table]:
        """Manifest rows, perhaps with more columns, in tables of one schema."""


@dataclass(frozen=True)
class SelectedRows:
    """The rows of a source that options leave. The last one brings the notes of the source, so
    that the driver need not list it again."""

    source: Source
    options: BulkOptions

    def tables(self) -> Iterator[pa.Table]:
        notes = Notes()
        held: pa.Table | None = None  # until it is known whether the last row is in it
        for table in chosen_rows(self.source, self.options, notes):
            if held is not None and len(table):
                yield _with_notes(held, "")
                held = None
            held = table if held is None else held
        if held is not None:
            yield _with_notes(held, notes.to_json())


def _with_notes(table: pa.Table, notes: str) -> pa.Table:
    column = [*[""] * (len(table) - 1), notes][-len(table) :] if len(table) else []
    return table.append_column("notes", pa.array(column, pa.string()))


def notes_of(table: pa.Table) -> dict[str, Any] | None:
    """The notes of the source, if the last row of its listing is in the table: what may be a
    picture and has no row ("left_out"), and other remarks ("notes")."""
    last = table["notes"].filter(pc.not_equal(table["notes"], ""))
    return json.loads(last[0].as_py()) if len(last) else None


def manifest(source: LazyManifest, rows_per_task: int = ROWS_PER_TASK) -> Dataset:
    """The rows of a source, listed lazily by one task that holds no processor: listing is waiting,
    and on a machine with one core a lister that held it would starve the pictures."""
    listing = ray.data.read_datasource(_Listing(source), override_num_blocks=1, num_cpus=0)
    rows: Dataset = listing.repartition(target_num_rows_per_block=rows_per_task)
    return rows


class _Listing(Datasource):
    def __init__(self, source: LazyManifest) -> None:
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


def load_rows(
    rows: Dataset,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
    square: Square,
    keep_pixels: bool,
    rows_per_task: int = ROWS_PER_TASK,
    nodes: dict[str, str] | None = None,
) -> Dataset:
    """Fetch and decode every row in tasks (on nodes with that label). No row is lost: a bad one
    has a reason."""
    # A task takes longest, without a fault, when every picture in it hangs.
    seconds = SECONDS_WITHOUT_PROGRESS + rows_per_task * reading.timeout
    for context in (rows.context, DataContext.get_current()):  # the first is a copy of the second
        context.execution_no_progress_timeout_s = seconds
    return rows.map_batches(
        load_table,  # type: ignore[arg-type]
        batch_format="pyarrow",
        batch_size=rows_per_task,
        label_selector=nodes,
        fn_kwargs={
            "fetch": fetch,
            "trust": trust,
            "reading": reading,
            "square": square,
            "keep_pixels": keep_pixels,
        },
    )


# What loading adds to a manifest row, besides the pixels.
LOADED = pa.schema(
    [
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        FETCHED,
    ]
)


def load_table(
    table: pa.Table,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
    square: Square,
    keep_pixels: bool,
    source: Source | None = None,
) -> pa.Table:
    """Manifest rows in; out the same rows with status, reason, format, size, digest and pixels
    instead of `bytes` and `error`. Bodies are read as they arrive, so memory holds a few of them,
    however many rows there are.

    Rows of a plan have `embedded` instead of `bytes`: where it is true, the source has the bytes.
    """
    if source is not None:
        table = _with_bytes(table, source)
    found: list[dict[str, Any]] = [{}] * len(table)
    side = square.size if keep_pixels else 0
    # Unreadable pictures stay black. Their status says so, and nobody looks at them.
    pixels = np.zeros((len(table), side, side, 3), np.uint8)
    fetcher = _fetcher(fetch, trust)
    for row, picture in load_pictures(_items(table), fetcher, reading, square, _reader()):
        if keep_pixels and picture.pixels is not None:
            pixels[row] = picture.pixels
        found[row] = {
            "status": picture.status,
            "error_message": picture.error,
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "sha256": picture.sha256,
            FETCHED.name: _transfer(picture.fetched),
        }
        del picture  # the next body is on its way

    table = table.drop_columns(["bytes", "error"])
    for field in LOADED:
        column = pa.array([row[field.name] for row in found], field.type)
        table = table.append_column(field.name, column)
    if keep_pixels:
        table = table.append_column("pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    return table


def _with_bytes(table: pa.Table, source: Source) -> pa.Table:
    embedded = table["embedded"].to_numpy()
    bodies: list[bytes | None] = [None] * len(table)
    if embedded.any():
        found = iter(source.embedded_pictures(table.filter(pa.array(embedded))))
        bodies = [next(found) if is_embedded else None for is_embedded in embedded]
    table = table.append_column("bytes", pa.array(bodies, pa.large_binary()))
    return table.drop_columns(["embedded"])


def _items(table: pa.Table) -> Iterator[str | bytes | Fetched]:
    """What is to be loaded for each row. Bytes in the table become Python's one row at a time."""
    for uri, data, error in zip(table["uri"], table["bytes"], table["error"], strict=True):
        if error.as_py():  # the source knows that the row cannot be used: it is not fetched
            yield Fetched(b"", error.as_py())
        else:
            yield data.as_py() if data.is_valid else uri.as_py()


def _transfer(fetched: Fetched) -> dict[str, Any] | None:
    """What the statistics of each host are made of."""
    if not fetched.requests:
        return None
    return {"bytes": len(fetched.data), "requests": fetched.requests, "seconds": fetched.seconds}


def _reader() -> Read:
    """How this task reads its pictures.

    A worker that hangs in a picture, or dies of it, leaves no word of which one it was. So when
    Ray runs a task again, each picture is read in a child process, and the one that is to blame
    gets its reason. The first time, ordinary pictures are read here, which is faster, and an alarm
    ends a worker that hangs.
    """
    attempt = _attempt()
    if attempt is None:
        return read_guarded
    if attempt > 0:
        return read_in_child
    return _read_with_alarm if hasattr(signal, "setitimer") else read_guarded


def _attempt() -> int | None:
    """How often Ray has tried this task before; None if this is no task."""
    worker: Any = ray._private.worker.global_worker  # Ray says it nowhere else
    if not worker.connected or worker.mode != ray.WORKER_MODE:
        return None
    return int(worker.core_worker.get_current_task_attempt_number())


def _read_with_alarm(data: bytes, reading: Reading, square: Square | None) -> Picture:
    if needs_guard(data, reading):
        return read_in_child(data, reading, square)
    # SIGALRM ends the process even while it runs C code. Nothing else in a worker uses it.
    signal.setitimer(signal.ITIMER_REAL, reading.timeout)
    try:
        return read_whole(data, reading) if square is None else read_picture(data, reading, square)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@functools.cache
def _fetcher(fetch: Fetch, trust: Trust) -> Fetcher:
    """One for each worker process, so that connections outlive a task."""
    # A fault of a picture becomes its row's reason; Pillow's remarks about metadata would fill the
    # logs of a long job.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return Fetcher(fetch, trust)
