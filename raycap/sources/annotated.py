"""Captioned datasets: the pictures that annotation files name, joined with those that exist."""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from raycap.errors import UserError
from raycap.sources.manifest import Row, utf8_name
from raycap.sources.notes import MISSING, UNCAPTIONED, NoteKind, Notes
from raycap.storage.location import Location, existing

# Folders that datasets keep their pictures in are looked at first.
_USUAL_FOLDERS = (
    *("images", "photos", "flicker8k_dataset", "flickr8k_dataset"),
    *("flickr30k_images", "flickr30k-images"),
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
    """The pictures of an annotation file, and the folder that holds them."""

    pictures: list[AnnotatedPicture]
    folder: Location
    file: Location


def picture_folder(
    given: str, roots: Sequence[Location], pictures: Sequence[AnnotatedPicture], file: Location
) -> Location:
    """Returns the folder `given`, or the one at or below the roots with most of the pictures."""
    if not pictures:
        raise UserError(f"{file.uri} names no picture")
    inside = [picture.name for picture in pictures if not leads_out(picture.name)]
    if not inside:
        raise UserError(f"{file.uri} names {pictures[0].name!r}: {OUTSIDE}")
    tried = inside[:: max(1, len(inside) // _NAMES_TRIED)][:_NAMES_TRIED]
    if given:
        folders = [existing(given)]
    else:
        found = {folder.path: folder for root in roots for folder, _ in root.folders_below()}
        folders = sorted(
            found.values(), key=lambda folder: folder.name.lower() not in _USUAL_FOLDERS
        )
    counts = [sum((folder / name).is_file() for name in tried) for folder in folders]
    if not any(counts):
        # All that were tried may be missing: compare the full lists.
        names = set(inside)
        counts = [len(names - missing(folder, names)) for folder in folders]
    if not any(counts):
        raise UserError(
            f"none of the pictures of {file.uri} ({', '.join(tried[:3])}, ...) is in "
            f"{', '.join(folder.uri for folder in folders[:8])}: say where they are with "
            "--source.pictures"
        )
    return folders[counts.index(max(counts))]


def file_name(given: Any) -> str:
    """Returns a picture's file name in a JSON document; "" if it is none."""
    return utf8_name(str(given)) if isinstance(given, str | int) and str(given).strip() else ""


def leads_out(name: str) -> bool:
    """Whether a file name means something outside of the folder that it is relative to."""
    return name.startswith("/") or ".." in name.split("/")


def missing(folder: Location, names: Iterable[str]) -> set[str]:
    """Returns the names that are not in the folder; each folder on the way is listed once.

    If a folder cannot be listed, its names do not count as missing: fetching them decides.
    """
    by_folder: dict[str, set[str]] = defaultdict(set)
    for name in names:
        by_folder[name.rpartition("/")[0]].add(name)
    absent: set[str] = set()
    for below, wanted in by_folder.items():
        try:
            present = names_in(folder / below if below else folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            present = []
        except OSError:
            continue
        absent |= wanted - {f"{below}/{name}" if below else name for name in present}
    return absent


def names_in(folder: Location) -> list[str]:
    """Returns the names in a folder; raises OSError if it cannot be listed."""
    if folder.filesystem is None:
        return os.listdir(folder.path)  # noqa: PTH208
    paths = folder.filesystem.ls(folder.path, detail=False)
    return [path.rstrip("/").rpartition("/")[2] for path in paths]


def rows(files: Iterable[AnnotationFile], notes: Notes) -> Iterator[Row]:
    """Yields a row for each picture; that of a missing one has an error.

    Raises UserError for a key that occurs twice.
    """
    file_of: dict[str, str] = {}
    for file in files:
        inside = [picture.name for picture in file.pictures if not leads_out(picture.name)]
        absent = missing(file.folder, inside)
        for picture in file.pictures:
            if picture.key in file_of:
                first = file_of[picture.key]
                raise UserError(f"{picture.key} occurs twice: in {first} and in {file.file.uri}")
            file_of[picture.key] = file.file.uri
            uri, error = (file.folder / picture.name).uri, ""
            if leads_out(picture.name):
                uri, error = picture.name, f"{OUTSIDE}: {picture.name}"
            elif picture.name in absent:
                error = f"no such file: {uri}"
                notes.add(MISSING, picture.name)
            elif not picture.references:
                notes.add(UNCAPTIONED, picture.name)
            yield Row(picture.key, uri, picture.split, picture.references, error=error)


def read_json(file: Location) -> dict[str, Any]:
    """Reads a JSON file; raises UserError unless it holds an object."""
    with file.open() as stream:
        data = stream.read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.uri} is not JSON: {error}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{file.uri} holds a JSON {kind}, not an object with 'images'")
    return value


def records_of(
    document: dict[str, Any],
    name: str,
    fields: Sequence[str],
    file: Location,
    kind: NoteKind,
    notes: Notes,
) -> list[dict[str, Any]]:
    """Returns the records of the list `name` that have all `fields`; others are noted as `kind`.

    Raises UserError if no record has them: then it is another kind of file.
    """
    records = document.get(name)
    if not isinstance(records, list):
        names = ", ".join(itertools.islice(document, 10))
        raise UserError(f"{file.uri} has no list '{name}'; it has {names}")
    usable, faults = [], 0
    for number, record in enumerate(records):
        present = record if isinstance(record, dict) else {}
        lacking = [field for field in fields if present.get(field) is None]
        if not lacking:
            usable.append(record)
            continue
        notes.add(kind, f"{file.name}: '{name}' number {number} has no {', '.join(lacking)}")
        faults += 1
        if faults == len(records):
            raise UserError(
                f"{file.uri}: '{name}' number 0 has no {', '.join(lacking)}; nor has any other"
            )
    return usable
