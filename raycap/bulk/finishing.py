"""Captions and flags of a finished table, made again without the model: when the options of
finishing or of the flags change, and for captions that many pictures have.

Every file of a table says in its metadata with which options its captions were finished. Files
that say something else are rewritten from their raw captions. These functions run in tasks; the
driver commits the files that they return.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.bulk.work import FINISHING
from raycap.finishing import FinishedCaption, Finishing
from raycap.schema import (
    CAPTIONS,
    CUT_OFF,
    FLAGS,
    NOT_SURE,
    SAME_AS_MANY,
    SUCCESS,
    UNFAMILIAR,
)
from raycap.storage import RunFolder

# Flags that are not found in the columns of a row: they stay.
_STAY = {CUT_OFF, UNFAMILIAR, NOT_SURE, SAME_AS_MANY}
# The smallest digests of so many pictures are kept for each caption, to count different pictures.
MOST_DIGESTS = 1024
FINISH_REASON = "finish_reason"
READ = ("caption", "raw_caption", "sha256", "status", "flags")


def with_finishing(table: pa.Table, finishing: Finishing) -> pa.Table:
    """The rows with captions and flags as this finishing makes them of the raw captions."""
    finished = [_finished(row, finishing) for row in _rows(table, (*READ, "score", FINISH_REASON))]
    names = table.column_names
    for name in ("caption", "raw_caption", "flags"):
        values = [getattr(each, name) for each in finished]
        table = _with_column(table, name, values)
    if "attempt" not in names:
        table = _with_column(table, "attempt", [0] * len(table))
    return table


def _finished(row: Mapping[str, Any], finishing: Finishing) -> FinishedCaption:
    if row["status"] != SUCCESS:
        return FinishedCaption("", None, [])
    own = [flag for flag in row["flags"] or () if flag in _STAY or flag not in FLAGS]
    return finishing.complete(raw_of(row), row["score"], row[FINISH_REASON] or "", own)


def raw_of(row: Mapping[str, Any]) -> str:
    """What the model wrote. Tables of earlier versions have no column for it."""
    raw = row["caption"] if row["raw_caption"] is None else row["raw_caption"]
    return str(raw or "")


def with_many(table: pa.Table, many: Collection[str]) -> pa.Table:
    """The rows with the flag same_as_many where their caption is one of these."""
    flags = []
    for row in _rows(table, READ):
        found = set(row["flags"] or ()) - {SAME_AS_MANY}
        if row["status"] == SUCCESS and caption_digest(raw_of(row)) in many:
            found.add(SAME_AS_MANY)
        flags.append(sorted(found))
    return _with_column(table, "flags", flags)


def caption_digest(raw: str) -> str:
    return hashlib.blake2b(raw.encode(), digest_size=12).hexdigest()


def _rows(table: pa.Table, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows with these columns, None where the table lacks one."""
    present = table.select([name for name in names if name in table.column_names])
    missing = dict.fromkeys(name for name in names if name not in table.column_names)
    for row in present.to_pylist():
        yield row | missing


def _with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = CAPTIONS.field(name)
    column = pa.array(values, field.type)
    place = table.schema.get_field_index(name)
    if place < 0:
        return table.append_column(field, column)
    return table.set_column(place, field, column)


def finishings_of_files(table: RunFolder, paths: Sequence[str]) -> list[str]:
    """For each file the digest of its finishing; "" for files of earlier versions."""
    found = []
    for path in paths:
        schema = table.reading(path, pq.read_schema)
        found.append((schema.metadata or {}).get(FINISHING.encode(), b"").decode())
    return found


@dataclass
class CommonCaptions:
    """The most common captions of any number of rows, in bounded memory: counts are too low by at
    most `error`, and captions that are not here are on at most `error` rows.

    This is the algorithm of Misra and Gries; two of these can be added.
    """

    most: int  # captions
    counts: Counter[str] = field(default_factory=Counter)
    error: int = 0
    rows: int = 0

    def add(self, other: "CommonCaptions") -> None:
        self.counts += other.counts
        self.error += other.error
        self.rows += other.rows
        if len(self.counts) > self.most:
            cut = heapq.nlargest(self.most + 1, self.counts.values())[-1]
            self.counts = Counter({key: n - cut for key, n in self.counts.items() if n > cut})
            self.error += cut


def common_captions(table: RunFolder, paths: Sequence[str], most: int) -> CommonCaptions:
    """The most common captions of some files; a picture counts once in each file."""
    found = CommonCaptions(most)
    for path in paths:
        pairs = _captioned(table, path).group_by(["raw", "sha256"]).aggregate([])
        counted = pairs["raw"].value_counts()
        numbers = counted.field("counts").to_numpy(zero_copy_only=False)
        cut = 0
        if len(numbers) > most:
            cut = int(np.partition(numbers, -most - 1)[-most - 1])
        kept = counted.filter(pa.array(numbers > cut))
        counts = Counter(
            {caption_digest(each["values"]): each["counts"] - cut for each in kept.to_pylist()}
        )
        found.add(CommonCaptions(most, counts, cut, len(pairs)))
    return found


def pictures_of_captions(
    table: RunFolder, paths: Sequence[str], captions: Collection[str]
) -> dict[str, set[int]]:
    """For each of these captions the smallest digests of the pictures that have it."""
    pictures: dict[str, set[int]] = {}
    for path in paths:
        rows = _captioned(table, path)
        distinct = {raw: caption_digest(raw) for raw in rows["raw"].unique().to_pylist()}
        wanted = [raw for raw, digest in distinct.items() if digest in captions]
        rows = rows.filter(pc.is_in(rows["raw"], pa.array(wanted, pa.string())))
        for row in rows.to_pylist():
            numbers = pictures.setdefault(distinct[row["raw"]], set())
            add_digests(numbers, {_picture_number(row["sha256"])})
    return pictures


def _picture_number(sha256: str | None) -> int:
    return int((sha256 or "0")[:15], 16)


def add_digests(digests: set[int], more: set[int]) -> None:
    digests |= more
    if len(digests) > 2 * MOST_DIGESTS:
        digests.intersection_update(heapq.nsmallest(MOST_DIGESTS, digests))


def different_pictures(digests: set[int]) -> float:
    """How many different digests there were: exactly, or estimated from the smallest ones."""
    if len(digests) <= MOST_DIGESTS:
        return len(digests)
    largest = heapq.nsmallest(MOST_DIGESTS, digests)[-1]
    return (MOST_DIGESTS - 1) * 16.0**15 / largest


def files_with_other_flags(
    table: RunFolder, paths: Sequence[str], many: Collection[str]
) -> list[str]:
    """Files in which the flag same_as_many is not where it belongs."""
    found = []
    for path in paths:
        rows = _captioned(table, path)
        flags = zip(rows["raw"].to_pylist(), rows["flags"].to_pylist(), strict=True)
        digests = {raw: caption_digest(raw) for raw in rows["raw"].unique().to_pylist()}
        if any((digests[raw] in many) != (SAME_AS_MANY in (has or ())) for raw, has in flags):
            found.append(path)
    return found


def _captioned(table: RunFolder, path: str) -> pa.Table:
    """The columns raw, sha256 and flags of the rows that have a caption. `raw` is what the model
    wrote."""

    def read(file: Any) -> pa.Table:
        parquet = pq.ParquetFile(file)
        names = [name for name in READ if name in parquet.schema_arrow.names]
        return parquet.read(columns=names)

    rows = table.reading(path, read)
    rows = rows.filter(pc.equal(rows["status"], SUCCESS))
    raw = rows["caption"]
    if "raw_caption" in rows.column_names:
        raw = pc.coalesce(rows["raw_caption"], raw)
    flags = rows["flags"] if "flags" in rows.column_names else pa.nulls(len(rows))
    columns = {"raw": pc.fill_null(raw, ""), "sha256": rows["sha256"], "flags": flags}
    return pa.table(columns)
