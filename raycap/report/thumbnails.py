"""Small copies of pictures, as text that a page can hold; or the reason why there is none."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from raycap.fetch import Fetch, Fetcher
from raycap.images import Reading, Square, read_picture

AT_ONCE = 16  # pictures in memory at their full size
QUALITY = 75  # of the JPEGs


@dataclass(frozen=True)
class Thumbnail:
    """A picture for a page."""

    data: str  # a data: URI, "" where there is none
    width: int
    height: int
    reason: str = ""


def thumbnails(
    uris: Sequence[str], side: int, most_bytes: float, fetch: Fetch, reading: Reading
) -> list[Thumbnail]:
    """One for each URI in order, until `most_bytes` are used up."""
    made: list[Thumbnail] = []
    used = 0
    # Trusted: whoever makes a page has named the table, and only pictures get into the page.
    with Fetcher(fetch, trusted=True) as fetcher:
        for start in range(0, len(uris), AT_ONCE):
            batch = uris[start : start + AT_ONCE]
            fetched = fetcher.fetch_all(batch) if used < most_bytes else [None] * len(batch)
            for answer in fetched:
                thumbnail = _left_out() if answer is None else _made(answer.data, answer.error, side, reading)
                if used + len(thumbnail.data) > most_bytes:
                    thumbnail = _left_out()
                used += len(thumbnail.data)
                made.append(thumbnail)
    return made


def _made(data: bytes, error: str, side: int, reading: Reading) -> Thumbnail:
    if error:
        return Thumbnail("", 0, 0, error)
    picture = read_picture(data, reading, Square(side, "pad"))
    if picture.pixels is None:
        return Thumbnail("", 0, 0, picture.error)
    scale = side / max(picture.width, picture.height)
    width, height = (max(1, round(length * scale)) for length in (picture.width, picture.height))
    left, top = (side - width) // 2, (side - height) // 2
    file = io.BytesIO()
    small = Image.fromarray(picture.pixels[top : top + height, left : left + width])
    small.save(file, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return Thumbnail("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), width, height)


def _left_out() -> Thumbnail:
    return Thumbnail("", 0, 0, "left out to keep the page small (--megabytes)")
