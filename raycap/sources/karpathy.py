"""Karpathy's split files: dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from raycap.sources.splits import split_word
from raycap.sources.text import brief, utf8_name
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"dataset_.*\.json", re.IGNORECASE)


@dataclass(frozen=True)
class Karpathy:
    """Karpathy's splits: one row for each picture, with its raw captions (or their words, where the file has only
    these). The key is its filename. A picture that is not there is a row that fails."""

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

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(
            rows([self._album(notes)], notes), lambda: nothing(f"no picture in {self.path}", notes)
        )

    def _file(self) -> Location:
        place = existing(self.path)
        if not place.is_folder():
            return place
        found = list(place.search(ANNOTATIONS))
        if len(found) != 1:
            several = (
                f"several: {', '.join(file.name for file in found)}; give one" if found else "none"
            )
            raise UserError(
                f"one dataset_*.json is wanted in {place.uri} or the folders below it; there are {several}"
            )
        return found[0]

    def entries(self) -> list[AnnotatedPicture]:
        """What people say of each picture, whether it is there or not."""
        return self._entries(self._file(), Notes())

    def _entries(self, file: Location, notes: Notes) -> list[AnnotatedPicture]:
        pictures = records_of(read_json(file), "images", ["filename"], file, NAMELESS, notes)
        entries = []
        for picture in pictures:
            if file_name(picture["filename"]):
                entries.append(self._entry(picture, file, notes))
            else:
                notes.add(NAMELESS, f"{file.name}: {brief(picture['filename'])}")
        return entries

    def _album(self, notes: Notes) -> AnnotationFile:
        file = self._file()
        nested = self._entries(file, notes)
        flat = [entry._replace(name=entry.key) for entry in nested]
        # The folders train2014/ and val2014/ may be kept, or all pictures may lie in one.
        try:
            folder = picture_folder(self.pictures, [file.parent], nested, file)
        except UserError:
            return AnnotationFile(
                flat, picture_folder(self.pictures, [file.parent], flat, file), file
            )
        return AnnotationFile(nested, folder, file)

    def _entry(self, picture: dict[str, Any], file: Location, notes: Notes) -> AnnotatedPicture:
        split, folder = (_text(picture.get(name)) for name in ("split", "filepath"))
        split = split_word(split)
        if split == "restval" and self.restval_is_train:
            split = "train"
        key = file_name(picture["filename"])
        folder = folder.strip("/")
        references = []
        sentences = picture.get("sentences") or []
        for sentence in sentences if isinstance(sentences, list) else [sentences]:
            if text := _caption(sentence):
                references.append(text)
            else:
                notes.add(UNUSABLE_CAPTION, f"{file.name}: {key}: {brief(sentence)}")
        return AnnotatedPicture(
            key, f"{folder}/{key}".lstrip("/") if folder else key, split, references
        )


def _text(value: Any) -> str:
    return utf8_name(value) if isinstance(value, str) else ""


def _caption(sentence: Any) -> str:
    """The caption as it was written, or its words where only these are there; "" for none."""
    if not isinstance(sentence, dict):
        return sentence.strip() if isinstance(sentence, str) else ""
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if isinstance(raw, str):
        return raw.strip()
    return (
        " ".join(token for token in tokens if isinstance(token, str))
        if isinstance(tokens, list)
        else ""
    )
