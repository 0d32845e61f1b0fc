"""Pictures that are embedded in a page: thumbnails, and panels with the attention for each
word."""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from raycap import plainjson, shipped
from raycap.encoders import ENCODERS
from raycap.errors import UserError
from raycap.evaluation.captions import CaptionTable, table_files
from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.fetch.errors import FetchError
from raycap.images import Reading, Square
from raycap.images.guard import read_guarded
from raycap.options import from_plain
from raycap.schema import SUCCESS
from raycap.sources.manifest import counted
from raycap.storage import read_uri
from raycap.storage.location import Location, locate
from raycap.uris import is_web

THUMBNAIL = 320  # pixels of the longer side
AT_ONCE = 16  # pictures in memory at their full size
THUMBNAIL_QUALITY, PANEL_QUALITY = 75, 80  # of the JPEGs
ATTENTION_COLUMNS = ["key", "uri", "caption", "words", "attention"]
MOST_CELLS = 128  # along a side of an attention map
MOST_SIDE = 2048  # of the picture that the encoder saw, in pixels
MOST_JSON_BYTES = 2**24  # of facts.json and config.json
LEFT_OUT = "left out to keep the page small (--megabytes)"


@dataclass(frozen=True)
class Thumbnail:
    """A picture for a page."""

    data: str = ""  # a data: URI, "" if there is none
    width: int = 0
    height: int = 0
    reason: str = ""  # why there is none


@dataclass(frozen=True)
class Panel:
    """One picture with the attention maps of its caption."""

    name: str  # of the table or run
    key: str
    caption: str
    data: str  # a data: URI


class PageBudget:
    """The number of bytes that are left for pictures in a page."""

    def __init__(self, megabytes: float) -> None:
        self.left = megabytes * 2**20

    def takes(self, data: str) -> bool:
        """Whether this picture fits. If so, its bytes are subtracted."""
        fits = len(data) <= self.left
        self.left -= len(data) if fits else 0
        return fits


@dataclass(frozen=True)
class PagePictures:
    """How pictures are fetched and decoded for a page, and how many bytes are left."""

    fetch: Fetch
    trust: Trust
    reading: Reading
    budget: PageBudget

    def also_trust(self, *others: Trust) -> "PagePictures":
        """The same, with more places that may be opened."""
        return replace(self, trust=self.trust.also(*others))

    def thumbnails(self, uris: Sequence[str | None], side: int = THUMBNAIL) -> list[Thumbnail]:
        """A thumbnail for each URI, in order. It is empty for None, and when the budget is used
        up."""
        made: list[Thumbnail] = []
        with Fetcher(self.fetch, self.trust) as fetcher:
            for start in range(0, len(uris), AT_ONCE):
                batch = uris[start : start + AT_ONCE]
                wanted = [uri for uri in batch if uri is not None]
                if self.budget.left <= 0:
                    made += [Thumbnail(reason=LEFT_OUT) for _ in batch]
                    continue
                fetched = iter(fetcher.fetch_all(wanted))
                for uri in batch:
                    picture = Fetched(b"", "no picture") if uri is None else next(fetched)
                    thumbnail = self._thumbnail(picture, side)
                    fits = self.budget.takes(thumbnail.data)
                    made.append(thumbnail if fits else Thumbnail(reason=LEFT_OUT))
        return made

    def _thumbnail(self, fetched: Fetched, side: int) -> Thumbnail:
        if fetched.error:
            return Thumbnail(reason=fetched.error)
        picture = read_guarded(fetched.data, self.reading, Square(side, "pad"))
        if picture.pixels is None:
            return Thumbnail(reason=picture.error)
        scale = side / max(picture.width, picture.height)
        width, height = (max(1, round(each * scale)) for each in (picture.width, picture.height))
        left, top = (side - width) // 2, (side - height) // 2
        small = Image.fromarray(picture.pixels[top : top + height, left : left + width])
        file = io.BytesIO()
        small.save(file, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True, progressive=True)
        return Thumbnail(_data_uri(file), width, height)

    def panels(
        self, name: str, rows: Iterable[Mapping[str, Any]], square: Square
    ) -> Iterator[Panel]:
        """Panels of the rows whose pictures can be read, until the budget is used up."""
        from raycap.plots import attention_panel

        with Fetcher(self.fetch, self.trust) as fetcher:
            for row in rows:
                maps = attention_maps(row)
                if maps is None:
                    continue
                # If the picture cannot be fetched, there are no bytes and so no pixels.
                data = fetcher.fetch(row["uri"]).data
                picture = read_guarded(data, self.reading, square)
                if picture.pixels is None:
                    continue
                aspect = picture.height / picture.width if square.resize == "squash" else 1.0
                aspect = min(max(aspect, 0.1), 10.0)
                figure = attention_panel(picture.pixels, row["words"], maps, aspect)
                file = io.BytesIO()
                figure.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": PANEL_QUALITY})
                panel = Panel(name, row["key"], row["caption"], _data_uri(file))
                if not self.budget.takes(panel.data):
                    return
                yield panel


def _data_uri(jpeg: io.BytesIO) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def panels_of_tables(
    tables: Sequence[CaptionTable], most: int, model: str, pictures: PagePictures
) -> tuple[list[Panel], list[str]]:
    """Up to `most` panels of the tables with attention maps, and notes about tables whose maps
    could not be shown."""
    panels: list[Panel] = []
    notes: list[str] = []
    for table in tables if most else ():
        try:
            rows = _rows_with_maps(table, max(1, most // len(tables)))
            good = [row for row in rows if attention_maps(row) is not None]
            if len(good) < len(rows):
                bad = counted(len(rows) - len(good), "row has", "rows have")
                notes.append(f"{bad} maps of attention in {table.name} that are no squares")
            if good:
                square = _square_of_table(table.path, model, pictures.trust)
                panels += pictures.panels(table.name, good, square)
        except UserError as error:
            notes.append(f"no maps of attention of {table.name}: {error}")
    return panels, notes


def attention_maps(row: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """The attention maps [T, P] of a row, one square map for each word; None if they do not have
    this form."""
    try:
        words, maps = row["words"], np.array(row["attention"], np.float32)
    except (KeyError, ValueError, TypeError, OverflowError):  # ragged lists among others
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    if maps.ndim != 2 or len(maps) != len(words) or not maps.size or not np.isfinite(maps).all():
        return None
    side = math.isqrt(maps.shape[1])
    return maps if side * side == maps.shape[1] and side <= MOST_CELLS else None


def _rows_with_maps(table: CaptionTable, most: int) -> list[dict[str, Any]]:
    """Rows at equal distances in the table, read from its files: `table.rows` does not have the
    maps, which may be large."""
    keys = table.rows.filter(pc.equal(table.rows["status"], SUCCESS))["key"]
    spread = np.linspace(0, len(keys) - 1, min(most, len(keys))).astype(int)
    chosen = keys.take(np.unique(spread)).combine_chunks()
    found: list[dict[str, Any]] = []
    for file in table_files(table.path):
        if file.format != "parquet" or not set(ATTENTION_COLUMNS) <= set(file.names()):
            continue
        try:
            with file.file.open() as opened, pq.ParquetFile(opened) as parquet:
                for batch in parquet.iter_batches(columns=ATTENTION_COLUMNS, batch_size=1000):
                    is_chosen = pc.is_in(batch["key"].cast(pa.string()), chosen)
                    found += batch.filter(is_chosen).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"cannot read {file.file.uri}: {error}") from error
    return [row for row in found if row["attention"]]


def _square_of_table(path: str, model: str, trust: Trust) -> Square:
    """The form in which the captioner of a table takes pictures. Without `model`, facts.json names
    the captioner."""
    if model:
        return square_of(model)
    table = locate(path)
    for folder in (table, table.parent):
        if (folder / "facts.json").is_file():
            model = _read_json(folder / "facts.json").get("model", "")
            break
    if not isinstance(model, str) or not model:
        raise UserError("say with --model which captioner wrote them")
    if model != shipped.NAME:
        try:
            # facts.json may be somebody else's, too. Places on the web are guarded where pictures
            # are fetched, and not here.
            trust.check(model)
            if is_web(model):
                raise FetchError("refused: a captioner on the web")
        except FetchError:
            raise UserError(
                f"if it was {model[:200]!r} that wrote them, say so with --model"
            ) from None
    return square_of(model)


def square_of(model: str) -> Square:
    """The form in which a captioner takes pictures, from its config.json."""
    config = locate(shipped.place_of(model)) / "config.json"
    if not config.is_file():
        raise UserError(f"there is no captioner in {model}: say with --model which one wrote them")
    try:
        encoder = from_plain(ENCODERS, _read_json(config)["encoder"], config.uri)
        square: Square = encoder.preprocessing()
    except (KeyError, RecursionError) as error:
        raise UserError(
            f"{config.uri} is not of a captioner: say with --model which one wrote them"
        ) from error
    if square.size > MOST_SIDE:
        raise UserError(
            f"{config.uri} asks for pictures of {square.size} pixels: the page takes up to "
            f"{MOST_SIDE}"
        )
    return square


def _read_json(place: Location) -> dict[str, Any]:
    try:
        data = plainjson.loads(read_uri(place.uri, MOST_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {place.uri}: {error}") from error
    return data if isinstance(data, dict) else {}
