"""The caption files of Flickr8k and Flickr30k, in every form that they are passed around in."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from raycap.errors import UserError
from raycap.sources.lines import Lines, LongLine, first_line
from raycap.sources.notes import MALFORMED_CAPTION, REPAIRED_LINE, Notes
from raycap.storage.location import Location

# Names alone do not tell (results.csv may be anything): `caption_format` looks inside.
CAPTION_FILES = re.compile(
    r"(flickr_?(8|30)k\.token(\.txt)?|captions\.(txt|csv)|results(_\d+)?\.(token|csv))",
    re.IGNORECASE,
)
# Python reads no number of more than 4,300 digits; these are 0 to 4.
_NUMBERED = re.compile(r"(?P<name>.+)#(?P<number>\d{1,9})\t(?P<text>.*)")  # name#0<TAB>caption
_BARS = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d{1,9})\s*\|(?P<text>.*)")  # name| 0| caption
# Kaggle: "name| 4   A dog ...". The text begins with no space, so that a line of spaces takes no quadratic time.
_LOST_BAR = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d{1,9})\s+(?P<text>[^|\s](?:[^|]*\S)?)")
_COMMA = re.compile(r'(?P<name>"[^"]+"|[^,"]+),(?P<text>.*)')  # name,caption
_COMMAS = re.compile(r"(?P<name>[^,]+),\s*(?P<number>\d{1,9})\s*,(?P<text>.*)")  # name,0,caption
_QUOTED = re.compile(r'"(?P<inside>(?:[^"]|"")*)"')


class CaptionFormat(NamedTuple):
    """How the lines of a caption file look."""

    line: re.Pattern[str]
    repaired: re.Pattern[str] | None
    has_header: bool
    csv_quotes: bool


_BY_HEADER = {
    "image_name|comment_number|comment": CaptionFormat(_BARS, _LOST_BAR, True, False),
    "image,caption": CaptionFormat(_COMMA, None, True, True),
    "image_name,comment_number,comment": CaptionFormat(_COMMAS, None, True, True),
}


class CaptionLine(NamedTuple):
    """One line of a caption file."""

    name: str
    number: int
    text: str


def caption_format(place: Location) -> CaptionFormat | None:
    """How the file is written; None where it is no caption file."""
    line = first_line(place)
    if _NUMBERED.fullmatch(line):
        return CaptionFormat(_NUMBERED, None, False, False)
    return _BY_HEADER.get(re.sub(r'[\s"]', "", line.lower()))


def read_captions(place: Location, notes: Notes) -> Iterator[CaptionLine]:
    """The captions in the file's order; a line with a lost bar is repaired, others not of the form are left out."""
    form = caption_format(place)
    if form is None:
        raise UserError(
            f"{place.uri} is no Flickr caption file: its first line is {first_line(place)[:80]!r}; 'name#0', a tab "
            "and a caption, or a header 'image,caption' or 'image_name| comment_number| comment' were looked for"
        )
    header = form.has_header
    for number, ended in enumerate(Lines(place).or_faults(), 1):
        if isinstance(ended, LongLine):
            notes.add(MALFORMED_CAPTION, f"{place.name} line {number}: {ended.reason}")
            continue
        line = ended.rstrip("\r\n")
        if not line.strip():
            continue
        if header:
            header = False
            continue
        found = form.line.fullmatch(line)
        if not found and form.repaired and (found := form.repaired.fullmatch(line)):
            notes.add(REPAIRED_LINE, f"{place.name} line {number}")
        caption = _caption(found, form) if found else None
        if caption and caption.name:
            yield caption
        else:
            notes.add(MALFORMED_CAPTION, f"{place.name} line {number}: {line[:60]!r}")


def _caption(found: re.Match[str], form: CaptionFormat) -> CaptionLine:
    parts = found.groupdict()
    text = parts["text"].strip()
    # Only where every quote inside is doubled: '" Stop " says the sign, "' is a caption as it stands.
    if form.csv_quotes and (quoted := _QUOTED.fullmatch(text)):
        text = quoted["inside"].replace('""', '"').strip()
    return CaptionLine(parts["name"].strip().strip('"'), int(parts.get("number") or 0), text)
