"""The captions that a source has for the rows of a table, found by their keys.

Both sides are first cut into partitions by the key, on the local disk. Each partition is joined by
itself, and what is found is cut into ranges of rows. So the join needs the same memory for any
number of rows up to 2.5 million. With more rows, partitions and ranges grow.
"""

import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.schema import MANIFEST
from raycap.storage import memory
from raycap.storage.files import in_temporary_files

CAPTION_COLUMNS = ["key", "split", "references"]
CAPTIONS = pa.schema([MANIFEST.field(name) for name in CAPTION_COLUMNS])
ROWS_OF_PARTITION = 5_000
MOST_PARTITIONS = 500  # each is an open file
KEYS_AT_ONCE = 5_000
ROWS_AT_ONCE = 5_000  # are cut together

_ROW = pa.field("row", pa.int64())  # of the whole table
_KEYS = pa.schema([MANIFEST.field("key"), _ROW])
_JOINED = pa.schema([_ROW, *CAPTIONS])


@dataclass(frozen=True)
class CaptionsOfRange:
    """The captions of consecutive rows of a table, as far as the source has them."""

    captions: pa.Table  # CAPTION_COLUMNS, in any order
    rows: NDArray[np.int64]  # of `captions`, ascending
    places: NDArray[np.int64]  # of the same rows in `captions`

    def between(self, start: int, stop: int) -> pa.Table:
        """CAPTION_COLUMNS of the table's rows from `start` to `stop`; null for those that the
        source does not have."""
        wanted = np.arange(start, stop)
        first, last = np.searchsorted(self.rows, [start, stop])
        known = self.rows[first:last] - start
        places = np.zeros(len(wanted), np.int64)
        places[known] = self.places[first:last]
        is_missing = np.ones(len(wanted), bool)
        is_missing[known] = False
        return self.captions.take(pa.array(places, mask=is_missing))


def rows_of_partition(rows: int) -> int:
    """How many rows a partition has, of a table with so many."""
    return max(ROWS_OF_PARTITION, -(-rows // MOST_PARTITIONS))


def numbered(keys: pa.ChunkedArray | pa.Array, first: int) -> pa.Table:
    """Keys with the numbers of their rows, of which the first one has `first`."""
    return pa.table([keys, pa.array(np.arange(first, first + len(keys)))], _KEYS)


def captions_by_row(
    listing: Path, keys: Iterable[pa.Table], rows: int, starts: Sequence[int]
) -> Iterator[CaptionsOfRange]:
    """The captions of a table of so many rows: for each range of rows that begins in `starts`,
    from the listing of the source. `keys` has the keys of the table, `numbered`."""
    partitions = max(1, -(-rows // rows_of_partition(rows)))
    with tempfile.TemporaryDirectory(prefix="raycap-join-") as folder:
        listed = _Partitions(Path(folder), "listed", partitions)
        with listed, pa.memory_map(str(listing)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                batch = pa.Table.from_batches([reader.get_batch(number)])
                listed.add(batch, _by_key(batch["key"], partitions))
        wanted = _Partitions(Path(folder), "wanted", partitions)
        with wanted:
            for some in keys:
                wanted.add(some, _by_key(some["key"], partitions))
        joined = _Partitions(Path(folder), "joined", len(starts))
        with joined:
            for number in range(partitions):
                found = _join(listed.pop(number), wanted.pop(number))
                ranges = np.searchsorted(starts, found["row"].to_numpy(), "right") - 1
                joined.add(found, ranges)
        for number in range(len(starts)):
            yield _as_range(joined.pop(number))
            memory.give_back()


class _Partitions:
    """Tables on the local disk, cut into partitions. Rows are added within `with`."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._files = [folder / f"{name}-{number:05}" for number in range(count)]
        self._writers: dict[int, Any] = {}
        self._stack = ExitStack()
        self._waiting: list[tuple[pa.Table, NDArray[np.int64]]] = []

    def __enter__(self) -> None:
        self._stack.__enter__()

    def __exit__(self, *error: Any) -> None:
        with in_temporary_files():
            try:
                if error == (None, None, None):
                    self._cut()
            finally:
                self._stack.__exit__(*error)
        self._writers.clear()

    def add(self, rows: pa.Table, partition: NDArray[np.int64]) -> None:
        """Add rows; `partition` has that of each row."""
        self._waiting.append((rows, partition))
        if sum(len(own) for own, _ in self._waiting) >= ROWS_AT_ONCE:
            with in_temporary_files():
                self._cut()

    def _cut(self) -> None:
        if not self._waiting:
            return
        partition = np.concatenate([own for _, own in self._waiting])
        order = np.argsort(partition, kind="stable")
        rows = pa.concat_tables([own for own, _ in self._waiting]).take(pa.array(order))
        self._waiting.clear()
        present, starts = np.unique(partition[order], return_index=True)
        stops = [*starts[1:].tolist(), len(rows)]
        for number, start, stop in zip(present.tolist(), starts.tolist(), stops, strict=True):
            if number not in self._writers:
                file = self._stack.enter_context(pa.OSFile(str(self._files[number]), "wb"))
                writer = pa.ipc.new_stream(file, rows.schema)
                self._writers[number] = self._stack.enter_context(writer)
            self._writers[number].write_table(rows.slice(start, stop - start))
        del rows
        memory.give_back()

    def pop(self, number: int) -> pa.Table | None:
        """The rows of a partition, which is removed; None if there are none."""
        file = self._files[number]
        if not file.exists():
            return None
        rows = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        file.unlink()  # its space is free when the rows are dropped
        return rows


def _by_key(keys: pa.Array | pa.ChunkedArray, partitions: int) -> NDArray[np.int64]:
    if partitions == 1:
        return np.zeros(len(keys), np.int64)
    texts = keys.to_pylist()
    return np.fromiter(
        (zlib.crc32(text.encode("utf-8", "surrogatepass")) % partitions for text in texts),
        np.int64,
        len(texts),
    )


def _join(listed: pa.Table | None, wanted: pa.Table | None) -> pa.Table:
    """Row number and CAPTION_COLUMNS of each key that is listed."""
    if listed is None or wanted is None:
        return _JOINED.empty_table()
    listed = listed.combine_chunks()
    places = pc.index_in(wanted["key"], listed["key"].combine_chunks()).combine_chunks()
    known = places.is_valid()
    columns = listed.take(places.filter(known)).columns
    return pa.table([wanted["row"].filter(known), *columns], _JOINED)


def _as_range(joined: pa.Table | None) -> CaptionsOfRange:
    joined = _JOINED.empty_table() if joined is None else joined.combine_chunks()
    rows = joined["row"].to_numpy()
    places = np.argsort(rows, kind="stable")
    return CaptionsOfRange(joined.select(CAPTION_COLUMNS), rows[places], places)
