"""COCO 2014 and 2017 captions (captions_*.json), and other files of that form."""

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
from raycap.sources.lines import head, name_unpacked
from raycap.sources.manifest import brief, tables
from raycap.sources.notes import NAMELESS, UNUSABLE_CAPTION, Notes, nothing
from raycap.sources.source import SourceDefaults
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_word
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"captions(_.*)?\.json", re.IGNORECASE)
_LONGEST_NUMBER = 1000  # digits: Python reads no number of more than 4,300
_SPLIT = re.compile(r"(train|val|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Coco(SourceDefaults):
    """COCO captions: one row for each picture, with all its captions. The key is its file_name.

    A missing picture is a row that fails.
    """

    path: str
    """captions_*.json, or the folder that holds it or annotations/captions_*.json; all such files
    are read."""
    pictures: str = ""
    """The picture folder. Empty: found beside the annotations by looking for a few pictures."""
    split: str = ""
    """The split of every row. Empty: that of the file name (captions_val2017.json: dev)."""
    fractions: Fractions | None = None
    """Draw splits by the pictures' names, not as the data says: the parts for train, dev, test."""

    folder_files = ANNOTATIONS

    @classmethod
    def recognises(cls, file: Location) -> bool:
        if not name_unpacked(file.name).endswith(".json"):
            return False
        start = head(file)
        return b'"images"' in start or b'"annotations"' in start

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        if self.pictures:
            return Trust.below(locate(self.pictures).uri)
        return Trust.below(*(folder.uri for file in self._files() for folder in _roots(file)))

    def check(self) -> None:
        self._files()
        if self.pictures:
            existing(self.pictures)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        found = rows(self._annotations(notes), notes)
        return tables(found, lambda: nothing(f"no picture in {self.path}", notes))

    def _files(self) -> list[Location]:
        location = existing(self.path)
        if not location.is_folder():
            return [location]
        found = list(location.search(ANNOTATIONS))
        if not found:
            raise UserError(
                f"no captions_*.json in {location.uri} or the folders below it, "
                "such as annotations/"
            )
        return found

    def _annotations(self, notes: Notes) -> Iterator[AnnotationFile]:
        for file in self._files():
            names, references = read_annotations(file, notes)
            splits = drawn_splits(list(names.values()), self.fractions)
            if not splits:
                splits = [self.split or split_of(file.name)] * len(names)
            pictures = [
                AnnotatedPicture(name, name, split, references.get(number, []))
                for (number, name), split in zip(names.items(), splits, strict=True)
            ]
            folder = picture_folder(self.pictures, _roots(file), pictures, file)
            yield AnnotationFile(pictures, folder, file)


def _roots(file: Location) -> list[Location]:
    """The folders that may hold the pictures: the file's and, above annotations/, its parent."""
    above = [file.parent.parent] if file.parent.name.lower() == "annotations" else []
    return [file.parent, *above]


def read_annotations(
    file: Location, notes: Notes, needs_pictures: bool = True
) -> tuple[dict[int | str, str], dict[int | str, list[str]]]:
    """Returns the file name of each picture by its id, and the captions by the same id.

    If the file lists no pictures and they are not needed, the id is the name.
    """
    document = read_json(file)
    references: dict[int | str, list[str]] = defaultdict(list)
    # image_info_test*.json has no annotations.
    if "annotations" in document or "images" not in document:
        fields = ["image_id", "caption"]
        annotations = records_of(document, "annotations", fields, file, UNUSABLE_CAPTION, notes)
        for annotation in annotations:
            caption = annotation["caption"]
            if isinstance(caption, str):
                references[_id(annotation["image_id"])].append(caption.strip())
            else:
                notes.add(UNUSABLE_CAPTION, f"{file.name}: {brief(caption)}")
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
    """COCO's ids are numbers, at times "7" or 7.0; other files have any JSON value, even lists."""
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
    """Returns the split in a file name: "dev" for captions_val2017.json, "" for none."""
    found = _SPLIT.search(name)
    return split_word(found[1]) if found else ""
