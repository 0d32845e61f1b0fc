"""Flickr8k and Flickr30k as their owners and Kaggle ship them, with or without split files."""

import contextlib
import csv
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.annotated import (
    AnnotatedPicture,
    AnnotationFile,
    names_in,
    picture_folder,
    rows,
)
from raycap.sources.folder import PICTURE_NAME, key_of
from raycap.sources.lines import Lines, LongLine, first_line
from raycap.sources.manifest import tables
from raycap.sources.notes import (
    MALFORMED_CAPTION,
    REPAIRED_LINE,
    UNKNOWN,
    UNLISTED_FOLDER,
    Notes,
    nothing,
)
from raycap.sources.source import SourceDefaults
from raycap.sources.splits import (
    Fractions,
    check_fractions,
    seeded_split,
    split_in,
    split_word,
)
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

# Names alone do not decide (results.csv may be anything): `caption_format` reads the first line.
CAPTION_FILES = re.compile(
    r"(flickr_?(8|30)k\.token(\.txt)?|captions\.(txt|csv)|results(_\d+)?\.(token|csv)"
    r"|flickr_annotations_30k\.csv)",
    re.IGNORECASE,
)
_SPLIT_FILES = re.compile(
    r"(?:flickr_?(?:8|30)k[._])?(train|dev|val|valid|test)(?:[._-]?images)?\.txt", re.IGNORECASE
)

# Python reads no number of more than 4,300 digits; these are 0 to 4.
_NUMBERED = re.compile(r"(?P<name>.+)#(?P<number>\d{1,9})\t(?P<text>.*)")  # name#0<TAB>caption
_BARS = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d{1,9})\s*\|(?P<text>.*)")  # name| 0| caption
# Kaggle: "name| 4   A dog ...". The text begins with no space, so that a line of spaces takes no
# quadratic time.
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


_FORMATS_BY_HEADER = {
    "image_name|comment_number|comment": CaptionFormat(_BARS, _LOST_BAR, True, False),
    "image,caption": CaptionFormat(_COMMA, None, True, True),
    "image_name,comment_number,comment": CaptionFormat(_COMMAS, None, True, True),
}


# Columns of flickr_annotations_30k.csv: on Hugging Face, Flickr30k has a line for each picture,
# whose captions are a JSON list.
_ANNOTATED = {"raw", "split", "filename"}


class CaptionLine(NamedTuple):
    """One line of a caption file."""

    name: str
    number: int
    text: str


@dataclass(frozen=True)
class Flickr(SourceDefaults):
    """Flickr8k or Flickr30k: one row for each picture, with all its captions.

    The key is the picture's file name. Pictures without captions are rows too, of no split. A
    picture that has captions and is missing is a row that fails.
    """

    path: str
    """The caption file (Flickr8k.token.txt, captions.txt, results_20130124.token, results.csv,
    flickr_annotations_30k.csv), or a folder that holds it, at most two folders down."""
    pictures: str = ""
    """The picture folder. Empty: found near the caption file by looking for a few pictures."""
    split_files: bool = True
    """Take splits from Flickr_8k.trainImages.txt and its like, if they are near the caption file.
    A picture that none of them names has no split. Without such files splits are drawn."""
    fractions: Fractions = (0.8, 0.1, 0.1)
    """Drawn splits: the parts of the pictures for train, dev and test."""
    seed: int = 0
    """Drawn splits: the seed. A picture keeps its split when others are added."""

    folder_files = CAPTION_FILES

    @classmethod
    def recognises(cls, file: Location) -> bool:
        return bool(CAPTION_FILES.fullmatch(file.name) and _is_caption_file(file))

    @classmethod
    def recognises_in_folder(cls, file: Location) -> bool:
        return _is_caption_file(file)

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.pictures).uri if self.pictures else self._found()[1].uri)

    def check(self) -> None:
        annotations = self._annotations(Notes())
        if not annotations.pictures:
            raise UserError(f"{annotations.file.uri} holds no caption")

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        found = rows([self._annotations(notes)], notes)
        return tables(found, lambda: nothing(f"no picture in {self.path}", notes))

    def entries(self) -> list[AnnotatedPicture]:
        """Returns the captions of each picture, whether it is missing or not."""
        return self._captioned(*self._found(), Notes())

    def _annotations(self, notes: Notes) -> AnnotationFile:
        """All pictures that have captions or lie in the folder."""
        file, root = self._found()
        captioned = self._captioned(file, root, notes)
        folder = picture_folder(self.pictures, [root], captioned, file)
        captioned_names = {picture.name for picture in captioned}
        try:
            names = sorted(names_in(folder))
        except OSError as error:
            notes.add(UNLISTED_FOLDER, f"{folder.uri}: {error.strerror or error}")
            names = []
        others = [
            AnnotatedPicture(key_of(name), name, "", ())
            for name in names
            if PICTURE_NAME.fullmatch(name)
            and name not in captioned_names
            and not name.startswith(".")
        ]
        return AnnotationFile([*captioned, *others], folder, file)

    def _captioned(self, file: Location, root: Location, notes: Notes) -> list[AnnotatedPicture]:
        if _is_annotated(file):
            return [self._with_split(picture) for picture in read_annotated(file, notes)]
        captions: dict[str, list[CaptionLine]] = defaultdict(list)
        for caption in read_captions(file, notes):
            captions[caption.name].append(caption)
        listed_splits = self._listed_splits(root, captions, notes)
        pictures = []
        for name, own in captions.items():
            references = [line.text for line in sorted(own, key=lambda line: line.number)]
            if listed_splits:
                split = listed_splits.get(name, "")
            else:
                split = seeded_split(name, self.fractions, self.seed)
            pictures.append(AnnotatedPicture(name, name, split, references))
        return pictures

    def _with_split(self, picture: AnnotatedPicture) -> AnnotatedPicture:
        """The picture with its own split or, without `split_files`, with a drawn one."""
        if self.split_files:
            return picture
        return picture._replace(split=seeded_split(picture.name, self.fractions, self.seed))

    def _found(self) -> tuple[Location, Location]:
        """The caption file, and the folder at or below which everything else lies."""
        location = existing(self.path)
        if not location.is_folder():
            # In the owners' Flickr8k the pictures are beside Flickr8k_text/, not in it.
            folder = location.parent
            if re.search("text|token|annotation|caption", folder.name, re.IGNORECASE):
                folder = folder.parent
            return location, folder
        for file in location.search(CAPTION_FILES):
            if _is_caption_file(file):
                return file, location
        raise UserError(
            f"no Flickr caption file in {location.uri} or two folders down: Flickr8k.token.txt, "
            "captions.txt, results_20130124.token, results.csv and flickr_annotations_30k.csv "
            "were looked for"
        )

    def _listed_splits(
        self, root: Location, known: Container[str], notes: Notes
    ) -> dict[str, str]:
        """The split of each picture that a split file names."""
        splits: dict[str, str] = {}
        for file in root.search(_SPLIT_FILES) if self.split_files else ():
            match = _SPLIT_FILES.fullmatch(file.name)
            split = split_in(match[1]) if match else ""
            for line in Lines(file).or_faults():
                if isinstance(line, LongLine):
                    notes.add(UNKNOWN, str(line))
                    continue
                name = line.strip()
                if name and name not in known:
                    name = f"{name}.jpg"  # some lists have no endings
                if name in known:
                    if splits.setdefault(name, split) != split:
                        raise UserError(
                            f"{name} is in the split files of {splits[name]} and of {split}; "
                            f"the latter is {file.uri}"
                        )
                elif name:
                    notes.add(UNKNOWN, line.strip())
        return splits


def _is_caption_file(file: Location) -> bool:
    return caption_format(file) is not None or _is_annotated(file)


def _is_annotated(file: Location) -> bool:
    return set(next(csv.reader([first_line(file)]), [])) >= _ANNOTATED


def read_annotated(file: Location, notes: Notes) -> Iterator[AnnotatedPicture]:
    """The pictures of flickr_annotations_30k.csv; lines that are malformed are noted."""
    whole = (line for line in Lines(file).or_faults() if not isinstance(line, LongLine))
    lines = csv.DictReader(whole)
    for number in itertools.count(2):
        try:
            row = next(lines, None)
        except csv.Error as error:
            raise UserError(f"{file.uri} line {number}: {error}") from error
        if row is None:
            return
        name, captions = (row.get("filename") or "").strip(), None
        with contextlib.suppress(ValueError, RecursionError):
            captions = json.loads(row.get("raw") or "")
        if not name or not isinstance(captions, list):
            notes.add(MALFORMED_CAPTION, f"{file.name} line {number}: {name!r}")
            continue
        references = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
        yield AnnotatedPicture(name, name, split_word(row.get("split") or ""), references)


def caption_format(file: Location) -> CaptionFormat | None:
    """Returns the format of a caption file by its first line; None for other files."""
    line = first_line(file)
    if _NUMBERED.fullmatch(line):
        return CaptionFormat(_NUMBERED, None, False, False)
    return _FORMATS_BY_HEADER.get(re.sub(r'[\s"]', "", line.lower()))


def read_captions(file: Location, notes: Notes) -> Iterator[CaptionLine]:
    """Yields the captions in the file's order.

    Lines that lack a bar are repaired; other malformed lines are left out and noted.
    """
    form = caption_format(file)
    if form is None:
        raise UserError(
            f"{file.uri} is no Flickr caption file: its first line is {first_line(file)[:80]!r}; "
            "'name#0', a tab and a caption, or a header 'image,caption' or "
            "'image_name| comment_number| comment' were looked for"
        )
    is_header = form.has_header
    for number, ended in enumerate(Lines(file).or_faults(), 1):
        if isinstance(ended, LongLine):
            notes.add(MALFORMED_CAPTION, f"{file.name} line {number}: {ended.reason}")
            continue
        line = ended.rstrip("\r\n")
        if not line.strip():
            continue
        if is_header:
            is_header = False
            continue
        found = form.line.fullmatch(line)
        if not found and form.repaired and (found := form.repaired.fullmatch(line)):
            notes.add(REPAIRED_LINE, f"{file.name} line {number}")
        caption = _caption(found, form) if found else None
        if caption and caption.name:
            yield caption
        else:
            notes.add(MALFORMED_CAPTION, f"{file.name} line {number}: {line[:60]!r}")


def _caption(found: re.Match[str], form: CaptionFormat) -> CaptionLine:
    parts = found.groupdict()
    text = parts["text"].strip()
    # Only if every quote inside is doubled: '" Stop " says the sign, "' is a caption as it is.
    if form.csv_quotes and (quoted := _QUOTED.fullmatch(text)):
        text = quoted["inside"].replace('""', '"').strip()
    return CaptionLine(parts["name"].strip().strip('"'), int(parts.get("number") or 0), text)
