"""Rows out = rows in: what a source cannot use becomes a failed row with its reason, or is counted."""

import io
from pathlib import Path

from manifest import write
from PIL import Image

from raycap.fetch import Fetch
from raycap.images import Reading, Square
from raycap.sources.rows import Row, tables
from raycap.stages.pictures import open_pictures


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "png")
    return file.getvalue()


def test_a_row_that_the_source_cannot_use_is_not_fetched(tmp_path: Path) -> None:
    there = str(write(tmp_path / "a.png", picture()))
    rows = [
        Row("good", there),
        Row("bad", there, error="a link that leads out of the folder: x"),
        Row("inside", "", picture=picture()),
        Row("bad inside", "", picture=picture(), error="a directory, not a file: y"),
    ]
    [table] = tables(rows, lambda: "nothing")
    opened = open_pictures(table, Fetch(), Reading(), Square(), trusted=True, keep_pixels=False)
    assert opened["key"].to_pylist() == [row.key for row in rows]
    assert opened["status"].to_pylist() == ["success", "failed_to_fetch", "success", "failed_to_fetch"]
    assert opened["error_message"].to_pylist() == [row.error for row in rows]
    assert opened["sha256"].to_pylist()[1::2] == ["", ""]
    assert not {"bytes", "error"} & set(opened.column_names)
