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
from raycap.sources.lines import head, name_unpacked
from raycap.sources.manifest import brief, tables, utf8_name
from raycap.sources.notes import NAMELESS, UNUSABLE_CAPTION, Notes, nothing
from raycap.sources.source import SourceDefaults
from raycap.sources.splits import split_word
from raycap.storage.location import Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATIONS = re.compile(r"dataset_.*\.json", re.IGNORECASE)


@dataclass(frozen=True)
class Karpathy(SourceDefaults):
    """Karpathy's splits: one row for each picture, with its raw captions, or their words if the
    file has only these. The key is its filename. A missing picture is a row that fails."""

    path: str
    """dataset_*.json, or the folder that holds one."""
    pictures: str = ""
    """The picture folder (for COCO, the one with train2014/ and val2014/, or one with all
    pictures). Empty: found at or below the folder of the JSON by looking for a few of the
    pictures."""
    restval_is_train: bool = True
    """Count COCO's 30,504 'restval' pictures as train, as published results do; else their split
    is 'restval'."""

    folder_files = ANNOTATIONS

    @classmethod
    def recognises(cls, file: Location) -> bool:
        if not name_unpacked(file.name).endswith(".json"):
            return False
        start = head(file)
        return b'"sentences"' in start or b'"sentids"' in start

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.pictures).uri if self.pictures else self._file().parent.uri)

    def check(self) -> None:
        self._file()
        if self.pictures:
            existing(self.pictures)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        found = rows([self._annotations(notes)], notes)
        return tables(found, lambda: nothing(f"no picture in {self.path}", notes))

    def entries(self) -> list[AnnotatedPicture]:
        """Returns the captions of each picture, whether it is missing or not."""
        return self._pictures(self._file(), Notes())

    def _file(self) -> Location:
        location = existing(self.path)
        if not location.is_folder():
            return location
        found = list(location.search(ANNOTATIONS))
        if len(found) == 1:
            return found[0]
        several = "none"
        if found:
            several = f"several: {', '.join(file.name for file in found)}; give one"
        raise UserError(
            f"one dataset_*.json is wanted in {location.uri} or the folders below it; "
            f"there are {several}"
        )

    def _annotations(self, notes: Notes) -> AnnotationFile:
        file = self._file()
        nested = self._pictures(file, notes)
        flat = [picture._replace(name=picture.key) for picture in nested]
        # The pictures may lie in train2014/ and val2014/, or all in one folder.
        try:
            folder = picture_folder(self.pictures, [file.parent], nested, file)
        except UserError:
            folder = picture_folder(self.pictures, [file.parent], flat, file)
            return AnnotationFile(flat, folder, file)
        return AnnotationFile(nested, folder, file)

    def _pictures(self, file: Location, notes: Notes) -> list[AnnotatedPicture]:
        pictures = []
        records = records_of(read_json(file), "images", ["filename"], file, NAMELESS, notes)
        for record in records:
            key = file_name(record["filename"])
            if not key:
                notes.add(NAMELESS, f"{file.name}: {brief(record['filename'])}")
                continue
            split = split_word(_text(record.get("split")))
            if split == "restval" and self.restval_is_train:
                split = "train"
            references = []
            sentences = record.get("sentences") or []
            for sentence in sentences if isinstance(sentences, list) else [sentences]:
                if caption := _caption(sentence):
                    references.append(caption)
                else:
                    notes.add(UNUSABLE_CAPTION, f"{file.name}: {key}: {brief(sentence)}")
            folder = _text(record.get("filepath")).strip("/")
            name = f"{folder}/{key}".lstrip("/") if folder else key
            pictures.append(AnnotatedPicture(key, name, split, references))
        return pictures


def _text(value: Any) -> str:
    return utf8_name(value) if isinstance(value, str) else ""


def _caption(sentence: Any) -> str:
    """The caption as written, or its words if the file has only these; "" for none."""
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
