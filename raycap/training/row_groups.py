"""The row groups of a feature table, and the captions of their rows, for a run that streams them.

The table holds no captions: they come from the source. Before a streamed run starts, both are
joined, so that the captions of a row can be read together with it:

    features/part-0001-000007.parquet     row groups of 80 pictures, made by `raycap extract`
    run/rows/000007.parquet               key, split and references of the same rows, in row groups
                                          of the same sizes
    run/rows/groups.parquet               how many pictures to learn from each row group has;
                                          written last

The join needs the same memory for any number of rows up to 5 million: both sides are first cut
into partitions by the key, on the local disk. With more rows, partitions grow.
"""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.schema import MANIFEST, SUCCESS
from raycap.storage import RunFolder, open_uri
from raycap.training.options import Train
from raycap.training.store import CAPTION_COLUMNS, digest_of_file, parquet_files, usable

ROWS, GROUPS = "rows", "groups.parquet"
ROWS_OF_PARTITION = 10_000
MOST_PARTITIONS = 500  # each is an open file
READERS = 16
BATCH = 10_000
# Larger row groups, as tables of earlier versions have them, would fill the memory.
MOST_BYTES_OF_GROUP = 256 * 2**20

_CAPTIONS = pa.schema([MANIFEST.field(name) for name in CAPTION_COLUMNS])
_ROW = pa.field("row", pa.int64())  # of the whole table
_GROUP_COLUMNS = ("file", "group", "rows", "training", "validation", "captions")


@dataclass(frozen=True)
class RowGroups:
    """The row groups of a table with their captions. They are numbered through all files."""

    files: tuple[str, ...]  # URIs of the feature files
    folder: RunFolder  # with the caption files
    counts: pa.Table  # _GROUP_COLUMNS, a row for each row group
    digest: str  # of the table and its captions

    def __len__(self) -> int:
        return len(self.counts)

    def column(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._columns[name]
        return column

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.int64]]:
        return {name: self.counts[name].to_numpy() for name in _GROUP_COLUMNS}

    def feature_file(self, group: int) -> tuple[str, int]:
        """The file with the features of a row group, and its number in that file."""
        return self.files[self.column("file")[group]], int(self.column("group")[group])

    def caption_file(self, group: int) -> tuple[str, int]:
        """The file with the captions of a row group, and its number in that file."""
        file = int(self.column("file")[group])
        first = int(np.searchsorted(self.column("file"), file))
        return str(self.folder / _caption_file(file)), group - first

    def captions(self) -> Iterator[pa.Table]:
        """CAPTION_COLUMNS of all rows of the table, file by file. Those of a row that failed, or
        that the source does not have, are null."""
        for file in range(len(self.files)):
            yield self.folder.reading(_caption_file(file), pq.read_table)


def _caption_file(file: int) -> str:
    return f"{file:06}.parquet"


def read_group(uri: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of a row group of a Parquet file."""
    with open_uri(uri) as file:
        return pq.ParquetFile(file, pre_buffer=True).read_row_group(
            group, columns=list(columns), use_threads=False
        )


def open_row_groups(table: str, folder: RunFolder) -> RowGroups:
    """What `join_captions` has written into `folder`. The table may have moved since then."""
    file = pq.read_table(pa.BufferReader(folder.read(GROUPS)))
    about = json.loads(file.schema.metadata[b"raycap"])
    found = parquet_files(table)
    if [[PurePosixPath(uri).name, size] for uri, size, _ in found] != about["files"]:
        raise UserError(
            f"the features in {table} are not those that this run began with: give the same "
            "table (train.features), or --fresh to start over"
        )
    return RowGroups(tuple(uri for uri, *_ in found), folder, file, about["digest"])


def join_captions(table: str, listing: Path, folder: RunFolder, options: Train) -> RowGroups:
    """Write the captions of the table's rows into `folder`, from the listing of the source."""
    if folder.exists(GROUPS):
        return open_row_groups(table, folder)
    files = parquet_files(table)
    with ThreadPoolExecutor(READERS) as pool:
        sizes = list(pool.map(lambda file: _rows_of_groups(file[0]), files))  # [files][groups]
    rows = [int(of_file.sum()) for of_file in sizes]
    rows_of_partition = max(ROWS_OF_PARTITION, -(-sum(rows) // MOST_PARTITIONS))
    partitions = max(1, -(-sum(rows) // rows_of_partition))
    counts = []
    with tempfile.TemporaryDirectory(prefix="raycap-join-") as scratch:
        listed = _Partitions(Path(scratch), "listed", partitions)
        with listed:
            rows_of_source = pa.ipc.open_file(pa.memory_map(str(listing))).read_all()
            for batch in rows_of_source.to_batches(BATCH):
                listed.add(pa.Table.from_batches([batch]), _by_key(batch["key"], partitions))
        keys = _Partitions(Path(scratch), "keys", partitions)
        with keys:
            first = 0
            for (uri, *_), of_file in zip(files, sizes, strict=True):
                for batch in _numbered_keys(uri, first):
                    keys.add(batch, _by_key(batch["key"], partitions))
                first += int(of_file.sum())

        # Whole files together, so that each caption file is written in one piece.
        starts = np.concatenate([[0], np.cumsum(rows)])
        ranges = starts[:-1] // rows_of_partition  # the range of each file
        ranges = np.unique(ranges, return_inverse=True)[1]
        joined = _Partitions(Path(scratch), "joined", int(ranges.max(initial=0)) + 1)
        with joined:
            for number in range(partitions):
                both = _join(listed.read(number), keys.read(number))
                file_of_row = np.searchsorted(starts, both["row"].to_numpy(), "right") - 1
                joined.add(both, ranges[file_of_row])

        for number in range(int(ranges.max(initial=0)) + 1):
            found = joined.read(number)
            for file in np.flatnonzero(ranges == number):
                captions = _rows_between(found, int(starts[file]), int(starts[file + 1]))
                folder.write(_caption_file(int(file)), _as_parquet(captions, sizes[file]))
                counts.append(_counts(captions, int(file), sizes[file], options))

    of_table = [[PurePosixPath(uri).name, size] for uri, size, _ in files]
    digest = hashlib.sha256(json.dumps([of_table, digest_of_file(listing)]).encode())
    about = {"files": of_table, "digest": digest.hexdigest()[:16]}
    table_of_groups = pa.table(
        list(np.concatenate(counts, axis=1)), names=list(_GROUP_COLUMNS)
    ).replace_schema_metadata({"raycap": json.dumps(about)})
    content = pa.BufferOutputStream()
    pq.write_table(table_of_groups, content)
    folder.write(GROUPS, content.getvalue())
    return open_row_groups(table, folder)


class _Partitions:
    """Tables on the local disk, cut into partitions. Rows are added within `with`."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._files = [folder / f"{name}-{number:05}" for number in range(count)]
        self._writers: dict[int, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._stack.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, rows: pa.Table, partition: NDArray[Any]) -> None:
        """Add rows; `partition` has that of each row."""
        order = np.argsort(partition, kind="stable")
        present, starts = np.unique(partition[order], return_index=True)
        for number, places in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
            if number not in self._writers:
                file = self._stack.enter_context(pa.OSFile(str(self._files[number]), "wb"))
                writer = pa.ipc.new_stream(file, rows.schema)
                self._writers[number] = self._stack.enter_context(writer)
            self._writers[number].write_table(rows.take(places))

    def read(self, number: int) -> pa.Table | None:
        """The rows of a partition; None if there are none."""
        if not self._files[number].exists():
            return None
        with pa.OSFile(str(self._files[number]), "rb") as file:
            return pa.ipc.open_stream(file).read_all()


def _by_key(keys: pa.Array | pa.ChunkedArray, partitions: int) -> NDArray[np.int64]:
    if partitions == 1:
        return np.zeros(len(keys), np.int64)
    texts = keys.to_pylist()
    return np.fromiter(
        (zlib.crc32(text.encode("utf-8", "surrogatepass")) % partitions for text in texts),
        np.int64,
        len(texts),
    )


def _rows_of_groups(uri: str) -> NDArray[np.int64]:
    with open_uri(uri) as file:
        metadata = pq.read_metadata(file)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MOST_BYTES_OF_GROUP:
        raise UserError(
            f"{uri} has row groups of {largest / 2**20:,.0f} MiB, which are too large to be "
            "streamed: make the features again with this version's `raycap extract`, or give "
            "--train.data local"
        )
    return np.array([group.num_rows for group in groups], np.int64)


def _numbered_keys(uri: str, first: int) -> Iterator[pa.Table]:
    """The keys of a file's successful rows with their numbers; the first row has `first`."""
    with open_uri(uri) as file:
        parquet = pq.ParquetFile(file)
        missing = {"key", "status"} - set(parquet.schema_arrow.names)
        if missing:
            raise UserError(f"{uri} lacks {', '.join(missing)}: make it with `raycap extract`")
        for batch in parquet.iter_batches(BATCH, columns=["key", "status"]):
            numbers = np.arange(first, first + len(batch))
            first += len(batch)
            rows = pa.table({"key": batch["key"], "row": pa.array(numbers, _ROW.type)})
            yield rows.filter(pc.equal(batch["status"], SUCCESS))


def _join(listed: pa.Table | None, keys: pa.Table | None) -> pa.Table:
    """Row number and CAPTION_COLUMNS of each key that is listed."""
    if listed is None or keys is None:
        return pa.schema([_ROW, *_CAPTIONS]).empty_table()
    places = pc.index_in(keys["key"], listed["key"].combine_chunks())
    known = places.is_valid()
    columns = listed.take(places.filter(known).combine_chunks()).columns
    numbers = keys["row"].filter(known)
    return pa.table([numbers, *columns], pa.schema([_ROW, *_CAPTIONS]))


def _rows_between(found: pa.Table | None, start: int, stop: int) -> pa.Table:
    """CAPTION_COLUMNS of the rows from `start` to `stop`; null for those that are not in
    `found`."""
    if found is None:
        found = pa.schema([_ROW, *_CAPTIONS]).empty_table()
    places = pc.index_in(pa.array(np.arange(start, stop)), found["row"].combine_chunks())
    return found.select(CAPTION_COLUMNS).take(places)


def _as_parquet(captions: pa.Table, sizes: NDArray[np.int64]) -> pa.Buffer:
    """A Parquet file with row groups of these sizes."""
    content, start = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(content, captions.schema, compression="zstd") as writer:
        for size in sizes.tolist():
            if size:
                writer.write_table(captions.slice(start, size), row_group_size=size)
            start += size
    return content.getvalue()


def _counts(
    captions: pa.Table, file: int, sizes: NDArray[np.int64], options: Train
) -> NDArray[np.int64]:
    """_GROUP_COLUMNS [6, n] of the row groups of a file, without empty ones."""
    training = usable(captions, options.training_splits)
    validation = usable(captions, (options.validation_split,))
    lengths = pc.list_value_length(captions["references"]).fill_null(0).to_numpy()
    group_of_row = np.repeat(np.arange(len(sizes)), sizes)

    def in_each(of_row: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(group_of_row, of_row, len(sizes)).astype(np.int64)

    groups = np.arange(len(sizes))
    counts = in_each(training), in_each(validation), in_each(lengths * training)
    return np.stack([np.full(len(sizes), file), groups, sizes, *counts])[:, sizes > 0]
