"""Where a captioner looked, word by word: panels of some pictures whose rows hold maps of attention."""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap import plainjson, shipped
from raycap.config import part_from_plain
from raycap.errors import UserError
from raycap.evaluation.captions import CaptionTable, files_of
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.fetch.fault import FetchError
from raycap.images import Reading, Square
from raycap.images.guard import read_guarded
from raycap.plots import attention_panel
from raycap.report.thumbnails import PageBudget
from raycap.schema import SUCCESS
from raycap.sources.rows import counted
from raycap.storage.location import Place, locate
from raycap.uris import is_web, read_regular

COLUMNS = ["key", "uri", "caption", "words", "attention"]
QUALITY = 80  # of the JPEGs
MOST_CELLS = 128  # along a side of a map
MOST_SIDE = 2048  # of the picture that the encoder saw, in pixels
MOST_BYTES = 2**24  # of facts.json and config.json


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
    room: PageBudget,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> tuple[list[Panel], list[str]]:
    """At most so many, shared by the tables that hold maps; and why there are none of a table that does."""
    made: list[Panel] = []
    notes: list[str] = []
    with Fetcher(fetch, trust) as fetcher:
        for table in tables:
            try:
                rows = _rows(table, max(1, most // len(tables))) if most else []
                good = [row for row in rows if maps_of(row) is not None]
                if len(good) < len(rows):
                    unlike = counted(len(rows) - len(good), "row has", "rows have")
                    notes.append(f"{unlike} maps of attention in {table.name} that are no squares")
                square = _square_of(table.path, model, trust) if good else None
            except UserError as refusal:
                notes.append(f"no maps of attention of {table.name}: {refusal}")
                continue
            if square is not None:
                made += drawn(table.name, good, square, room, fetcher, reading)
    return made, notes


def maps_of(row: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """A row's maps [T, P], one for each word and each a square of cells; None where they are anything else."""
    try:
        words, maps = row["words"], np.array(row["attention"], np.float32)
    except (KeyError, ValueError, TypeError, OverflowError):  # ragged lists among others
        return None
    if (
        not isinstance(words, list)
        or not all(isinstance(word, str) for word in words)
        or not words
    ):
        return None
    if (
        maps.ndim != 2
        or len(maps) != len(words)
        or not maps.shape[1]
        or not np.isfinite(maps).all()
    ):
        return None
    side = math.isqrt(maps.shape[1])
    return maps if side * side == maps.shape[1] and side <= MOST_CELLS else None


def drawn(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    square: Square,
    room: PageBudget,
    fetcher: Fetcher,
    reading: Reading,
) -> Iterator[Panel]:
    """The panels of those rows of a table or run whose pictures can be read, as long as there is room."""
    for row in rows:
        maps = maps_of(row)
        if maps is None:
            continue
        fetched = fetcher.fetch(row["uri"])
        picture = read_guarded(
            fetched.data, reading, square
        )  # of no bytes where they could not be fetched
        if picture.pixels is not None:
            aspect = picture.height / picture.width if square.resize == "squash" else 1.0
            panel = Panel(
                name,
                row["key"],
                row["caption"],
                _as_jpeg(row["words"], maps, picture.pixels, aspect),
            )
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
        try:
            with file.place.open() as opened, pq.ParquetFile(opened) as parquet:
                for batch in parquet.iter_batches(columns=COLUMNS, batch_size=1000):
                    keys = batch["key"].cast(pa.string())
                    found += batch.filter(pc.is_in(keys, chosen.combine_chunks())).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"cannot read {file.place.uri}: {error}") from error
    return [row for row in found if row["attention"]]


def _square_of(path: str, model: str, trust: Trust) -> Square:
    """What the captioner saw of a picture: by its own config, which the facts of the table's run lead to."""
    folder = locate(path)
    if not model:
        facts = next(
            (place for up in (folder, folder.parent) if (place := up / "facts.json").is_file()),
            None,
        )
        model = _json_of(facts).get("model", "") if facts else ""
        if not isinstance(model, str) or not model:
            raise UserError("say with --model which captioner wrote them")
        # facts.json may be somebody else's, too. (http(s) is guarded where pictures are fetched, and not here.)
        if model != shipped.NAME:
            try:
                trust.check(model)
                if is_web(model):
                    raise FetchError("refused: a captioner on the web")
            except FetchError:
                raise UserError(
                    f"if it was {model[:200]!r} that wrote them, say so with --model"
                ) from None
    return square_of(model)


def square_of(model: str) -> Square:
    """What a captioner sees of a picture."""
    config = locate(shipped.place_of(model)) / "config.json"
    if not config.is_file():
        raise UserError(f"there is no captioner in {model}: say with --model which one wrote them")
    try:
        encoder = part_from_plain("encoder", _json_of(config)["encoder"], config.uri)
        square: Square = encoder.intake()
    except (KeyError, RecursionError) as error:
        raise UserError(
            f"{config.uri} is not of a captioner: say with --model which one wrote them"
        ) from error
    if square.size > MOST_SIDE:
        raise UserError(
            f"{config.uri} asks for pictures of {square.size} pixels: the page takes up to {MOST_SIDE}"
        )
    return square


def _json_of(place: Place) -> dict[str, Any]:
    try:
        data = plainjson.loads(read_regular(place.uri, MOST_BYTES))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot read {place.uri}: {error}") from error
    return data if isinstance(data, dict) else {}


def _as_jpeg(words: Sequence[str], maps: NDArray[np.float32], pixels: Any, aspect: float) -> str:
    figure = attention_panel(pixels, words, maps, min(max(aspect, 0.1), 10.0))
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
