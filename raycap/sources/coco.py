"""COCO 2014 and 2017 captions (captions_*.json), and whatever is written in their form."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.fetch.trust import Trust
from raycap.refusal import Refusal
from raycap.sources.annotated import (
    Album,
    Entry,
    missing_notes,
    picture_folder,
    read_json,
    records_of,
    rows,
)
from raycap.sources.place import Place, existing, locate
from raycap.sources.rows import tables
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_word

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"captions(_.*)?\.json", re.IGNORECASE)
_SPLIT = re.compile(r"(train|val|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Coco:
    """COCO captions: one row for each picture that is there, with all its captions. The key is its file_name."""

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

    def tables(self) -> "Iterator[pa.Table]":
        return tables(rows(self._albums()), lambda: f"no picture of {self.path} is there")

    def notes(self) -> Sequence[str]:
        """From a second reading of the annotations and a listing of the pictures."""
        return missing_notes(self._albums())

    def _files(self) -> list[Place]:
        place = existing(self.path)
        if not place.is_folder():
            return [place]
        found = list(place.search(ANNOTATIONS))
        if not found:
            raise Refusal(f"no captions_*.json in {place.uri} or the folders below it, such as annotations/")
        return found

    def _albums(self) -> Iterator[Album]:
        for file in self._files():
            entries = self._entries(file)
            yield Album(entries, picture_folder(self.pictures, _roots(file), entries, file), file)

    def _entries(self, file: Place) -> list[Entry]:
        document = read_json(file)
        split = self.split or _split_of(file.name)
        references: dict[object, list[str]] = defaultdict(list)
        if "annotations" in document:  # image_info_test*.json has none
            for annotation in records_of(document, "annotations", ["image_id", "caption"], file):
                references[annotation["image_id"]].append(str(annotation["caption"]).strip())
        names: dict[object, str] = {}
        for picture in records_of(document, "images", ["id", "file_name"], file):
            if picture["id"] in names:
                twice = f"{names[picture['id']]} and {picture['file_name']}"
                raise Refusal(f"{file.uri}: two pictures have the id {picture['id']}: {twice}")
            names[picture["id"]] = str(picture["file_name"])
        splits = drawn_splits(list(names.values()), self.fractions) or [split] * len(names)
        return [
            Entry(name, name, word, references.get(number, []))
            for (number, name), word in zip(names.items(), splits, strict=True)
        ]


def _roots(file: Place) -> list[Place]:
    """The folders that may hold the pictures: that of the file and, where it is annotations/, the one above."""
    above = [file.parent.parent] if file.parent.name.lower() == "annotations" else []
    return [file.parent, *above]


def _split_of(name: str) -> str:
    found = _SPLIT.search(name)
    return split_word(found[1]) if found else ""
