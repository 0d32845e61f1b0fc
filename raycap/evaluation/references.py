"""The human captions that captions are measured by, from any source. Captioned datasets need no pictures for it."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from raycap.errors import UserError
from raycap.sources import Coco, Flickr, Karpathy, Source, Table, coco
from raycap.sources.annotated import AnnotatedPicture
from raycap.sources.notes import Notes
from raycap.sources.splits import drawn_splits
from raycap.storage.location import existing


@dataclass(frozen=True)
class References:
    """Pictures that have human captions, in the source's order."""

    captions: dict[str, list[str]]  # by key
    splits: dict[str, str]
    uris: dict[str, str] = field(
        default_factory=dict
    )  # where the pictures are, if the source knows
    numbers: dict[str, int] = field(default_factory=dict)  # COCO's ids
    silent: frozenset[str] = frozenset()  # pictures without any caption

    def digest(self) -> str:
        """What tells them from others."""
        return hashlib.sha256(
            json.dumps([self.captions, self.splits], sort_keys=True).encode()
        ).hexdigest()


def read(source: Source | None) -> References:
    """All references of a source; a refusal where it has none."""
    source = with_captions(source)
    found = _of_coco(source) if isinstance(source, Coco) else _of_source(source)
    if not found.captions:
        raise UserError(
            f"{source.path} has pictures but no captions: --references takes a dataset with human captions, such "
            "as Flickr8k or COCO, or a table with a column of references (--source.references names it)"
        )
    return found


def with_captions(source: Source | None) -> Source:
    """The source, told to give what people say; a refusal where there is none."""
    if source is None or not source.path:
        raise UserError(
            "which references? Give the dataset with the human captions: --references SOURCE"
        )
    if isinstance(source, Table) and not source.references:
        return dataclasses.replace(source, references=("auto",))
    return source


def _of_source(source: Source) -> References:
    try:
        return _of_rows(source)
    except UserError:
        if not isinstance(source, Flickr | Karpathy) or source.pictures:
            raise
        entries = source.entries()  # says the same where it was not for want of pictures
        if len({entry.key for entry in entries}) < len(entries):
            raise
    return _of_entries(entries)


def _of_entries(entries: Sequence[AnnotatedPicture]) -> References:
    """Of pictures that are not there."""
    told = {entry.key: entry for entry in entries if entry.references}
    return References(
        captions={key: list(entry.references) for key, entry in told.items()},
        splits={key: entry.split for key, entry in told.items()},
        silent=frozenset(entry.key for entry in entries if not entry.references),
    )


def _of_rows(source: Source) -> References:
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    uris: dict[str, str] = {}
    silent = []
    for table in source.tables():
        columns = [table[name].to_pylist() for name in ("key", "uri", "split", "references")]
        for key, uri, split, references in zip(*columns, strict=True):
            uris[key] = uri
            if references:
                captions[key], splits[key] = references, split
            else:
                silent.append(key)
    return References(captions, splits, uris, silent=frozenset(silent))


def _of_coco(source: Coco) -> References:
    """From the annotations alone: who judges captions need not have the pictures."""
    place = existing(source.path)
    files = list(place.search(coco.ANNOTATIONS)) if place.is_folder() else [place]
    if not files:
        raise UserError(f"no captions_*.json in {place.uri} or the folders below it")
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    numbers: dict[str, int] = {}
    silent: set[str] = set()
    for file in files:
        split = source.split or coco.split_of(file.name)
        names, spoken = coco.read_annotations(file, Notes(), needs_pictures=False)
        for number, name in names.items():
            if name in captions or name in silent:
                raise UserError(f"{name} stands twice in {', '.join(each.uri for each in files)}")
            if isinstance(number, int):
                numbers[name] = number
            if number in spoken:
                captions[name] = spoken[number]
                [splits[name]] = drawn_splits([name], source.fractions) or [split]
            else:
                silent.add(name)
    return References(captions, splits, numbers=numbers, silent=frozenset(silent))
