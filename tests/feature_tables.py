"""Small feature tables that can be learned: what is in the picture is written in its features."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.schema import features_schema, fit

POSITIONS, WIDTH = 4, 12
COLOURS, THINGS = ("red", "green", "blue", "grey"), ("dog", "cat", "boat")


def references(number: int) -> list[str]:
    """What people say of picture `number`; captions of unequal length, and not the same count for each."""
    colour, thing = COLOURS[number % 4], THINGS[number // 4 % 3]
    said = [f"a {colour} {thing}", f"the {thing} that you see here is {colour}", f"one {thing}"]
    return said[: 1 + number % 3]


def features(count: int, seed: int = 0) -> pa.Table:
    """`count` pictures: three of four in the split train, the others in dev."""
    chance = np.random.default_rng(seed)
    grids = 0.1 * chance.standard_normal((count, POSITIONS, WIDTH))
    for number in range(count):
        grids[number, :, number % 4] += 1
        grids[number, number % POSITIONS, 4 + number // 4 % 3] += 2
    table = pa.table(
        {
            "key": [f"{number:04}.png" for number in range(count)],
            "split": [
                "dev" if number % 4 == number // 4 % 4 else "train" for number in range(count)
            ],
            "references": [references(number) for number in range(count)],
            "grid": pa.FixedShapeTensorArray.from_numpy_ndarray(grids.astype(np.float16)),
            "vector": pa.FixedShapeTensorArray.from_numpy_ndarray(
                grids.mean(1).astype(np.float16)
            ),
            "status": ["success"] * count,
            "error_message": [""] * count,
        }
    )
    return fit(table, features_schema(POSITIONS, WIDTH))


def write(folder: Path, table: pa.Table, parts: int = 2) -> str:
    """The table as Parquet files, as `raycap extract` leaves them."""
    folder.mkdir(parents=True)
    rows = -(-len(table) // parts)
    for part in range(parts):
        pq.write_table(table.slice(part * rows, rows), folder / f"part-{part:05}.parquet")
    return str(folder)
