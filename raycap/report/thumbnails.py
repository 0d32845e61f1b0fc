"""Small copies of pictures, as text that a page can hold; or the reason why there is none."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from raycap.fetch import Fetch, Fetched, Fetcher, Trust
from raycap.images import Reading, Square
from raycap.images.guard import read_guarded

AT_ONCE = 16  # pictures in memory at their full size
QUALITY = 75  # of the JPEGs
NOTHING = Fetched(b"", "no picture")


@dataclass(frozen=True)
class Thumbnail:
    """A picture for a page."""

    data: str  # a data: URI, "" where there is none
    width: int
    height: int
    reason: str = ""


class PageBudget:
    """What is left of a page's room for pictures."""

    def __init__(self, megabytes: float) -> None:
        self.left = megabytes * 2**20

    def takes(self, data: str) -> bool:
        """Whether this picture still fits; then it is in."""
        fits = len(data) <= self.left
        self.left -= len(data) if fits else 0
        return fits


def thumbnails(
    uris: Sequence[str | None], side: int, room: PageBudget, fetch: Fetch, trust: Trust, reading: Reading
) -> list[Thumbnail]:
    """One for each URI in order, until the room is used up; none where the URI is none."""
    made: list[Thumbnail] = []
    with Fetcher(fetch, trust) as fetcher:
        for start in range(0, len(uris), AT_ONCE):
            batch = uris[start : start + AT_ONCE]
            there = [uri for uri in batch if uri is not None]
            fetched = iter(fetcher.fetch_all(there) if room.left > 0 else [None] * len(there))
            for answer in (NOTHING if uri is None else next(fetched) for uri in batch):
                thumbnail = (
                    _left_out()
                    if answer is None
                    else _made(answer.data, answer.error, side, reading)
                )
                made.append(thumbnail if room.takes(thumbnail.data) else _left_out())
    return made


def _made(data: bytes, error: str, side: int, reading: Reading) -> Thumbnail:
    if error:
        return Thumbnail("", 0, 0, error)
    picture = read_guarded(data, reading, Square(side, "pad"))
    if picture.pixels is None:
        return Thumbnail("", 0, 0, picture.error)
    scale = side / max(picture.width, picture.height)
    width, height = (max(1, round(length * scale)) for length in (picture.width, picture.height))
    left, top = (side - width) // 2, (side - height) // 2
    file = io.BytesIO()
    small = Image.fromarray(picture.pixels[top : top + height, left : left + width])
    small.save(file, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return Thumbnail(
        "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), width, height
    )


def _left_out() -> Thumbnail:
    return Thumbnail("", 0, 0, "left out to keep the page small (--megabytes)")
