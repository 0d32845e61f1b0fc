"""Small feature tables that can be learned: what is in the picture is written in its features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.schema import features_schema, fit, tensor_column
from raycap.sources import Table
from raycap.training.store import PictureStore, PictureTables, open_store, write_listing

POSITIONS, WIDTH = 4, 12
COLOURS, THINGS = ("red", "green", "blue", "grey"), ("dog", "cat", "boat")
SOURCE = "source.jsonl"


def references(number: int) -> list[str]:
    """The captions of picture `number`: of unequal length, and not the same count for each."""
    colour, thing = COLOURS[number % 4], THINGS[number // 4 % 3]
    captions = [
        f"a {colour} {thing}",
        f"the {thing} that you see here is {colour}",
        f"one {thing}",
    ]
    return captions[: 1 + number % 3]


def source_rows(count: int) -> list[dict[str, Any]]:
    """The source's rows of `count` pictures: three of four in the split train, the others in
    dev."""
    return [
        {
            "path": f"{number:04}.png",
            "part": "dev" if number % 4 == number // 4 % 4 else "train",
            "references": references(number),
        }
        for number in range(count)
    ]


def features(count: int, seed: int = 0) -> pa.Table:
    """The features of `count` pictures."""
    chance = np.random.default_rng(seed)
    grids = 0.1 * chance.standard_normal((count, POSITIONS, WIDTH))
    for number in range(count):
        grids[number, :, number % 4] += 1
        grids[number, number % POSITIONS, 4 + number // 4 % 3] += 2
    vectors = grids.mean(1).astype(np.float16)
    table = pa.table(
        {
            "key": [row["path"] for row in source_rows(count)],
            "grid": tensor_column(grids.astype(np.float16)),
            "vector": tensor_column(vectors),
            "status": ["success"] * count,
            "error_message": [""] * count,
        }
    )
    return fit(table, features_schema(POSITIONS, WIDTH))


def write(
    folder: Path,
    table: pa.Table,
    rows: Sequence[dict[str, Any]] | None = None,
    files: int = 2,
    group: int | None = None,
) -> str:
    """The table as Parquet files, as `raycap extract` leaves them, and beside them its source."""
    folder.mkdir(parents=True)
    size = -(-len(table) // files)
    for number in range(files):
        part = table.slice(number * size, size)
        pq.write_table(part, folder / f"part-{number:05}.parquet", row_group_size=group)
    lines = source_rows(len(table)) if rows is None else rows
    (folder / SOURCE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(folder)


def source_of(folder: str) -> Table:
    """The source that `write` has put beside a table."""
    path = f"{folder}/{SOURCE}"
    return Table(path, key_column="path", split_column="part", references=("references",))


def source_flags(folder: str) -> list[str]:
    """The same source on a command line."""
    names = ["--source.key-column", "path", "--source.split-column", "part"]
    return [f"{folder}/{SOURCE}", "--source", "table", *names, "--source.references", "references"]


def source_config(folder: str) -> str:
    """The same source in a config file."""
    columns = "key_column: path, split_column: part, references: [references]"
    return f"source: {{kind: table, path: {folder}/{SOURCE}, {columns}}}\n"


def pictures_of(folder: str, *views: str) -> PictureTables:
    """The table with its listing, and the tables of its views."""
    listing = Path(folder) / "listing.arrow"
    write_listing(source_of(folder), listing)
    return PictureTables((folder, *views), str(listing))


def store_of(folder: str, cache: Path) -> PictureStore:
    """The unpacked table with its captions."""
    return open_store(pictures_of(folder), cache)
