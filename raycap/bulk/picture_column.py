"""Pictures between the tasks that load them and the worker that has the model: one Arrow column,
whose type depends on the form of the pictures (`raycap.images.intake`)."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycap.images import Encoded, Intake, Square

# Of pictures of different sizes.
_SIZED = pa.struct([("pixels", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])


class PictureColumn:
    """Takes the pictures of some rows, in any order. Rows without one hold black or nothing: their
    status says so, and they are not read."""

    def __init__(self, intake: Intake, rows: int) -> None:
        self._intake = intake
        self._pictures: list[NDArray[np.uint8] | None] = [None] * rows
        # Squares are copied once, into the memory that Arrow then uses.
        side = intake.size if isinstance(intake, Square) else 0
        self._squares = np.zeros((rows, side, side, 3), np.uint8)

    def put(self, row: int, picture: NDArray[np.uint8]) -> None:
        if isinstance(self._intake, Square):
            self._squares[row] = picture
        else:
            self._pictures[row] = picture

    def to_arrow(self) -> pa.Array:
        if isinstance(self._intake, Square):
            return pa.FixedShapeTensorArray.from_numpy_ndarray(self._squares)
        if isinstance(self._intake, Encoded):
            files = [None if file is None else file.data for file in self._pictures]
            return pa.array(files, pa.large_binary())
        sized = [None if picture is None else _sized(picture) for picture in self._pictures]
        return pa.array(sized, _SIZED)


def _sized(picture: NDArray[np.uint8]) -> dict[str, Any]:
    height, width, _ = picture.shape
    return {"pixels": np.ascontiguousarray(picture).tobytes(), "height": height, "width": width}


def pictures_of(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """The pictures of a column without missing ones, in its order."""
    if len(column) == 0:
        return []
    array = column.combine_chunks()
    if isinstance(array, pa.FixedShapeTensorArray):
        return list(array.to_numpy_ndarray())
    if pa.types.is_large_binary(array.type):
        return [np.frombuffer(file.as_buffer(), np.uint8) for file in array]
    pixels, heights, widths = array.flatten()
    return [
        np.frombuffer(data.as_buffer(), np.uint8).reshape(height, width, 3)
        for data, height, width in zip(
            pixels, heights.to_pylist(), widths.to_pylist(), strict=True
        )
    ]
