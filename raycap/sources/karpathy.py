"""Karpathy's split files: dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from raycap.sources.splits import split_word

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"dataset_.*\.json", re.IGNORECASE)


@dataclass(frozen=True)
class Karpathy:
    """Karpathy's splits: one row for each picture that is there, with its raw captions. The key is its filename."""

    path: str
    """dataset_*.json, or the folder that holds one."""
    pictures: str = ""
    """The picture folder (for COCO, the one that holds train2014/ and val2014/, or one with all pictures). Empty:
    found at or below the folder of the JSON by looking for a few of the pictures."""
    restval_is_train: bool = True
    """Count COCO's 30,504 'restval' pictures to train, as published results do; else their split is 'restval'."""

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.pictures).uri if self.pictures else self._file().parent.uri)

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        self._file()
        if self.pictures:
            existing(self.pictures)

    def tables(self) -> "Iterator[pa.Table]":
        return tables(rows([self._album()]), lambda: f"no picture of {self.path} is there")

    def notes(self) -> Sequence[str]:
        """From a second reading of the JSON and a listing of the pictures."""
        return missing_notes([self._album()])

    def _file(self) -> Place:
        place = existing(self.path)
        if not place.is_folder():
            return place
        found = list(place.search(ANNOTATIONS))
        if len(found) != 1:
            several = f"several: {', '.join(file.name for file in found)}; give one" if found else "none"
            raise Refusal(
                f"one dataset_*.json is wanted in {place.uri} or the folders below it; there are {several}"
            )
        return found[0]

    def entries(self) -> list[Entry]:
        """What people say of each picture, whether it is there or not."""
        return self._entries(self._file())

    def _entries(self, file: Place) -> list[Entry]:
        pictures = records_of(read_json(file), "images", ["filename", "split", "sentences"], file)
        return [self._entry(picture, f"{picture.get('filepath', '')}/".lstrip("/")) for picture in pictures]

    def _album(self) -> Album:
        file = self._file()
        nested = self._entries(file)
        flat = [entry._replace(name=entry.key) for entry in nested]
        # The folders train2014/ and val2014/ may be kept, or all pictures may lie in one.
        try:
            folder = picture_folder(self.pictures, [file.parent], nested, file)
        except Refusal:
            return Album(flat, picture_folder(self.pictures, [file.parent], flat, file), file)
        return Album(nested, folder, file)

    def _entry(self, picture: dict[str, Any], prefix: str) -> Entry:
        split = split_word(str(picture["split"]))
        if split == "restval" and self.restval_is_train:
            split = "train"
        name = str(picture["filename"])
        return Entry(
            name, prefix + name, split, [str(sentence["raw"]).strip() for sentence in picture["sentences"]]
        )
