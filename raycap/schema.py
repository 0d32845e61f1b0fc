"""The Arrow schemas of all tables, and `fit`, which casts a table to its schema before it is
written."""

from collections.abc import Sequence

import pyarrow as pa

from raycap.errors import UserError

# The status of a row. Errors are strings, "" for none: a column of nulls would break Parquet
# later.
SUCCESS = "success"
FAILED_TO_FETCH = "failed_to_fetch"
FAILED_TO_DECODE = "failed_to_decode"
FAILED_TO_CAPTION = "failed_to_caption"
FAILURES = (FAILED_TO_FETCH, FAILED_TO_DECODE, FAILED_TO_CAPTION)

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


# Of feature and pixel tables. Format 1 held splits and captions too.
FEATURES_FORMAT = 2


def features_schema(positions: int, width: int, int8: bool = False) -> pa.Schema:
    """One encoded picture: a float16 grid [P, D] and the global vector [D] beside it. In int8 the
    grid has a scale [D], by which its channels are to be multiplied."""
    vector = pa.fixed_shape_tensor(pa.float16(), (width,))
    return pa.schema(
        [
            ("key", pa.string()),
            (
                "grid",
                pa.fixed_shape_tensor(pa.int8() if int8 else pa.float16(), (positions, width)),
            ),
            *([("scale", vector)] if int8 else []),
            ("vector", vector),
            ("status", pa.string()),
            ("error_message", pa.string()),
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


def fit(table: pa.Table, schema: pa.Schema, carry: Sequence[str] = ()) -> pa.Table:
    """Select and cast `table` to `schema`, with the user's own columns named by `carry` behind
    it."""
    missing = [name for name in (*schema.names, *carry) if name not in table.column_names]
    if missing:
        raise UserError(
            f"the table lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(table.column_names)}"
        )
    fields = [*schema, *(table.schema.field(name) for name in carry if name not in schema.names)]
    return table.select([field.name for field in fields]).cast(pa.schema(fields))
