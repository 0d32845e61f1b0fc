"""Generated pictures with captions: for a first run and for tests, with nothing to download."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.manifest import Row, tables
from raycap.sources.notes import Notes
from raycap.sources.source import SourceDefaults

if TYPE_CHECKING:
    import pyarrow as pa

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (240, 200, 20),
}
SHAPES = ("circle", "square", "triangle")
SIDE = 96  # pixels


@dataclass(frozen=True)
class Shapes(SourceDefaults):
    """Pictures of two coloured shapes, each with three captions; the same pictures on each run."""

    path: str = "shapes"
    """Not used: nothing is read."""
    count: int = 600
    """Number of pictures; of each ten, eight are train, one is dev, one is test."""
    seed: int = 0
    """Another seed makes other pictures."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--source.count is {self.count}: make at least 1 picture")

    @property
    def trust(self) -> Trust:
        return Trust()

    def check(self) -> None:
        """Nothing can be missing."""

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        return tables(self._rows(), lambda: "no shapes")

    def embedded_pictures(self, rows: "pa.Table") -> list[bytes | None]:
        numbers = [int(key.partition(".")[0]) for key in rows["key"].to_pylist()]
        return [self._row(number).picture for number in numbers]

    def _rows(self) -> Iterator[Row]:
        for number in range(self.count):
            yield self._row(number)

    def _row(self, number: int) -> Row:
        split = {8: "dev", 9: "test"}.get(number % 10, "train")
        chance = random.Random(f"{self.seed}/{number}")
        upper = chance.choice(list(COLOURS)), chance.choice(SHAPES)
        lower = chance.choice(list(COLOURS)), chance.choice(SHAPES)
        return Row(
            key=f"{number:06}.png",
            uri=f"shapes:{self.seed}/{number:06}.png",
            split=split,
            references=_captions(upper, lower),
            picture=_drawn(upper, lower, chance),
        )


def _captions(upper: tuple[str, str], lower: tuple[str, str]) -> list[str]:
    above, below = (f"a {colour} {shape}" for colour, shape in (upper, lower))
    return [
        f"{above} above {below}",
        f"{below} below {above}",
        f"{above} on top and {below} at the bottom",
    ]


def _drawn(upper: tuple[str, str], lower: tuple[str, str], chance: random.Random) -> bytes:
    from PIL import Image, ImageDraw

    background = chance.randrange(215, 256)
    picture = Image.new("RGB", (SIDE, SIDE), (background, background, background))
    pen = ImageDraw.Draw(picture)
    for (colour, shape), middle in ((upper, SIDE // 4), (lower, SIDE - SIDE // 4)):
        reach = chance.randrange(14, 21)
        x, y = chance.randrange(reach + 2, SIDE - reach - 2), middle + chance.randrange(-2, 3)
        box = (x - reach, y - reach, x + reach, y + reach)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=COLOURS[colour])
    file = io.BytesIO()
    picture.save(file, format="png")
    return file.getvalue()
