"""Where a captioner looked, word by word: panels of some pictures whose rows hold maps of attention."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycap.config import part_from_plain
from raycap.evaluation.captions import CaptionTable, files_of
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.images import Reading, Square
from raycap.images.guard import read_guarded
from raycap.plots import attention_panel
from raycap.refusal import Refusal
from raycap.report.thumbnails import Room
from raycap.sources.place import locate
from raycap.tables import SUCCESS

COLUMNS = ["key", "uri", "caption", "words", "attention"]
QUALITY = 80  # of the JPEGs


@dataclass(frozen=True)
class Panel:
    """One picture, and what was looked at for each word."""

    name: str  # of the table or run
    key: str
    caption: str
    data: str  # a data: URI


def panels(
    tables: Sequence[CaptionTable],
    most: int,
    model: str,
    room: Room,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> tuple[list[Panel], list[str]]:
    """At most so many, shared by the tables that hold maps; and why there are none of a table that does."""
    made: list[Panel] = []
    notes: list[str] = []
    with Fetcher(fetch, trust) as fetcher:
        for table in tables:
            rows = _rows(table, max(1, most // len(tables))) if most else []
            try:
                square = _square_of(table.path, model) if rows else None
            except Refusal as refusal:
                notes.append(f"no maps of attention of {table.name}: {refusal}")
                continue
            if square is not None:
                made += drawn(table.name, rows, square, room, fetcher, reading)
    return made, notes


def drawn(
    name: str, rows: Iterable[Mapping[str, Any]], square: Square, room: Room, fetcher: Fetcher, reading: Reading
) -> Iterator[Panel]:
    """The panels of those rows of a table or run whose pictures can be read, as long as there is room."""
    for row in rows:
        fetched = fetcher.fetch(row["uri"])
        picture = read_guarded(fetched.data, reading, square)  # of no bytes where they could not be fetched
        if picture.pixels is not None:
            aspect = picture.height / picture.width if square.resize == "squash" else 1.0
            panel = Panel(name, row["key"], row["caption"], _as_jpeg(row, picture.pixels, aspect))
            if not room.takes(panel.data):
                return
            yield panel


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


def _square_of(path: str, model: str) -> Square:
    """What the captioner saw of a picture: by its own config, which the facts of the table's run lead to."""
    folder = locate(path)
    if not model:
        facts = next((place for up in (folder, folder.parent) if (place := up / "facts.json").is_file()), None)
        model = json.loads(facts.open().read()).get("model", "") if facts else ""
    if not model:
        raise Refusal("say with --model which captioner wrote them")
    return square_of(model)


def square_of(model: str) -> Square:
    """What a captioner sees of a picture."""
    config = locate(model) / "config.json"
    if not config.is_file():
        raise Refusal(f"there is no captioner in {model}: say with --model which one wrote them")
    with config.open() as opened:
        encoder = part_from_plain("encoder", json.load(opened)["encoder"], config.uri)
    square: Square = encoder.intake()
    return square


def _as_jpeg(row: Mapping[str, Any], pixels: Any, aspect: float) -> str:
    figure = attention_panel(pixels, row["words"], np.array(row["attention"], np.float32), aspect)
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
