"""The Arrow schemas of all tables, and `fit`, which casts a table to its schema before it is
written."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raycap.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The status of a row. Errors are strings, "" for none: a column of nulls would break Parquet
# later.
SUCCESS = "success"
FAILED_TO_FETCH = "failed_to_fetch"
FAILED_TO_DECODE = "failed_to_decode"
FAILED_TO_CAPTION = "failed_to_caption"
FAILURES = (FAILED_TO_FETCH, FAILED_TO_DECODE, FAILED_TO_CAPTION)

# A column that a row has while it is captioned again by `--retry flagged`: which attempt it is,
# 1, 2, ... Another attempt draws other words.
ATTEMPT = "raycap.attempt"

# What may be wrong with the caption of a row whose status is success: the words of the column
# `flags`. A captioner may add words of its own.
CUT_OFF = "cut_off"  # the length limit was reached
REPEATS = "repeats"  # words or sentences again and again
REFUSAL = "refusal"
EMPTY = "empty"
ECHO = "echo"  # of the prompt
SAME_AS_MANY = "same_as_many"  # many different pictures have this caption
LOW_SCORE = "low_score"
WRONG_LANGUAGE = "wrong_language"
THINKING = "thinking"  # the model's reasoning was in the answer, and was cut out
UNFAMILIAR = "unfamiliar"  # pictures unlike those of the training, said by the captioner
NOT_SURE = "not_sure"  # the caption is likely wrong, said by the captioner
FLAGS = (
    CUT_OFF,
    REPEATS,
    REFUSAL,
    EMPTY,
    ECHO,
    SAME_AS_MANY,
    LOW_SCORE,
    WRONG_LANGUAGE,
    THINKING,
    UNFAMILIAR,
    NOT_SURE,
)
# In the place of a flag: any of them.
ANY_FLAG = "*"

MANIFEST = pa.schema(
    [
        ("key", pa.string()),  # stable between runs, unique in the source
        ("uri", pa.string()),  # where the bytes are: a path, an fsspec URI or a URL
        ("split", pa.string()),  # "" where the source has none
        ("references", pa.list_(pa.string())),  # human captions, [] for none
        ("bytes", pa.large_binary()),  # inline picture, null where `uri` is to be read
        # Why the source knows that the row cannot be fetched; "" for a usable row.
        ("error", pa.string()),
    ]
)


# Of feature and pixel tables. Format 1 held splits and captions too, format 2 Arrow's tensors.
FEATURES_FORMAT = 3


def features_schema(positions: int, width: int, int8: bool = False) -> pa.Schema:
    """One encoded picture: a float16 grid [P, D] and the global vector [D] beside it. In int8 the
    grid has a scale [D], by which its channels are to be multiplied."""
    return pa.schema(
        [
            ("key", pa.string()),
            tensor_field("grid", "int8" if int8 else "float16", (positions, width)),
            *([tensor_field("scale", "float16", (width,))] if int8 else []),
            tensor_field("vector", "float16", (width,)),
            ("status", pa.string()),
            ("error_message", pa.string()),
        ]
    )


# The pictures that a model is fine-tuned on, in the sizes in which it takes them.
FITTED_PICTURES = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("sha256", pa.string()),  # of the picture's file
        ("pixels", pa.large_binary()),  # [H, W, 3], red, green, blue
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)


CAPTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("score", pa.float32()),  # length-normalised log-probability
        ("alternatives", pa.list_(pa.struct([("caption", pa.string()), ("score", pa.float32())]))),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),  # as a viewer shows the picture, 0 where it could not be read
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the picture's bytes, "" where they could not be fetched
        ("flags", pa.list_(pa.string())),  # what may be wrong with the caption, sorted
        ("raw_caption", pa.string()),  # what the model wrote; null where the caption is just that
        ("attempt", pa.int32()),  # which attempt it is, with --retry flagged; the first one is 0
    ]
)

# Behind those, where asked for: how well the captioner predicts the picture's own captions, word
# by word, given the true words before. Null where it did not see the picture.
TRUE_WORDS = pa.schema(
    [
        ("true_surprise", pa.float64()),  # cross-entropy in nats, summed over the words
        ("true_right", pa.int64()),  # words that it thought the likeliest
        ("true_count", pa.int64()),  # words, with the end of each caption
    ]
)


# Delta tables have no arrays of fixed shape and no float16: arrays are bytes, row by row, and the
# column says how to read them.


def tensor_field(name: str, dtype: str, shape: Sequence[int]) -> pa.Field:
    """A column of arrays of one shape."""
    about = {"dtype": dtype, "shape": json.dumps(list(shape))}
    return pa.field(name, pa.large_binary(), metadata=about)


def tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """The shape of the arrays in a column; None if it holds none."""
    about = field.metadata or {}
    return tuple(json.loads(about[b"shape"])) if b"shape" in about else None


def tensor_column(arrays: "NDArray[Any]") -> pa.Array:
    """Arrays [R, ...] as the values of a tensor column."""
    rows = np.ascontiguousarray(arrays)
    size = rows.nbytes // max(len(rows), 1)
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * size
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
    return pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)


def tensors_of(table: pa.Table, name: str) -> "NDArray[Any]":
    """The arrays [R, ...] of a tensor column."""
    field = table.schema.field(name)
    shape, dtype = tensor_shape(field) or (), np.dtype(field.metadata[b"dtype"].decode())
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # without any chunk
        return np.zeros((0, *shape), dtype)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset :][: len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    arrays: NDArray[Any] = data.view(dtype).reshape(len(column), *shape)
    return arrays


def storable(kind: pa.DataType) -> pa.DataType | None:
    """The type in which a Delta table holds values of this type; None if it holds none such."""
    types = pa.types
    if types.is_dictionary(kind):
        return storable(kind.value_type)
    if types.is_unsigned_integer(kind):
        wider = {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20)}
        return wider[kind.bit_width]
    if types.is_float16(kind):
        return pa.float32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_date(kind):
        return pa.date32()
    if types.is_null(kind) or types.is_large_string(kind) or kind == pa.string_view():
        return pa.string()
    if types.is_fixed_size_binary(kind) or kind == pa.binary_view():
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        value = storable(kind.value_type)
        return None if value is None else pa.list_(value)
    if types.is_struct(kind):
        fields = [(field.name, storable(field.type)) for field in kind]
        return None if any(value is None for _, value in fields) else pa.struct(fields)
    if types.is_map(kind):
        key, item = storable(kind.key_type), storable(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    is_plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    is_bytes = types.is_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    return kind if is_plain or is_bytes or types.is_decimal128(kind) else None


def fit(table: pa.Table, schema: pa.Schema, carry: Sequence[str] = ()) -> pa.Table:
    """Select and cast `table` to `schema`, with the user's own columns named by `carry` behind
    it."""
    missing = [name for name in (*schema.names, *carry) if name not in table.column_names]
    if missing:
        raise UserError(
            f"the table lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(table.column_names)}"
        )
    fields = [*schema]
    for name in carry:
        if name not in schema.names:
            kind = storable(table.schema.field(name).type)
            if kind is None:
                raise UserError(
                    f"column {name} holds {table.schema.field(name).type}, which the output "
                    "table cannot hold: leave it out, or make it text first"
                )
            fields.append(pa.field(name, kind))
    columns = []
    for field in fields:
        # Tables have microseconds: what is finer is cut off.
        exact = not pa.types.is_timestamp(field.type)
        columns.append(table[field.name].cast(field.type, safe=exact))
    return pa.table(columns, pa.schema(fields))
