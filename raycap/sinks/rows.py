"""The rows of one part of a caption table, as Python values and as JSON."""

import base64
import datetime
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.row_filter import RowFilter
from raycap.schema import SUCCESS
from raycap.sinks.sink import SinkSettings

# A line of JSON has numbers and texts; attention maps stay in Parquet.
LEFT_OUT = ("attention",)

Row = dict[str, Any]


def rows_of(part: str, settings: SinkSettings) -> Iterator[Row]:
    """The rows of a part that are to be written, without the columns that stay in Parquet."""
    mask = chosen_mask(part, settings)
    start = 0
    with settings.folder.open(part) as file, pq.ParquetFile(file) as parquet:
        columns = [name for name in parquet.schema_arrow.names if name not in LEFT_OUT]
        for batch in parquet.iter_batches(batch_size=1000, columns=columns):
            chosen = batch
            if mask is not None:
                chosen = batch.filter(mask.slice(start, len(batch)))
            start += len(batch)
            values_of_columns = [_python_values(column) for column in chosen.columns]
            for values in zip(*values_of_columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def captioned_rows(part: str, settings: SinkSettings) -> Iterator[Row]:
    """The rows of a part that are to be written and have a caption."""
    return (row for row in rows_of(part, settings) if row["status"] == SUCCESS)


def chosen_mask(part: str, settings: SinkSettings) -> "pa.BooleanArray | None":
    """Which rows of a part --also-only chooses; None for all."""
    if not settings.only:
        return None
    schema = settings.folder.reading(part, pq.read_schema)
    only = RowFilter(settings.only, schema, option="--also-only")
    columns = list(only.columns)
    table = settings.folder.reading(part, lambda file: pq.read_table(file, columns=columns))
    return pa.array(only.mask(table))


def planned_table(part: str, settings: SinkSettings) -> pa.Table | None:
    """The rows of the plan that the rows to be written are made of."""
    if settings.planned is None:
        return None
    tables = settings.planned(settings.folder, part)
    planned = pa.concat_tables(tables, promote_options="default")
    mask = chosen_mask(part, settings)
    return planned if mask is None else planned.filter(mask)


def _python_values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, ArithmeticError):  # a date beyond those that Python knows
        return list(column.cast(pa.string()).to_pylist())


def json_line(row: Row) -> str:
    """A row as JSON, whatever the types of its carried columns."""
    fields = {name: as_json(value) for name, value in row.items()}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def as_json(value: Any) -> Any:
    """A value of any Arrow type as JSON has it: dates in ISO format, decimals as text so that they
    stay exact, durations in seconds, bytes in base64; NaN and infinity are null."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)  # a decimal, a UUID
