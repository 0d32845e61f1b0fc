"""The way in on Ray: a source becomes a stream of manifest rows, and each row an opened picture or a reason."""

import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Dataset
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.hosts import FETCHED
from raycap.images import Picture, Reading, Square, read_picture
from raycap.sources import Source
from raycap.stages.alone import is_second_try, read_alone
from raycap.tables import FAILED_TO_DECODE, FAILED_TO_FETCH, SUCCESS

# Rows that one task opens: enough to pay for the task, few enough that a small folder keeps every core busy.
ROWS_PER_TASK = 256


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
    table: pa.Table, fetch: Fetch, reading: Reading, square: Square, trust: Trust, keep_pixels: bool
) -> pa.Table:
    """Manifest rows in; out the same rows with status, reason, format, size, digest and pixels instead of `bytes`
    and `error`."""
    pictures = _pictures(table, _fetcher(fetch, trust), reading, square)
    columns: dict[str, pa.Array] = {
        "status": pa.array([status for status, _, _, _ in pictures], pa.string()),
        "error_message": pa.array([picture.error for _, _, picture, _ in pictures], pa.string()),
        "format": pa.array([picture.format for _, _, picture, _ in pictures], pa.string()),
        "width": pa.array([picture.width for _, _, picture, _ in pictures], pa.int32()),
        "height": pa.array([picture.height for _, _, picture, _ in pictures], pa.int32()),
        "sha256": pa.array([digest for _, digest, _, _ in pictures], pa.string()),
        FETCHED.name: pa.array([took for _, _, _, took in pictures], FETCHED.type),
    }
    if keep_pixels:
        columns["pixels"] = _pixel_column([picture.pixels for _, _, picture, _ in pictures], square.size)
    table = table.drop_columns(["bytes", "error"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _pictures(
    table: pa.Table, fetcher: Fetcher, reading: Reading, square: Square
) -> list[tuple[str, str, Picture, dict[str, Any] | None]]:
    """For each row its status, the digest of its bytes, the picture, and what fetching it took."""
    columns = (table[name].to_pylist() for name in ("uri", "bytes", "error"))
    rows = list(zip(*columns, strict=True))
    answers = iter(fetcher.fetch_all([uri for uri, data, error in rows if data is None and not error]))
    fetched = []
    for _, data, error in rows:
        if error:  # the source knows that the row cannot be used: it is not fetched
            fetched.append(Fetched(b"", error))
        else:
            fetched.append(next(answers) if data is None else Fetched(data, ""))
    if is_second_try():
        read = read_alone([None if each.error else each.data for each in fetched], reading, square)
    else:
        read = (None if each.error else read_picture(each.data, reading, square) for each in fetched)
    return [(*_opened(each, picture), _took(each)) for each, picture in zip(fetched, read, strict=True)]


def _took(fetched: Fetched) -> dict[str, Any] | None:
    """For `hosts.HostCounts`."""
    if not fetched.requests:
        return None
    return {"bytes": len(fetched.data), "requests": fetched.requests, "seconds": fetched.seconds}


def _opened(fetched: Fetched, picture: Picture | None) -> tuple[str, str, Picture]:
    if picture is None:
        return FAILED_TO_FETCH, "", Picture(pixels=None, format="", width=0, height=0, error=fetched.error)
    return FAILED_TO_DECODE if picture.error else SUCCESS, hashlib.sha256(fetched.data).hexdigest(), picture


@functools.cache
def _fetcher(fetch: Fetch, trust: Trust) -> Fetcher:
    """One for each worker process, so that connections outlive a task."""
    # A picture's fault becomes its row's reason; Pillow's remarks about metadata would fill the logs of a long job.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return Fetcher(fetch, trust)


def _pixel_column(pixels: list[np.ndarray | None], size: int) -> pa.Array:
    """Unreadable pictures are black here; their status says so, and nobody looks at them."""
    black = np.zeros((size, size, 3), np.uint8)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([black if one is None else one for one in pixels]))
