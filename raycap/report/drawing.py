"""Draws a photo with its caption, as a PNG whose metadata has the digest of the photo."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from raycap.storage import whole_path
from raycap.uris import name_of

LONGEST_SIDE = 1024  # of the photo, in pixels; larger photos are resized
LEAST_WIDTH = 480  # of the drawing, so that there is room for the caption
INK, PALE, PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"
PHOTO = "Photo"  # key of the text in a PNG that has the photo's digest
LONGEST_WORD = 100  # in letters
LONGEST_NAME = 50  # in characters, of which one may take four bytes


def draw(pixels: NDArray[np.uint8], caption: str, others: Sequence[str] = ()) -> Image.Image:
    """The photo [H, W, 3] on paper, the caption under it, and other captions in small print."""
    photo = Image.fromarray(pixels)
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    width = max(photo.width, LEAST_WIDTH)
    margin, size = width // 24, max(18, width // 28)
    large, small = _font(size), _font(size * 3 // 4)
    lines = [(line, large, INK) for line in _wrapped(caption, large, width)]
    lines += [(line, small, PALE) for other in others for line in _wrapped(other, small, width)]
    height = sum(_step(font) for _, font, _ in lines)
    paper = Image.new("RGB", (width + 2 * margin, photo.height + height + 3 * margin), PAPER)
    paper.paste(photo, ((paper.width - photo.width) // 2, margin))
    pen, top = ImageDraw.Draw(paper), photo.height + 2 * margin
    for line, font, colour in lines:
        pen.text((paper.width // 2, top), line, colour, font, anchor="ma")
        top += _step(font)
    return paper


def save(drawing: Image.Image, path: Path, notes: dict[str, str]) -> None:
    """Write a PNG atomically, with the notes as its text chunks."""
    texts = PngImagePlugin.PngInfo()
    for name, text in notes.items():
        texts.add_itxt(name, text)
    with whole_path(path) as part:
        drawing.save(part, "png", pnginfo=texts)


def free_path(photo: str, digest: str, what: str, folder: Path = Path()) -> Path:
    """The file for a drawing of the photo, a path or URL whose bytes have this digest:
    NAME.WHAT.png in the folder, or NAME-2.WHAT.png and so on where that is another file.
    An older drawing of the photo is replaced."""
    stem = (
        re.sub(r"[^\w.-]+", "_", Path(name_of(photo)).stem)[:LONGEST_NAME].lstrip(".") or "photo"
    )
    path, number = folder / f"{stem}.{what}.png", 1
    while path.exists() and _photo_of(path) != digest:
        number += 1
        path = folder / f"{stem}-{number}.{what}.png"
    return path


def _photo_of(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            return picture.info.get(PHOTO)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # not a drawing of ours


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which has most alphabets, from the files of matplotlib. Importing matplotlib itself
    would take a second."""
    found = find_spec("matplotlib")
    assert found is not None and found.origin is not None
    return ImageFont.truetype(
        Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )


def _step(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.4)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break the text into lines of at most this width. A single word may be wider."""
    lines: list[str] = []
    for long in text.split():
        word = long if len(long) <= LONGEST_WORD else f"{long[: LONGEST_WORD - 1]}…"
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
