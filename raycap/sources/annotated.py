"""Captioned datasets: what annotation files say of each picture, joined with the pictures that are there."""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from raycap.errors import UserError
from raycap.sources.notes import MISSING, SILENT, NoteKind, Notes
from raycap.sources.rows import Row
from raycap.sources.text import utf8_name
from raycap.storage.location import Location, existing

# Folders that datasets keep their pictures in are looked at first.
_USUAL = (
    "images",
    "flicker8k_dataset",
    "flickr8k_dataset",
    "flickr30k_images",
    "flickr30k-images",
    "photos",
)
_NAMES_TRIED = 8
OUTSIDE = "a picture has to lie below the picture folder"


class AnnotatedPicture(NamedTuple):
    """One picture as an annotation file has it."""

    key: str
    name: str  # its file, relative to the picture folder
    split: str
    references: Sequence[str]


class AnnotationFile(NamedTuple):
    """Entries, and the folder that holds their pictures."""

    entries: list[AnnotatedPicture]
    folder: Location
    file: Location  # where the entries stand


def picture_folder(
    given: str, roots: Sequence[Location], entries: Sequence[AnnotatedPicture], file: Location
) -> Location:
    """The folder `given`, or the one at or below the roots that holds most of a few pictures of the entries."""
    if not entries:
        raise UserError(f"{file.uri} names no picture")
    inside = [entry.name for entry in entries if not leads_out(entry.name)]
    if not inside:
        raise UserError(f"{file.uri} names {entries[0].name!r}: {OUTSIDE}")
    tried = inside[:: max(1, len(inside) // _NAMES_TRIED)][:_NAMES_TRIED]
    if given:
        folders = [existing(given)]
    else:
        found = {folder.path: folder for root in roots for folder, _ in root.glance()}
        folders = sorted(found.values(), key=lambda folder: folder.name.lower() not in _USUAL)
    there = [sum((folder / name).is_file() for name in tried) for folder in folders]
    # All of them may be among the missing: then the full lists decide.
    if not any(there):
        names = set(inside)
        there = [len(names - missing(folder, names)) for folder in folders]
    if not any(there):
        raise UserError(
            f"none of the pictures of {file.uri} ({', '.join(tried[:3])}, ...) is in "
            f"{', '.join(folder.uri for folder in folders[:8])}: say where they are with --source.pictures"
        )
    return folders[there.index(max(there))]


def file_name(given: Any) -> str:
    """A picture's file name in a JSON document; "" where it is none."""
    return utf8_name(str(given)) if isinstance(given, str | int) and str(given).strip() else ""


def leads_out(name: str) -> bool:
    """Whether a name in an annotation file means something outside the folder that it is taken from."""
    return name.startswith("/") or ".." in name.split("/")


def missing(folder: Location, names: Iterable[str]) -> set[str]:
    """Which of the names are not in the folder; each folder on the way is listed once. Where it cannot be listed,
    nobody knows: then none is missing, and the fetching tells."""
    absent: set[str] = set()
    by_folder: dict[str, set[str]] = defaultdict(set)
    for name in names:
        by_folder[name.rpartition("/")[0]].add(name)
    for below, wanted in by_folder.items():
        try:
            there = listed(folder / below if below else folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            there = []
        except OSError:
            continue
        absent |= wanted - {f"{below}/{name}" if below else name for name in there}
    return absent


def listed(folder: Location) -> list[str]:
    """Names in a folder; an OSError where it cannot be listed."""
    if folder.filesystem is None:
        return os.listdir(folder.path)  # noqa: PTH208
    return [
        name.rstrip("/").rpartition("/")[2]
        for name in folder.filesystem.ls(folder.path, detail=False)
    ]


def rows(albums: Iterable[AnnotationFile], notes: Notes) -> Iterator[Row]:
    """A row for each entry; one whose picture is not there says so. A key that occurs twice is refused."""
    files: dict[str, str] = {}
    for album in albums:
        absent = missing(
            album.folder, [entry.name for entry in album.entries if not leads_out(entry.name)]
        )
        for entry in album.entries:
            if entry.key in files:
                raise UserError(
                    f"{entry.key} stands twice: in {files[entry.key]} and in {album.file.uri}"
                )
            files[entry.key] = album.file.uri
            uri, error = (album.folder / entry.name).uri, ""
            if leads_out(entry.name):
                uri, error = entry.name, f"{OUTSIDE}: {entry.name}"
            elif entry.name in absent:
                error = f"no such file: {uri}"
                notes.add(MISSING, entry.name)
            elif not entry.references:
                notes.add(SILENT, entry.name)
            yield Row(entry.key, uri, entry.split, entry.references, error=error)


def read_json(place: Location) -> dict[str, Any]:
    """A JSON file that holds an object; refused otherwise."""
    with place.open() as file:
        data = file.read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place.uri} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{place.uri} holds a JSON {type(value).__name__}, not an object with 'images'"
        )
    return value


def records_of(
    document: dict[str, Any],
    name: str,
    fields: Sequence[str],
    place: Location,
    kind: NoteKind,
    notes: Notes,
) -> list[dict[str, Any]]:
    """The records of the list `name` of a document that have these fields; the others are noted as `kind`. Where
    all lack one, it is another kind of file: refused."""
    records = document.get(name)
    if not isinstance(records, list):
        raise UserError(
            f"{place.uri} has no list '{name}'; it has {', '.join(itertools.islice(document, 10))}"
        )
    usable, faults = [], 0
    for number, record in enumerate(records):
        fields_there = record if isinstance(record, dict) else {}
        lacking = [field for field in fields if fields_there.get(field) is None]
        if not lacking:
            usable.append(record)
            continue
        notes.add(kind, f"{place.name}: '{name}' number {number} has no {', '.join(lacking)}")
        faults += 1
        if faults == len(records):
            raise UserError(
                f"{place.uri}: '{name}' number 0 has no {', '.join(lacking)}; nor has any other"
            )
    return usable
