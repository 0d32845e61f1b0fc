"""COCO 2014 and 2017 captions (captions_*.json), and whatever is written in their form."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.annotated import (
    AnnotatedPicture,
    AnnotationFile,
    file_name,
    picture_folder,
    read_json,
    records_of,
    rows,
)
from raycap.sources.notes import NAMELESS, UNUSABLE_CAPTION, Notes, nothing
from raycap.sources.rows import tables
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_word
from raycap.sources.text import brief
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"captions(_.*)?\.json", re.IGNORECASE)
_LONGEST_NUMBER = 1000  # digits: Python reads no number of more than 4,300
_SPLIT = re.compile(r"(train|val|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Coco:
    """COCO captions: one row for each picture, with all its captions. The key is its file_name.

    A picture that is not there is a row that fails.
    """

    path: str
    """captions_*.json, or the folder that holds it or annotations/captions_*.json; all such files are read."""
    pictures: str = ""
    """The picture folder. Empty: found beside the annotations by looking for a few of the pictures."""
    split: str = ""
    """The split of every row. Empty: from the file name (captions_val2017.json is dev), else none."""
    fractions: Fractions | None = None
    """Draw splits by the pictures' names, whatever the data says: how much goes to train, dev and test."""

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        if self.pictures:
            return Trust.below(locate(self.pictures).uri)
        return Trust.below(*(folder.uri for file in self._files() for folder in _roots(file)))

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        self._files()
        if self.pictures:
            existing(self.pictures)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(
            rows(self._albums(notes), notes), lambda: nothing(f"no picture in {self.path}", notes)
        )

    def _files(self) -> list[Location]:
        place = existing(self.path)
        if not place.is_folder():
            return [place]
        found = list(place.search(ANNOTATIONS))
        if not found:
            raise UserError(
                f"no captions_*.json in {place.uri} or the folders below it, such as annotations/"
            )
        return found

    def _albums(self, notes: Notes) -> Iterator[AnnotationFile]:
        for file in self._files():
            entries = self._entries(file, notes)
            yield AnnotationFile(
                entries, picture_folder(self.pictures, _roots(file), entries, file), file
            )

    def _entries(self, file: Location, notes: Notes) -> list[AnnotatedPicture]:
        names, references = read_annotations(file, notes)
        split = self.split or split_of(file.name)
        splits = drawn_splits(list(names.values()), self.fractions) or [split] * len(names)
        return [
            AnnotatedPicture(name, name, word, references.get(number, []))
            for (number, name), word in zip(names.items(), splits, strict=True)
        ]


def _roots(file: Location) -> list[Location]:
    """The folders that may hold the pictures: that of the file and, where it is annotations/, the one above."""
    above = [file.parent.parent] if file.parent.name.lower() == "annotations" else []
    return [file.parent, *above]


def read_annotations(
    file: Location, notes: Notes, needs_pictures: bool = True
) -> tuple[dict[int | str, str], dict[int | str, list[str]]]:
    """The file name of each picture by its id, and the captions by the same. Where pictures are not needed and the
    file does not list them, the id is the name."""
    document = read_json(file)
    references: dict[int | str, list[str]] = defaultdict(list)
    if (
        "annotations" in document or "images" not in document
    ):  # image_info_test*.json has no annotations
        fields = ["image_id", "caption"]
        for annotation in records_of(
            document, "annotations", fields, file, UNUSABLE_CAPTION, notes
        ):
            if isinstance(annotation["caption"], str):
                references[_id(annotation["image_id"])].append(annotation["caption"].strip())
            else:
                notes.add(UNUSABLE_CAPTION, f"{file.name}: {brief(annotation['caption'])}")
    if "images" not in document and not needs_pictures:
        return {number: str(number) for number in references}, references
    names: dict[int | str, str] = {}
    for picture in records_of(document, "images", ["id", "file_name"], file, NAMELESS, notes):
        name = file_name(picture["file_name"])
        if not name:
            notes.add(NAMELESS, f"{file.name}: {brief(picture['file_name'])}")
            continue
        number = _id(picture["id"])
        if number in names:
            raise UserError(
                f"{file.uri}: two pictures have the id {number}: {names[number]} and {name}"
            )
        names[number] = name
    return names, references


def _id(given: object) -> int | str:
    """COCO's ids are numbers, at times in quotes or as 7.0; others write what they like, lists even."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        try:
            return json.dumps(given, sort_keys=True)
        except RecursionError as error:
            raise UserError(
                "an id in a file of COCO's form is a list of lists, too deep to read"
            ) from error
    if isinstance(given, str):
        return int(given) if given.isdecimal() and len(given) <= _LONGEST_NUMBER else given
    return given


def split_of(name: str) -> str:
    found = _SPLIT.search(name)
    return split_word(found[1]) if found else ""
