"""What training looks at, as tables: encoded pictures, or their pixels where the encoder itself is to learn."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from raycap import __version__
from raycap.bulk.options import Extract
from raycap.bulk.publish import Parts
from raycap.bulk.shape import on_actors, pictures, shape
from raycap.bulk.todo import Todo
from raycap.bulk.work import Work, reading_identity, source_identity
from raycap.captioners.trained.folder import digest_of
from raycap.cluster.nodes import add_maker
from raycap.config import Config, part_to_plain
from raycap.device import derive
from raycap.encoders.encoder import Encoder
from raycap.images import Square
from raycap.schema import SUCCESS, features_schema
from raycap.sources import Source
from raycap.training import Augmentation
from raycap.training.augmentation import augment, draws_of, names_sides


class Change(NamedTuple):
    """How pictures are changed before they are encoded: by these options, in the way of this number."""

    options: Augmentation
    number: int

    def identity(self) -> dict[str, Any]:
        """What decides what it shows."""
        return {"crop": self.options.crop, "flip": self.options.flip, "number": self.number}


def features_work(
    config: Config, source: Source, encoder: Encoder, change: Change | None = None
) -> Work:
    """A grid and a vector for each picture, as it is or changed."""
    options, sha256 = config.extract, digest_of(encoder)
    return Work(
        act="extract",
        table="features",
        config=config,
        source=source,
        options=options,
        identity={
            **_seen(config, source),
            "encoder": part_to_plain("encoder", config.encoder),
            "encoder_sha256": sha256,
            **({"int8": True} if options.int8 else {}),
            **({"view": change.identity()} if change else {}),
        },
        parts=Parts(
            rows=options.part_rows,
            seconds=options.part_seconds,
            schema=features_schema(encoder.positions, encoder.width, options.int8),
            carry=(),
            metadata={"raycap": __version__, "encoder_sha256": sha256},
        ),
        runs_model=True,
        stream=lambda todo: _encoded(config, encoder, change, todo),
    )


def pixels_work(config: Config, source: Source, encoder: Encoder) -> Work:
    """Each picture as it enters the encoder: read and resized once, for all epochs."""
    options, square = config.extract, square_of(encoder)
    return Work(
        act="extract",
        table="pixels",
        config=config,
        source=source,
        options=options,
        identity={**_seen(config, source), "square": dataclasses.asdict(square)},
        parts=Parts(
            rows=options.part_rows,
            seconds=options.part_seconds,
            schema=pixels_schema(square.size),
            carry=(),
            metadata={"raycap": __version__},
        ),
        stream=lambda todo: _pixels(config, square, todo),
    )


def pixels_schema(size: int) -> pa.Schema:
    """One picture's pixels [S, S, 3], red, green, blue."""
    names = ("key", "split", "references", "status", "error_message")
    told = features_schema(1, 1)
    return pa.schema(
        [
            *(told.field(name) for name in names),
            ("pixels", pa.fixed_shape_tensor(pa.uint8(), (size, size, 3))),
        ]
    )


def _seen(config: Config, source: Source) -> dict[str, Any]:
    return {
        "source": source_identity(source, config.extract),
        "reading": reading_identity(config.reading),
    }


def _pixels(config: Config, square: Square, todo: Todo) -> Dataset:
    return pictures(todo, config, config.extract.batch, config.reading, square)


def _encoded(config: Config, encoder: Encoder, change: Change | None, todo: Todo) -> Dataset:
    options, square = (
        dataclasses.replace(config.extract, precision=todo.choice.precision),
        square_of(encoder),
    )
    pool = shape(options, config.cluster, todo.few)
    rows = pictures(todo, config, options.batch, config.reading, square)
    arguments = {
        "encoder": ray.put(encoder),
        "threads": pool.threads,
        "options": options,
        "change": change,
    }
    return on_actors(rows, Encode, pool, options.batch, arguments)


def square_of(encoder: Encoder) -> Square:
    """What pictures must be to enter."""
    return Square(encoder.size, encoder.resize, encoder.interpolation)


class Encode:
    """An actor: opened pictures in; out the same rows with grids and vectors instead of pixels."""

    def __init__(
        self, encoder: Any, threads: int, options: Extract, change: Change | None
    ) -> None:
        torch.set_num_threads(threads)  # Ray gives an actor one
        whole: Encoder = ray.get(encoder)
        self._encode = whole.for_inference(derive(options.device, options.precision))
        self._batch, self._int8, self._change = options.batch, options.int8, change

    def __call__(self, table: pa.Table) -> pa.Table:
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()  # [R, S, S, 3]
        readable = np.flatnonzero(table["status"].to_numpy() == SUCCESS)
        grids = np.zeros((len(table), self._encode.positions, self._encode.width), np.float16)
        vectors = np.zeros((len(table), self._encode.width), np.float16)
        for start in range(0, len(readable), self._batch):
            rows = readable[start : start + self._batch]
            grids[rows], vectors[rows] = self._features(pixels[rows], table.take(rows))
        table = table.drop_columns(["pixels"])
        columns = {"grid": grids, "vector": vectors}
        if self._int8:
            columns["grid"], columns["scale"] = in_int8(grids)
        for name, column in columns.items():
            table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(column))
        return add_maker(table)

    def _features(self, pixels: np.ndarray, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            squares = torch.from_numpy(padded(pixels, self._batch)).permute(
                0, 3, 1, 2
            )  # [B, 3, S, S]
            if self._change is not None:
                draws = draws_of(rows["key"].to_pylist(), self._change.number)
                sides = names_sides(rows["references"].to_pylist())
                squares[: len(rows)] = augment(
                    squares[: len(rows)], self._change.options, draws, sides
                )
            features = self._encode(squares)
        grid, vector = (part[: len(pixels)].to(torch.float16).cpu().numpy() for part in features)
        return grid, vector


def in_int8(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grids [R, P, D] in 8 bits, and what each channel is to be multiplied by [R, D]."""
    scales = (np.abs(grids).max(1) / 127).astype(np.float16)
    steps = np.divide(
        grids, scales[:, None], out=np.zeros(grids.shape, np.float32), where=scales[:, None] > 0
    )
    return steps.round().clip(-127, 127).astype(np.int8), scales


def padded(pixels: np.ndarray, batch: int) -> np.ndarray:
    """Black squares behind the pictures [R, S, S, 3], up to `batch`: arithmetic that rounds by the size of the
    batch would let a picture's features depend on its company."""
    missing = batch - len(pixels)
    return (
        np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        if missing > 0
        else pixels
    )
