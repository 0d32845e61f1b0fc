"""Work on chunks: manifest rows in, one Parquet file of finished rows out. Runs in workers."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.counts import RowCounts, count_rows
from raycap.bulk.plan import Chunk, read_shard
from raycap.bulk.table import ChunkFile, chunk_path
from raycap.fetch import Fetch
from raycap.images import Intake, Reading
from raycap.schema import fit
from raycap.sources import Source
from raycap.storage import RunFolder

# Rows of a list of URLs that are fetched together: a slow one then holds back fewer tasks.
URLS_PER_TASK = 256
# Keys of the metadata of Parquet files: the counts of their rows, and which rows of which chunks
# they are.
COUNTS, ROWS = "raycap.counts", "raycap.rows"

# A column of loaded tables: which chunk they belong to.
CHUNK = "raycap.chunk"

# From loaded pictures to finished rows, one for each, in their order.
RowMaker = Callable[[pa.Table], pa.Table]


@runtime_checkable
class AsyncRowMaker(Protocol):
    """A row maker that works on many tables at once. Several threads may call it."""

    def __call__(self, table: pa.Table) -> pa.Table: ...

    def submit(self, table: pa.Table) -> Callable[[], pa.Table]:
        """Begin with a table. The function that is returned waits for the rows."""


@dataclass(frozen=True)
class FileLayout:
    """What each file of a table holds."""

    rows: int  # the most in one file of a finished table
    schema: pa.Schema
    carry: tuple[str, ...]  # columns of the user's own table
    metadata: dict[str, str]


@dataclass(frozen=True)
class WorkOrder:
    """What workers need to know. It is sent to each of them once."""

    out: RunFolder  # with the plan
    table: RunFolder  # where files are written
    source: Source
    fetch: Fetch
    reading: Reading
    intake: Intake
    batch: int
    layout: FileLayout
    open_model: Callable[[int], RowMaker]  # with so many threads

    @property
    def rows_per_task(self) -> int:
        """Rows that are loaded together: whole batches of the model."""
        if not self.source.names_urls:
            return self.batch
        return self.batch * max(1, URLS_PER_TASK // self.batch)

    def loading(self) -> dict[str, Any]:
        """How pictures are loaded: arguments of `pictures.load_table`."""
        return {
            "fetch": self.fetch,
            "trust": self.source.trust,
            "reading": self.reading,
            "intake": self.intake,
            "keep_pixels": True,
            "source": self.source,
        }


@dataclass(frozen=True)
class FinishedChunk:
    """What a worker has made."""

    file: ChunkFile
    counts: RowCounts
    schema: pa.Schema


class Loader(Protocol):
    """Fetches and decodes pictures."""

    def load(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Loaded tables in the order of the given manifest tables, some of them ahead."""


class ChunkWorker:
    """Holds the model. Several threads may call `make` at once: while the model works for one, the
    pictures of the others are loaded."""

    def __init__(self, order: WorkOrder, loader: Loader, threads: int, name: str) -> None:
        self._order, self._loader, self._name = order, loader, name
        self._make_rows = order.open_model(threads)
        self._model = threading.Lock()
        self._shard: tuple[tuple[int, int, int], pa.Table] | None = None
        self.rows_done = 0

    def make(self, chunk: Chunk) -> FinishedChunk:
        order = self._order
        rows = self._manifest(chunk)
        size = order.rows_per_task
        parts = (rows.slice(start, size) for start in range(0, len(rows), size))
        finished: list[pa.Table] = []
        counts = RowCounts()
        for made in self._rows_of(chunk, self._loader.load(parts)):
            counts.add(count_rows(made))
            finished.append(fit(made, order.layout.schema, order.layout.carry))
            self.rows_done += len(made)
        counts.makers[self._name] += counts.rows

        table = pa.concat_tables(finished)
        file = write_rows(order.table, chunk_path(chunk), table, order.layout, counts)
        return FinishedChunk(ChunkFile(*file, chunk), counts, table.schema)

    def close(self) -> None:
        """Let the model release what it holds, if it holds anything."""
        close = getattr(self._make_rows, "close", None)
        if close is not None:
            close()

    def _rows_of(self, chunk: Chunk, loaded_tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Loaded pictures through the model, in batches, in their order."""
        under_way: deque[Callable[[], pa.Table]] = deque()
        for loaded in loaded_tables:
            name = pa.repeat(pa.scalar(str(chunk)), len(loaded))
            loaded = loaded.append_column(CHUNK, name)
            for start in range(0, len(loaded), self._order.batch):
                batch = loaded.slice(start, self._order.batch)
                if isinstance(self._make_rows, AsyncRowMaker):
                    # It has many batches under way, and says itself when it has enough of them.
                    under_way.append(self._make_rows.submit(batch))
                else:
                    with self._model:
                        yield self._make_rows(batch)
        for finish in under_way:
            yield finish()

    def _manifest(self, chunk: Chunk) -> pa.Table:
        name = (chunk.operation, chunk.unit, chunk.shard)
        held = self._shard
        if held is None or held[0] != name:
            held = self._shard = (name, read_shard(self._order.out, *name))
        return held[1].slice(chunk.start, chunk.rows)


def write_rows(
    folder: RunFolder, path: str, table: pa.Table, layout: FileLayout, counts: RowCounts
) -> tuple[str, int, int]:
    """Write one Parquet file. Returns its path, size and rows."""
    metadata = {**layout.metadata, COUNTS: counts.to_json()}
    content = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
    data = content.getvalue()
    folder.write(path, data)
    return path, data.size, len(table)
