"""Captioned datasets: what annotation files say of each picture, joined with the pictures that are there."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from raycap.refusal import Refusal
from raycap.sources.place import Place, existing
from raycap.sources.rows import Row, Tally, counted

# Folders that datasets keep their pictures in are looked at first.
_USUAL = ("images", "flicker8k_dataset", "flickr8k_dataset", "flickr30k_images", "flickr30k-images", "photos")
_NAMES_TRIED = 8


class Entry(NamedTuple):
    """One picture as an annotation file has it."""

    key: str
    name: str  # its file, relative to the picture folder
    split: str
    references: Sequence[str]


class Album(NamedTuple):
    """Entries, and the folder that holds their pictures."""

    entries: list[Entry]
    folder: Place
    file: Place  # where the entries stand


def picture_folder(given: str, roots: Sequence[Place], entries: Sequence[Entry], file: Place) -> Place:
    """The folder `given`, or the one at or below the roots that holds most of a few pictures of the entries."""
    if not entries:
        raise Refusal(f"{file.uri} names no picture")
    for entry in entries:
        if entry.name.startswith("/") or ".." in entry.name.split("/"):
            raise Refusal(f"{file.uri} names {entry.name!r}: a picture has to lie below the picture folder")
    tried = [entry.name for entry in entries[:: max(1, len(entries) // _NAMES_TRIED)]][:_NAMES_TRIED]
    if given:
        folders = [existing(given)]
    else:
        found = {folder.path: folder for root in roots for folder, _ in root.glance()}
        folders = sorted(found.values(), key=lambda folder: folder.name.lower() not in _USUAL)
    there = [sum((folder / name).is_file() for name in tried) for folder in folders]
    # All of them may be among the missing: then the full lists decide.
    if not any(there):
        names = {entry.name for entry in entries}
        there = [len(names & present(folder, names)) for folder in folders]
    if not any(there):
        raise Refusal(
            f"none of the pictures of {file.uri} ({', '.join(tried[:3])}, ...) is in "
            f"{', '.join(folder.uri for folder in folders[:8])}: say where they are with --source.pictures"
        )
    return folders[there.index(max(there))]


def present(folder: Place, names: Iterable[str]) -> set[str]:
    """Which of the names are in the folder; each folder on the way is listed once."""
    there: set[str] = set()
    for below in {name.rpartition("/")[0] for name in names}:
        names_there = listed(folder / below if below else folder)
        there.update(f"{below}/{name}" if below else name for name in names_there)
    return there & set(names)


def listed(folder: Place) -> list[str]:
    """Names in a folder; none where it cannot be listed."""
    try:
        if folder.filesystem is None:
            return os.listdir(folder.path)  # noqa: PTH208
        return [name.rstrip("/").rpartition("/")[2] for name in folder.filesystem.ls(folder.path, detail=False)]
    except OSError:
        return []


def rows(albums: Iterable[Album]) -> Iterator[Row]:
    """A row for each entry whose picture is there; a key that occurs twice is refused."""
    files: dict[str, str] = {}
    for album in albums:
        there = present(album.folder, [entry.name for entry in album.entries])
        for entry in album.entries:
            if entry.key in files:
                raise Refusal(f"{entry.key} stands twice: in {files[entry.key]} and in {album.file.uri}")
            files[entry.key] = album.file.uri
            if entry.name in there:
                yield Row(entry.key, (album.folder / entry.name).uri, entry.split, entry.references)


def missing_notes(albums: Iterable[Album]) -> list[str]:
    """Which entries have no picture, and which pictures have no caption."""
    missing, silent, captions = Tally(), Tally(), 0
    for album in albums:
        there = present(album.folder, [entry.name for entry in album.entries])
        for entry in album.entries:
            if entry.name not in there:
                missing.add(entry.name)
                captions += len(entry.references)
            elif not entry.references:
                silent.add(entry.name)
    absent = missing.note("picture that is not there", "pictures that are not there")
    return [
        *(f"{counted(captions, 'caption', 'captions')} of {note}" for note in absent),
        *silent.note("picture without captions", "pictures without captions"),
    ]


def read_json(place: Place) -> dict[str, Any]:
    """A JSON file that holds an object; refused otherwise."""
    try:
        with place.open() as file:
            value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{place.uri} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(f"{place.uri} holds a JSON {type(value).__name__}, not an object with 'images'")
    return value


def records_of(document: dict[str, Any], name: str, fields: Sequence[str], place: Place) -> list[dict[str, Any]]:
    """The list `name` of a document, each record with these fields."""
    records = document.get(name)
    if not isinstance(records, list):
        raise Refusal(f"{place.uri} has no list '{name}'; it has {', '.join(itertools.islice(document, 10))}")
    for number, record in enumerate(records):
        lacking = [field for field in fields if not isinstance(record, dict) or field not in record]
        if lacking:
            raise Refusal(f"{place.uri}: '{name}' number {number} has no {', '.join(lacking)}")
    return records
