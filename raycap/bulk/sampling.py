"""Draws a few rows of a whole source, for --estimate, and counts its rows, and how many of them a
table holds already, if that takes not too long."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import as_planned
from raycap.bulk.selection import chosen_rows, chosen_units
from raycap.bulk.taken_keys import TakenKeys
from raycap.sources import Notes, Source

# A source is listed for so long. What is not listed then is extrapolated.
SECONDS_TO_LIST = 60.0


@dataclass(frozen=True)
class DrawnRows:
    """Some rows of a source, and how many it has."""

    rows: pa.Table  # of a plan
    total: int
    held: int  # of the total: rows that the table has already
    is_exact: bool
    how: str  # how the total is known, for people


def draw_rows(
    source: Source,
    options: BulkOptions,
    count: int,
    taken: TakenKeys,
    seconds: float = SECONDS_TO_LIST,
) -> DrawnRows:
    """The rows whose keys have the smallest digests, of all that are listed in time. Parts of the
    source are listed in the order of their digests, so that the first ones are as good as any.
    `taken` are the keys of the table."""
    units = sorted(chosen_units(source, options), key=_digest)
    began = time.monotonic()
    drawn: pa.Table | None = None
    numbers = np.zeros(0, np.uint64)
    listed, held, whole_units, is_late = 0, 0, 0, False
    for unit in units:
        notes = Notes()
        for table in chosen_rows(source, options, notes, unit if len(units) > 1 else None):
            listed += len(table)
            held += len(table) - sum(taken.lacks(table["key"]).to_pylist())
            fresh = np.array([_digest(key) for key in table["key"].to_pylist()], np.uint64)
            limit = numbers.max() if len(numbers) == count else np.iinfo(np.uint64).max
            places = np.flatnonzero(fresh <= limit)
            some = as_planned(table).take(pa.array(places))
            drawn = some if drawn is None else pa.concat_tables([drawn, some])
            numbers = np.concatenate([numbers, fresh[places]])
            order = np.argsort(numbers, kind="stable")[:count]
            drawn, numbers = drawn.take(pa.array(order)), numbers[order]
            is_late = time.monotonic() - began > seconds
            if is_late:
                break
        else:
            whole_units += 1
            continue
        break
    rows = drawn if drawn is not None else as_planned(pa.table([]))
    if whole_units == len(units):
        return DrawnRows(rows, listed, held, True, "all of them are listed")
    if whole_units:
        total = round(listed / (whole_units + 0.5) * len(units))
        how = f"{whole_units:,} of {len(units):,} parts of the source were listed in {seconds:g} s"
        return DrawnRows(rows, total, round(total * held / max(1, listed)), False, how)
    how = f"the first {listed:,} were listed in {seconds:g} s, and how many follow is not known"
    return DrawnRows(rows, listed, held, False, how)


def _digest(text: str) -> int:
    data = text.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(data, digest_size=8, person=b"estimate").digest()
    return int.from_bytes(digest, "big")
