"""Where a captioner looked, word by word: panels of some pictures whose rows hold maps of attention."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.config import part_from_plain
from raycap.evaluation.captions import CaptionTable, files_of
from raycap.fetch import Fetch, Fetcher
from raycap.images import Reading, Square, read_picture
from raycap.plots import attention_panel
from raycap.refusal import Refusal
from raycap.sources.place import locate
from raycap.tables import SUCCESS

COLUMNS = ["key", "uri", "caption", "words", "attention", "width", "height"]
QUALITY = 80  # of the JPEGs


@dataclass(frozen=True)
class Panel:
    """One picture, and what was looked at for each word."""

    table: str
    key: str
    caption: str
    data: str  # a data: URI


def panels(
    tables: Sequence[CaptionTable], most: int, model: str, fetch: Fetch, reading: Reading
) -> tuple[list[Panel], list[str]]:
    """At most so many, shared by the tables that hold maps; and why there are none of a table that does."""
    made: list[Panel] = []
    notes: list[str] = []
    with Fetcher(fetch, trusted=True) as fetcher:
        for table in tables:
            rows = _rows(table, max(1, most // len(tables))) if most else []
            try:
                square = _square(table.path, model) if rows else None
            except Refusal as refusal:
                notes.append(f"no maps of attention of {table.name}: {refusal}")
                continue
            for row in rows:
                fetched = fetcher.fetch(row["uri"])
                assert square is not None
                pixels = None if fetched.error else read_picture(fetched.data, reading, square).pixels
                if pixels is not None:
                    made.append(Panel(table.name, row["key"], row["caption"], _drawn(row, pixels, square)))
    return made, notes


def _rows(table: CaptionTable, most: int) -> list[dict[str, Any]]:
    """Rows that hold maps, from all over the table; looked up in its files, for there may be a great many."""
    keys = table.rows.filter(pc.equal(table.rows["status"], SUCCESS))["key"]
    chosen = keys.take(np.unique(np.linspace(0, len(keys) - 1, min(most, len(keys))).astype(int)))
    found: list[dict[str, Any]] = []
    for file in files_of(table.path):
        if file.format != "parquet" or not set(COLUMNS) <= set(file.names()):
            continue
        with file.place.open() as opened, pq.ParquetFile(opened) as parquet:
            for batch in parquet.iter_batches(columns=COLUMNS, batch_size=1000):
                found += batch.filter(pc.is_in(batch["key"], chosen.combine_chunks())).to_pylist()
    return [row for row in found if row["attention"]]


def _square(path: str, model: str) -> Square:
    """What the captioner saw of a picture: by its own config, which the facts of the table's run lead to."""
    folder = locate(path)
    if not model:
        facts = next((place for up in (folder, folder.parent) if (place := up / "facts.json").is_file()), None)
        model = json.loads(facts.open().read()).get("model", "") if facts else ""
    config = locate(model) / "config.json"
    if not model or not config.is_file():
        raise Refusal("say with --model which captioner wrote them")
    with config.open() as opened:
        encoder = part_from_plain("encoder", json.load(opened)["encoder"], config.uri)
    square: Square = encoder.intake()
    return square


def _drawn(row: dict[str, Any], pixels: Any, square: Square) -> str:
    aspect = row["height"] / row["width"] if square.resize == "squash" else 1.0
    figure = attention_panel(pixels, row["words"], np.array(row["attention"], np.float32), aspect)
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
