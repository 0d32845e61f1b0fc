"""What is there and what is missing of a well-known data set in a local folder, by names alone.

Flickr8k: captions: Flickr8k.token.txt
Flickr8k: pictures: missing: a folder such as Flicker8k_Dataset with 8,091 pictures
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raycap.sources.folder import PICTURE_NAME
from raycap.storage.location import Location, locate

PAGE = "docs/data.md"
DEPTH = 2  # folders below the given one that are looked into
MOST_ENTRIES = 200_000  # of one folder


class Found(NamedTuple):
    """The files of a folder and of those below it: paths, and numbers of pictures by folder."""

    files: list[str]
    pictures: dict[str, int]


@dataclass(frozen=True)
class FilePart:
    """Files with annotations."""

    name: str
    pattern: str  # of their names
    wanted: str  # what is missing, for people
    count: int = 1

    def state(self, found: Found) -> tuple[bool, str]:
        """Whether it is there, and what is said of it."""
        names = [path for path in found.files if re.fullmatch(self.pattern, _name(path), re.I)]
        if len(names) >= self.count:
            return True, ", ".join(sorted(names))
        some = f"only {', '.join(sorted(names))} of " if names else ""
        return False, f"missing: {some}{self.wanted}"


@dataclass(frozen=True)
class PicturePart:
    """A folder with pictures. `least` is how many of them a whole copy has."""

    name: str
    folders: str  # pattern of their names; "" for any
    least: int
    wanted: str

    def state(self, found: Found) -> tuple[bool, str]:
        fitting = {
            folder: count
            for folder, count in found.pictures.items()
            if re.fullmatch(self.folders or ".*", _name(folder), re.I)
        }
        if not fitting:
            return False, f"missing: {self.wanted}"
        folder, count = max(fitting.items(), key=lambda entry: entry[1])
        where = folder or "the folder itself"
        if count < self.least:
            return False, f"{count:,} of {self.least:,} in {where}: the others are missing"
        return True, f"{count:,} in {where}"


Part = FilePart | PicturePart


@dataclass(frozen=True)
class DataSet:
    """A data set, the names by which it is known, and its parts."""

    name: str
    known_by: str  # pattern of the name of a file or folder
    parts: tuple[Part, ...]


def _coco(year: int, training: int, validation: int) -> DataSet:
    counts = {"train": training, "val": validation}
    parts: list[Part] = []
    for split, count in counts.items():
        parts += [
            FilePart(
                f"{split} captions",
                rf"captions_{split}{year}\.json|dataset_coco\.json",
                f"annotations/captions_{split}{year}.json, or Karpathy's dataset_coco.json",
            ),
            PicturePart(
                f"{split} pictures",
                f"{split}{year}",
                count,
                f"the folder {split}{year} with {count:,} pictures",
            ),
        ]
    return DataSet(f"COCO {year}", rf"(captions_)?(train|val){year}(\.json)?", tuple(parts))


DATA_SETS = (
    DataSet(
        "Flickr8k",
        r".*flick(r|er)_?8k.*",
        (
            FilePart(
                "captions",
                r"flickr_?8k\.token(\.txt)?|captions\.(txt|csv)",
                "Flickr8k.token.txt, or captions.txt as Kaggle ships it",
            ),
            FilePart(
                "split lists",
                r"flickr_?8k\.(train|dev|test)images\.txt",
                "Flickr_8k.trainImages.txt, .devImages.txt and .testImages.txt; without them "
                "splits are drawn",
                count=3,
            ),
            PicturePart(
                "pictures", "", 8_091, "a folder such as Flicker8k_Dataset with 8,091 pictures"
            ),
        ),
    ),
    DataSet(
        "Flickr30k",
        r".*flickr_?(annotations_)?30k.*",
        (
            FilePart(
                "captions",
                r"results(_20130124)?\.(token|csv)|dataset_flickr30k\.json"
                r"|flickr_annotations_30k\.csv",
                "results_20130124.token, results.csv as Kaggle ships it, dataset_flickr30k.json "
                "with Karpathy's splits, or flickr_annotations_30k.csv of Hugging Face",
            ),
            PicturePart(
                "pictures", "", 31_014, "a folder such as flickr30k-images with 31,783 pictures"
            ),
        ),
    ),
    _coco(2014, 82_783, 40_504),
    _coco(2017, 118_287, 5_000),
)


class PartState(NamedTuple):
    """One part of a data set, as it was found."""

    data_set: str
    part: str
    is_there: bool
    text: str

    def __str__(self) -> str:
        return f"{self.data_set}: {self.part}: {self.text}"


def layout_of(path: str) -> list[PartState]:
    """The parts of the data set at `path`, a local folder or its annotations; none if it is not a
    known one."""
    folder = locate(path)
    if folder.filesystem is not None or not folder.exists():
        return []
    if not folder.is_folder():
        folder = folder.parent
    if folder.name == "annotations":
        folder = folder.parent
    found = _found(folder)
    names = {folder.name}
    for path in (*found.pictures, *found.files):
        names.update(path.split("/"))
    for data_set in DATA_SETS:
        if any(re.fullmatch(data_set.known_by, name, re.I) for name in names):
            states = ((part.name, *part.state(found)) for part in data_set.parts)
            return [PartState(data_set.name, *state) for state in states]
    return []


def _found(folder: Location) -> Found:
    files: list[str] = []
    pictures: dict[str, int] = {}
    for below, names in _walk(folder):
        others = [name for name in names if not PICTURE_NAME.fullmatch(name)]
        if len(others) < len(names):
            pictures[below] = len(names) - len(others)
        files += [f"{below}/{name}".lstrip("/") for name in others]
    return Found(files, pictures)


def _walk(folder: Location) -> Iterator[tuple[str, list[str]]]:
    """Each folder, by its path below the first one, and the names of its files."""
    level = [""]
    for _ in range(DEPTH + 1):
        next_level: list[str] = []
        for below in level:
            entries = (folder / below if below else folder).entries(MOST_ENTRIES)
            yield below, [name for name, is_folder in entries if not is_folder]
            next_level += [f"{below}/{name}".lstrip("/") for name, is_dir in entries if is_dir]
        level = next_level


def _name(path: str) -> str:
    return path.rpartition("/")[2]
