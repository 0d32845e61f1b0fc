"""From manifest rows to loaded pictures: each row has its picture or a reason."""

import functools
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raycap.bulk.bodies import unpack
from raycap.bulk.picture_column import PictureColumn
from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.fetch.hosts import FETCHED
from raycap.images import Intake, Picture, Reading, read_picture, read_whole
from raycap.images.guard import needs_guard, read_guarded, read_in_child
from raycap.images.loading import LoadedPicture, Read, load_pictures
from raycap.sources import Source

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
_LOADED = [(field.name, field.type) for field in LOADED]


def load_table(
    table: pa.Table,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
    intake: Intake,
    keep_pixels: bool,
    source: Source | None = None,
    read: Read | None = None,
    bodies: pa.Table | None = None,
    patience: float | None = None,
) -> pa.Table:
    """Manifest rows in; out the same rows with status, reason, format, size, digest and pixels
    instead of `bytes` and `error`. Bodies are read as they arrive, so memory holds a few of them,
    however many rows there are.

    Rows of a plan have `embedded` instead of `bytes`: where it is true, the source has the bytes.
    `read` decodes one picture; without it, that depends on the process (see `_reader`). `bodies`
    are the pictures as they were fetched elsewhere. Rows that are still not there when nothing has
    arrived for `patience` seconds come out without a status.
    """
    if bodies is not None:
        table = table.drop_columns(["embedded"]).append_column("bytes", bodies["bytes"])
    elif source is not None:
        table = _with_bytes(table, source)
    items = _items(table) if bodies is None else unpack(bodies)
    loaded = LoadedRows(intake if keep_pixels else None, len(table))
    fetcher = _fetcher(fetch, trust)
    read = read or _reader()
    for row, picture in load_pictures(items, fetcher, reading, intake, read, patience):
        loaded.put(row, picture)
        del picture  # the next body is on its way
    return with_loaded(table.drop_columns(["bytes"]), loaded.to_arrow())


class LoadedRows:
    """What was loaded for some rows. It is put in in any order."""

    def __init__(self, intake: Intake | None, rows: int) -> None:
        """Without an intake, pixels are not kept."""
        self._found: list[dict[str, Any]] = [{}] * rows
        self._kept = None if intake is None else PictureColumn(intake, rows)

    def put(self, row: int, picture: LoadedPicture) -> None:
        if self._kept is not None and picture.pixels is not None:
            self._kept.put(row, picture.pixels)
        self._found[row] = {
            "status": picture.status,
            "error_message": picture.error,
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "sha256": picture.sha256,
            FETCHED.name: _transfer(picture.fetched),
        }

    def to_arrow(self) -> pa.Table:
        columns = [pa.array([row[name] for row in self._found], kind) for name, kind in _LOADED]
        table = pa.table(columns, schema=LOADED)
        if self._kept is not None:
            table = table.append_column("pixels", self._kept.to_arrow())
        return table


def with_loaded(rows: pa.Table, loaded: pa.Table) -> pa.Table:
    """Manifest rows without their bodies, and what was loaded for them."""
    table = rows.drop_columns(["error"])
    for name in loaded.column_names:
        table = table.append_column(loaded.schema.field(name), loaded[name])
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
    ray: Any = sys.modules.get("ray")
    if ray is None:
        return None
    worker = ray._private.worker.global_worker  # Ray says it nowhere else
    if not worker.connected or worker.mode != ray.WORKER_MODE:
        return None
    return int(worker.core_worker.get_current_task_attempt_number())


def _read_with_alarm(data: bytes, reading: Reading, intake: Intake | None) -> Picture:
    if needs_guard(data, reading):
        return read_in_child(data, reading, intake)
    # SIGALRM ends the process even while it runs C code. Nothing else in a worker uses it.
    signal.setitimer(signal.ITIMER_REAL, reading.timeout)
    try:
        return read_whole(data, reading) if intake is None else read_picture(data, reading, intake)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@functools.cache
def _fetcher(fetch: Fetch, trust: Trust) -> Fetcher:
    """One for each worker process, so that connections outlive a task."""
    # A fault of a picture becomes its row's reason; Pillow's remarks about metadata would fill the
    # logs of a long job.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return Fetcher(fetch, trust)
