"""The pictures that a model is fine-tuned on, as a table: read and resized once, for all epochs,
to what the model takes when it captions them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from raycap import __version__
from raycap.bulk.features import group_rows
from raycap.bulk.job import TableJob, reading_identity, source_identity
from raycap.bulk.options import BulkOptions, ExtractOptions
from raycap.bulk.work import FileLayout
from raycap.cluster import Cluster
from raycap.fetch import Fetch
from raycap.images import Encoded, Intake, Reading, Square
from raycap.schema import FEATURES_FORMAT, FITTED_PICTURES, tensor_column
from raycap.sources import Source

# Of a photo of a camera, by which the rows of a file are chosen.
USUAL_SIZE = (4000, 3000)
BYTES_OF_FILE = 2**30


def fitted_pictures_job(
    intake: Intake,
    source: Source,
    options: ExtractOptions,
    fetch: Fetch,
    reading: Reading,
    cluster: Cluster,
) -> TableJob:
    """Each picture of a source in the form of `intake`, of its own height and width."""
    assert not isinstance(intake, Encoded)
    of_picture = bytes_of_picture(intake)
    return TableJob(
        command="extract",
        table="pictures",
        source=source,
        options=options,
        fetch=fetch,
        reading=reading,
        cluster=cluster,
        identity={
            "format": FEATURES_FORMAT,
            "source": source_identity(source, options.split),
            "reading": reading_identity(reading),
            "intake": {"kind": type(intake).__name__, **dataclasses.asdict(intake)},
        },
        layout=FileLayout(
            rows=max(1, min(options.part_rows, BYTES_OF_FILE // of_picture)),
            schema=FITTED_PICTURES,
            carry=(),
            metadata={"raycap": __version__},
            group_rows=group_rows(of_picture),
        ),
        intake=intake,
        open_model=_sized_rows,
    )


def bytes_of_picture(intake: Intake) -> int:
    """Of the pixels of a usual photo."""
    if isinstance(intake, Square):
        return intake.size**2 * 3
    width, height = intake.size_of(*USUAL_SIZE)
    return width * height * 3


def _sized_rows(_options: BulkOptions, _threads: int) -> Callable[[pa.Table], pa.Table]:
    def rows(table: pa.Table) -> pa.Table:
        pictures = table["pixels"].combine_chunks()
        table = table.drop_columns(["pixels", "height", "width"])
        if isinstance(pictures, pa.FixedShapeTensorArray):
            squares = pictures.to_numpy_ndarray()  # [R, S, S, 3]
            sides = pa.array(np.full(len(squares), squares.shape[1], np.int32))
            columns = [tensor_column(squares), sides, sides]
        else:
            columns = pictures.flatten()  # null where a picture could not be read
        for name, column in zip(("pixels", "height", "width"), columns, strict=True):
            table = table.append_column(name, column)
        return table

    return rows
