"""What training learns from, as tables: encoded pictures, or their pixels if the encoder itself is
to learn."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap import __version__
from raycap.bulk.job import TableJob, reading_identity, source_identity
from raycap.bulk.options import BulkOptions, ExtractOptions
from raycap.bulk.picture_column import PIXELS, pictures_of
from raycap.bulk.work import FileLayout, FindRows
from raycap.captioners.trained.folder import digest_of
from raycap.captioners.trained.lanes import Mark, lanes_of
from raycap.cluster import Cluster
from raycap.device import choose_precision
from raycap.encoders import ENCODERS, EncoderOptions
from raycap.encoders.encoder import Encoder
from raycap.fetch import Fetch
from raycap.images import Reading, Square
from raycap.images.augmentation import Augmentation, augment, draws_of, names_sides
from raycap.options import to_plain
from raycap.schema import (
    FEATURES_FORMAT,
    SUCCESS,
    features_schema,
    tensor_column,
    tensor_field,
    tensor_shape,
)
from raycap.sources import Source

# Of a row group: its tensors, before they are compressed, and its rows.
BYTES_OF_GROUP = 16 * 2**20
FEWEST_IN_GROUP, MOST_IN_GROUP = 16, 1024


class AugmentedView(NamedTuple):
    """One way in which pictures are changed before they are encoded: by these options, drawn with
    this number."""

    options: Augmentation
    number: int

    def identity(self) -> dict[str, Any]:
        """What determines what the view shows."""
        return {"crop": self.options.crop, "flip": self.options.flip, "number": self.number}


def features_job(
    encoder_options: EncoderOptions,
    encoder: Encoder,
    source: Source,
    options: ExtractOptions,
    fetch: Fetch,
    reading: Reading,
    cluster: Cluster,
    view: AugmentedView | None = None,
) -> TableJob:
    """A grid and a vector for each picture, as it is or in a changed view."""
    encoder.check_precision(options.precision)
    sha256 = digest_of(encoder)
    schema = features_schema(encoder.positions, encoder.width, options.int8)
    identity: dict[str, Any] = {
        "format": FEATURES_FORMAT,
        "source": source_identity(source, options.split),
        "reading": reading_identity(reading),
        "encoder": to_plain(encoder_options, ENCODERS),
        "encoder_sha256": sha256,
    }
    if options.int8:
        identity["int8"] = True
    if view is not None:
        identity["view"] = view.identity()
    return TableJob(
        command="extract",
        table="features",
        source=source,
        options=options,
        fetch=fetch,
        reading=reading,
        cluster=cluster,
        identity=identity,
        layout=FileLayout(
            rows=options.part_rows,
            schema=schema,
            carry=(),
            metadata={"raycap": __version__, "encoder_sha256": sha256},
            group_rows=rows_of_group(schema),
        ),
        intake=square_of(encoder),
        open_model=functools.partial(_open_encoder, encoder, view),
        holds_model=True,
        runs_model=True,
    )


def pixels_job(
    encoder: Encoder,
    source: Source,
    options: ExtractOptions,
    fetch: Fetch,
    reading: Reading,
    cluster: Cluster,
) -> TableJob:
    """Each picture as it enters the encoder: read and resized once, for all epochs."""
    square = square_of(encoder)
    return TableJob(
        command="extract",
        table="pixels",
        source=source,
        options=options,
        fetch=fetch,
        reading=reading,
        cluster=cluster,
        identity={
            "format": FEATURES_FORMAT,
            "source": source_identity(source, options.split),
            "reading": reading_identity(reading),
            "square": dataclasses.asdict(square),
        },
        layout=FileLayout(
            rows=options.part_rows,
            schema=pixels_schema(square.size),
            carry=(),
            metadata={"raycap": __version__},
            group_rows=rows_of_group(pixels_schema(square.size)),
        ),
        intake=square,
        open_model=_pixel_rows,
    )


def rows_of_group(schema: pa.Schema) -> int:
    """The rows of a row group. Training may read a table by the row group, in random order."""
    shapes = [
        (tensor_shape(field), np.dtype(field.metadata[b"dtype"].decode()))
        for field in schema
        if tensor_shape(field)
    ]
    return group_rows(sum(math.prod(shape or ()) * dtype.itemsize for shape, dtype in shapes))


def group_rows(bytes_of_row: int) -> int:
    """The rows of a row group whose rows have so many bytes."""
    return max(FEWEST_IN_GROUP, min(BYTES_OF_GROUP // bytes_of_row, MOST_IN_GROUP))


def pixels_schema(size: int) -> pa.Schema:
    """One picture's pixels [S, S, 3], red, green, blue."""
    names = ("key", "status", "error_message")
    features = features_schema(1, 1)
    pixels = tensor_field("pixels", "uint8", (size, size, 3))
    return pa.schema([*(features.field(name) for name in names), pixels])


def _pixel_rows(_options: BulkOptions, _threads: int) -> Callable[[pa.Table], pa.Table]:
    def rows(table: pa.Table) -> pa.Table:
        pixels = tensor_column(table["pixels"].combine_chunks().to_numpy_ndarray())
        return table.drop_columns(["pixels"]).append_column("pixels", pixels)

    return rows


def _open_encoder(
    encoder: Encoder, view: AugmentedView | None, options: ExtractOptions, threads: int
) -> "EncodeWorker":
    return EncodeWorker(encoder, threads, options, view)


def square_of(encoder: Encoder) -> Square:
    """The shape of the pictures that the encoder takes."""
    return Square(encoder.size, encoder.resize, encoder.interpolation)


class EncodeWorker:
    """Loaded pictures in; out the same rows with grids and vectors instead of pixels."""

    def __init__(
        self,
        encoder: Encoder,
        threads: int,
        options: ExtractOptions,
        view: AugmentedView | None,
    ) -> None:
        torch.set_num_threads(threads)  # Ray gives an actor one
        precision = choose_precision(options.device, options.precision)
        self._encode = encoder.for_inference(precision)
        self._batch, self._int8, self._view = options.batch_size, options.int8, view
        self._lanes = lanes_of(precision.device, self._batch)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.begin(table)()()

    @property
    def batches_ahead(self) -> int:
        return self._lanes.ahead

    def begin(self, table: pa.Table) -> FindRows:
        """Begin to encode. The last step, in any thread, makes the columns."""
        readable = np.flatnonzero(table["status"].to_numpy() == SUCCESS)
        parts = [
            (rows, self._features(table, rows))
            for start in range(0, len(readable), self._batch)
            for rows in [readable[start : start + self._batch]]
        ]
        table = table.drop_columns([PIXELS])

        def give_rows() -> pa.Table:
            grids = np.zeros((len(table), self._encode.positions, self._encode.width), np.float16)
            vectors = np.zeros((len(table), self._encode.width), np.float16)
            for rows, (grid, vector, is_done) in parts:
                is_done.wait()
                grids[rows] = grid[: len(rows)].numpy()
                vectors[rows] = vector[: len(rows)].numpy()
            return self._with_features(table, grids, vectors)

        return lambda: give_rows

    def _features(self, table: pa.Table, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor, Mark]:
        """Grids and vectors in host memory, and when they are there. Black pictures fill up the
        batch: arithmetic rounds by its size, and with one size a picture's features do not depend
        on its neighbours."""
        pictures = pictures_of(table[PIXELS], rows.tolist())
        with torch.inference_mode():
            if self._view is not None:
                pictures = self._changed(pictures, table.take(rows), self._view)
            with self._lanes.encoding(pictures, self._batch) as pixels:
                grid, vector = (
                    self._lanes.to_host(part.to(torch.float16)) for part in self._encode(pixels)
                )
                return grid, vector, self._lanes.mark()

    @staticmethod
    def _changed(
        pictures: list[NDArray[np.uint8]], rows: pa.Table, view: AugmentedView
    ) -> list[NDArray[np.uint8]]:
        squares = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        draws = draws_of(rows["key"].to_pylist(), view.number)
        sides = names_sides(rows["references"].to_pylist())
        changed = augment(squares, view.options, draws, sides)
        return list(changed.permute(0, 2, 3, 1).numpy())

    def _with_features(
        self, table: pa.Table, grids: NDArray[np.float16], vectors: NDArray[np.float16]
    ) -> pa.Table:
        columns: dict[str, NDArray[Any]] = {"grid": grids, "vector": vectors}
        if self._int8:
            columns["grid"], columns["scale"] = in_int8(grids)
        for name, column in columns.items():
            table = table.append_column(name, tensor_column(column))
        return table


def in_int8(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grids [R, P, D] in 8 bits, and the scales [R, D] by which each channel is to be
    multiplied."""
    scales = (np.abs(grids).max(1) / 127).astype(np.float16)
    divisors = scales[:, None]  # [R, 1, D]
    steps = np.zeros(grids.shape, np.float32)
    np.divide(grids, divisors, out=steps, where=divisors > 0)
    return steps.round().clip(-127, 127).astype(np.int8), scales
