"""The pictures of a source as a stream of Ray Data: each row with its picture or a reason."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataContext, Dataset
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycap.bulk.options import BulkOptions
from raycap.bulk.pictures import load_table
from raycap.bulk.selection import chosen_rows
from raycap.fetch import Fetch, Trust
from raycap.images import Intake, Reading
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
    and on a machine with one core a listing that held it would starve the pictures."""
    listing = ray.data.read_datasource(_Listing(source), override_num_blocks=1, num_cpus=0)
    rows: Dataset = listing.repartition(target_num_rows_per_block=rows_per_task)
    return rows


class _Listing(Datasource):
    def __init__(self, source: LazyManifest) -> None:
        self._source = source

    def get_name(self) -> str:
        return "Manifest"

    def estimate_inmemory_data_size(self) -> int | None:
        return None  # not known before the listing ends

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
    intake: Intake,
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
            "intake": intake,
            "keep_pixels": keep_pixels,
        },
    )
