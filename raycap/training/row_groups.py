"""The row groups of a feature table, and the captions of their rows, for a run that streams them.

The table holds no captions: they come from the source. Before a streamed run starts, both are
joined, so that the captions of a row can be read together with it:

    features/part-0001-000007.parquet     row groups of 80 pictures, made by `raycap extract`
    run/rows/000007.parquet               key, split and references of the same rows, in row groups
                                          of the same sizes
    run/rows/groups.parquet               how many pictures to learn from each row group has;
                                          written last
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.schema import SUCCESS
from raycap.storage import RunFolder, memory, open_uri
from raycap.training.caption_join import (
    CAPTIONS,
    KEYS_AT_ONCE,
    CaptionsOfRange,
    captions_by_row,
    numbered,
    rows_of_partition,
)
from raycap.training.options import Train
from raycap.training.store import digest_of_file, parquet_files, usable

ROWS, GROUPS = "rows", "groups.parquet"
READERS = 16
ROWS_AT_ONCE = 1_000
# Larger row groups, as tables of earlier versions have them, would fill the memory.
MOST_BYTES_OF_GROUP = 256 * 2**20

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
        """CAPTION_COLUMNS of all rows of the table, some at a time. Those of a row that failed, or
        that the source does not have, are null."""
        for file in range(len(self.files)):
            content = self.folder.read(_caption_file(file))
            if content is None:
                raise UserError(
                    f"{self.folder / _caption_file(file)} is missing, the captions of "
                    f"{self.files[file]}: give --fresh to start over"
                )
            parquet = pq.ParquetFile(pa.BufferReader(content))
            for batch in parquet.iter_batches(ROWS_AT_ONCE, use_threads=False):
                yield pa.Table.from_batches([batch])
            memory.give_back()


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


@memory.held_briefly()
def join_captions(table: str, listing: Path, folder: RunFolder, options: Train) -> RowGroups:
    """Write the captions of the table's rows into `folder`, from the listing of the source."""
    if folder.exists(GROUPS):
        return open_row_groups(table, folder)
    files = parquet_files(table)
    with ThreadPoolExecutor(READERS) as pool:
        sizes = list(pool.map(lambda file: _rows_of_groups(file[0]), files))  # [files][groups]
    starts = np.concatenate([[0], np.cumsum([of_file.sum() for of_file in sizes])])
    rows = int(starts[-1])

    def keys() -> Iterator[pa.Table]:
        for (uri, *_), first in zip(files, starts.tolist(), strict=False):
            yield from _numbered_keys(uri, first)

    # Ranges of whole files, so that each caption file is written in one piece.
    range_of_file = starts[:-1] // rows_of_partition(rows)
    firsts = np.unique(range_of_file, return_index=True)[1]
    first_rows = starts[firsts].tolist()
    counts = []
    for number, found in enumerate(captions_by_row(listing, keys(), rows, first_rows)):
        for file in np.split(np.arange(len(files)), firsts[1:])[number].tolist():
            first = int(starts[file])
            counts.append(_write_captions(found, file, first, sizes[file], folder, options))

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
        for batch in parquet.iter_batches(
            KEYS_AT_ONCE, columns=["key", "status"], use_threads=False
        ):
            yield numbered(batch["key"], first).filter(pc.equal(batch["status"], SUCCESS))
            first += len(batch)


def _write_captions(
    found: CaptionsOfRange,
    file: int,
    first: int,
    sizes: NDArray[np.int64],
    folder: RunFolder,
    options: Train,
) -> NDArray[np.int64]:
    """Write the captions of a feature file, whose first row is `first`, in row groups of the same
    sizes. Returns _GROUP_COLUMNS [6, n] of these row groups, without empty ones."""
    content, counts = pa.BufferOutputStream(), []
    with pq.ParquetWriter(content, CAPTIONS, compression="zstd") as writer:
        for group, size in enumerate(sizes.tolist()):
            if not size:
                continue
            captions = found.between(first, first + size)
            writer.write_table(captions, row_group_size=size)
            training = usable(captions, options.training_splits)
            validation = usable(captions, (options.validation_split,))
            lengths = pc.list_value_length(captions["references"]).fill_null(0).to_numpy()
            learned = training.sum(), validation.sum(), lengths[training].sum()
            counts.append((file, group, size, *learned))
            first += size
    folder.write(_caption_file(file), content.getvalue())
    return np.array(counts, np.int64).reshape(-1, len(_GROUP_COLUMNS)).T
