"""Reads the references (human captions) of a source. For most captioned datasets the pictures are
not needed."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from raycap.errors import UserError
from raycap.sources import Coco, Flickr, Karpathy, Source, Table, coco
from raycap.sources.notes import Notes
from raycap.sources.splits import drawn_splits, split_word
from raycap.storage.location import existing


@dataclass(frozen=True)
class References:
    """Pictures that have human captions, in the order of the source."""

    captions: dict[str, list[str]]  # by key
    splits: dict[str, str]
    uris: dict[str, str] = field(default_factory=dict)  # of the pictures, if the source knows them
    numbers: dict[str, int] = field(default_factory=dict)  # COCO's ids
    uncaptioned: frozenset[str] = frozenset()  # pictures without any caption

    def digest(self) -> str:
        """A hash of all captions and splits."""
        data = json.dumps([self.captions, self.splits], sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()

    def keys_of_split(self, split: str) -> list[str]:
        """The pictures of a split that have captions; "" for all. Raises UserError if there are
        none."""
        split = split_word(split)
        if not split:
            return list(self.captions)
        keys = [key for key in self.captions if self.splits[key] == split]
        if not keys:
            known = sorted({name for name in self.splits.values() if name})
            raise UserError(
                f"no picture of the references is of split {split!r}; they have "
                f"{', '.join(known) or 'no splits'}"
            )
        return keys


def read_references(source: Source | None) -> References:
    """All references of a source. Raises UserError if it has none."""
    source = with_captions(source)
    if isinstance(source, Coco):
        found = _read_coco(source)
    else:
        try:
            found = _read_rows(source)
        except UserError:
            if not isinstance(source, Flickr | Karpathy) or source.pictures:
                raise
            # Perhaps the pictures are missing: try to read the captions alone. If they are the
            # cause of the error, this raises it again.
            entries = source.entries()
            keys = {entry.key for entry in entries}
            if len(keys) < len(entries):
                raise
            captioned = {entry.key: entry for entry in entries if entry.references}
            found = References(
                {key: list(entry.references) for key, entry in captioned.items()},
                {key: entry.split for key, entry in captioned.items()},
                uncaptioned=frozenset(keys - captioned.keys()),
            )
    if not found.captions:
        raise UserError(
            f"{source.path} has pictures but no captions: --references takes a dataset with human "
            "captions, such as Flickr8k or COCO, or a table with a column of references "
            "(--source.references names it)"
        )
    return found


def with_captions(source: Source | None) -> Source:
    """The source, with options that make it read captions. Raises UserError if it is None."""
    if source is None or not source.path:
        raise UserError(
            "which references? Give the dataset with the human captions: --references SOURCE"
        )
    if isinstance(source, Table) and not source.references:
        return dataclasses.replace(source, references=("auto",))
    return source


def _read_rows(source: Source) -> References:
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    uris: dict[str, str] = {}
    uncaptioned = []
    for table in source.tables():
        columns = [table[name].to_pylist() for name in ("key", "uri", "split", "references")]
        for key, uri, split, references in zip(*columns, strict=True):
            uris[key] = uri
            if references:
                captions[key], splits[key] = references, split
            else:
                uncaptioned.append(key)
    return References(captions, splits, uris, uncaptioned=frozenset(uncaptioned))


def _read_coco(source: Coco) -> References:
    """Read the annotation files only. The pictures are not needed."""
    place = existing(source.path)
    files = list(place.search(coco.ANNOTATIONS)) if place.is_folder() else [place]
    if not files:
        raise UserError(f"no captions_*.json in {place.uri} or the folders below it")
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    numbers: dict[str, int] = {}
    uncaptioned: set[str] = set()
    for file in files:
        split = source.split or coco.split_of(file.name)
        names, by_number = coco.read_annotations(file, Notes(), needs_pictures=False)
        for number, name in names.items():
            if name in captions or name in uncaptioned:
                raise UserError(f"{name} is twice in {', '.join(each.uri for each in files)}")
            if isinstance(number, int):
                numbers[name] = number
            if number in by_number:
                captions[name] = by_number[number]
                [splits[name]] = drawn_splits([name], source.fractions) or [split]
            else:
                uncaptioned.add(name)
    return References(captions, splits, numbers=numbers, uncaptioned=frozenset(uncaptioned))
