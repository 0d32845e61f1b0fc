"""Pictures as they were fetched, on their way from the process that fetches to one that
decodes."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from raycap.fetch import Fetched

BODIES = pa.schema(
    [
        ("id", pa.int64()),
        ("bytes", pa.large_binary()),
        ("error", pa.string()),
        ("requests", pa.int32()),
        ("seconds", pa.float64()),
    ]
)


def pack(ids: Sequence[int], fetched: Sequence[Fetched]) -> pa.Table:
    columns = [
        ids,
        [each.data for each in fetched],
        [each.error for each in fetched],
        [each.requests for each in fetched],
        [each.seconds for each in fetched],
    ]
    return pa.table(columns, schema=BODIES)


def unpack(bodies: pa.Table) -> Iterator[Fetched]:
    """One at a time: Arrow's bytes become Python's when it is their turn."""
    for data, error, requests, seconds in zip(*map(bodies.column, BODIES.names[1:]), strict=True):
        yield Fetched(data.as_py(), error.as_py(), requests.as_py(), seconds.as_py())
