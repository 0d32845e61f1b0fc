"""Pictures between the tasks that load them and the worker that has the model: one Arrow column,
whose type depends on the form of the pictures (`raycap.images.intake`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycap.images import Encoded, Intake, Square, SquareOrJpeg

# The name of the column.
PIXELS = "pixels"
# Of pictures of different sizes. The bytes of a file have no height.
_SIZED = pa.struct([("pixels", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])


class PictureColumn:
    """Takes the pictures of some rows, in any order. Rows without one hold black or nothing: their
    status says so, and they are not read."""

    def __init__(self, intake: Intake, rows: int) -> None:
        self._intake = intake
        self._pictures: list[NDArray[np.uint8] | None] = [None] * rows
        # Squares are copied once, into the memory that Arrow then uses.
        self._are_squares = isinstance(intake, Square) and not isinstance(intake, SquareOrJpeg)
        side = intake.size if isinstance(intake, Square) and self._are_squares else 0
        self._squares = np.zeros((rows, side, side, 3), np.uint8)

    def put(self, row: int, picture: NDArray[np.uint8]) -> None:
        if self._are_squares:
            self._squares[row] = picture
        else:
            self._pictures[row] = picture

    def to_arrow(self) -> pa.Array:
        if self._are_squares:
            return pa.FixedShapeTensorArray.from_numpy_ndarray(self._squares)
        if isinstance(self._intake, Encoded):
            files = [None if file is None else file.data for file in self._pictures]
            return pa.array(files, pa.large_binary())
        sized = [None if picture is None else _sized(picture) for picture in self._pictures]
        return pa.array(sized, _SIZED)


def _sized(picture: NDArray[np.uint8]) -> dict[str, Any]:
    height, width = picture.shape[:2] if picture.ndim == 3 else (0, 0)
    return {"pixels": np.ascontiguousarray(picture).tobytes(), "height": height, "width": width}


def pictures_of(column: pa.ChunkedArray, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The pictures of these rows of a column, in their order. They lie in Arrow's memory."""
    pictures: list[NDArray[np.uint8] | None] = []
    for array in column.chunks:
        pictures += _pictures_of_array(array)
    chosen = [pictures[row] for row in rows]
    return [picture for picture in chosen if picture is not None]


def _pictures_of_array(array: pa.Array) -> list[NDArray[np.uint8] | None]:
    """The pictures of an array; black or None for those that it lacks."""
    if len(array) == 0:
        return []
    if isinstance(array, pa.FixedShapeTensorArray):
        return list(array.to_numpy_ndarray())
    if pa.types.is_large_binary(array.type):
        return [
            np.frombuffer(file.as_buffer(), np.uint8) if file.is_valid else None for file in array
        ]
    pixels, heights, widths = array.flatten()
    pictures: list[NDArray[np.uint8] | None] = []
    for data, height, width in zip(pixels, heights.to_pylist(), widths.to_pylist(), strict=True):
        picture = np.frombuffer(data.as_buffer(), np.uint8) if data.is_valid else None
        if picture is not None and height:
            picture = picture.reshape(height, width, 3)
        pictures.append(picture)
    return pictures
