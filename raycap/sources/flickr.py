"""Flickr8k and Flickr30k as their owners and Kaggle ship them, with or without their split files."""

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.annotated import AnnotatedPicture, AnnotationFile, listed, picture_folder, rows
from raycap.sources.flickr_captions import (
    CAPTION_FILES,
    CaptionLine,
    caption_format,
    read_captions,
)
from raycap.sources.folder import key_of
from raycap.sources.lines import Lines, LongLine
from raycap.sources.notes import UNKNOWN, UNLISTED_FOLDER, Notes, nothing
from raycap.sources.rows import tables
from raycap.sources.splits import Fractions, check_fractions, seeded_split, split_in
from raycap.storage.location import PICTURE_NAME, Location, existing, locate

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT_FILES = re.compile(
    r"(?:flickr_?(?:8|30)k[._])?(train|dev|val|valid|test)(?:[._-]?images)?\.txt", re.IGNORECASE
)


@dataclass(frozen=True)
class Flickr:
    """Flickr8k or Flickr30k: one row for each picture, with all its captions.

    The key is the picture's file name. Pictures without captions are rows too, of no split. A picture that has
    captions and is not there is a row that fails.
    """

    path: str
    """The caption file (Flickr8k.token.txt, captions.txt, results_20130124.token, results.csv), or a folder that
    holds it, at most two folders down."""
    pictures: str = ""
    """The picture folder. Empty: found near the caption file by looking for a few of the pictures."""
    split_files: bool = True
    """Take splits from Flickr_8k.trainImages.txt and its like, where they are near the caption file; a picture that
    none of them names has no split. Otherwise, or without such files, splits are drawn."""
    fractions: Fractions = (0.8, 0.1, 0.1)
    """Drawn splits: how much of the pictures goes to train, dev and test."""
    seed: int = 0
    """Drawn splits: another seed, another draw. A picture keeps its split when others are added."""

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    @property
    def trust(self) -> Trust:
        return Trust.below(locate(self.pictures).uri if self.pictures else self._found()[1].uri)

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        album = self._album(Notes())
        if not album.entries:
            raise UserError(f"{album.file.uri} holds no caption")

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        return tables(
            rows([self._album(notes)], notes), lambda: nothing(f"no picture in {self.path}", notes)
        )

    def entries(self) -> list[AnnotatedPicture]:
        """What people say of each picture, whether it is there or not."""
        return self._entries(*self._found(), Notes())

    def _album(self, notes: Notes) -> AnnotationFile:
        """All pictures that have a caption, or a place in the folder."""
        file, root = self._found()
        entries = self._entries(file, root, notes)
        folder = picture_folder(self.pictures, [root], entries, file)
        names = {entry.name for entry in entries}
        try:
            silent = sorted(
                name
                for name in listed(folder)
                if PICTURE_NAME.fullmatch(name) and name not in names
            )
        except OSError as error:
            notes.add(UNLISTED_FOLDER, f"{folder.uri}: {error.strerror or error}")
            silent = []
        silent_entries = [
            AnnotatedPicture(key_of(name), name, "", ())
            for name in silent
            if not name.startswith(".")
        ]
        return AnnotationFile([*entries, *silent_entries], folder, file)

    def _entries(self, file: Location, root: Location, notes: Notes) -> list[AnnotatedPicture]:
        captions: dict[str, list[CaptionLine]] = defaultdict(list)
        for caption in read_captions(file, notes):
            captions[caption.name].append(caption)
        listed_splits = self._listed_splits(root, captions, notes)
        entries = []
        for name, own in captions.items():
            references = [
                caption.text for caption in sorted(own, key=lambda caption: caption.number)
            ]
            drawn = "" if listed_splits else seeded_split(name, self.fractions, self.seed)
            entries.append(
                AnnotatedPicture(name, name, listed_splits.get(name, drawn), references)
            )
        return entries

    def _found(self) -> tuple[Location, Location]:
        """The caption file, and the folder at or below which everything else of it lies."""
        place = existing(self.path)
        if not place.is_folder():
            # The owners' Flickr8k_text/ has the pictures beside it, not in it.
            beside = re.search("text|token|annotation|caption", place.parent.name, re.IGNORECASE)
            return place, place.parent.parent if beside else place.parent
        found = next((file for file in place.search(CAPTION_FILES) if caption_format(file)), None)
        if found is None:
            raise UserError(
                f"no Flickr caption file in {place.uri} or two folders down: Flickr8k.token.txt, captions.txt, "
                "results_20130124.token and results.csv were looked for"
            )
        return found, place

    def _listed_splits(
        self, root: Location, known: Container[str], notes: Notes
    ) -> dict[str, str]:
        """The split of each picture that a split file names."""
        splits: dict[str, str] = {}
        files = root.search(_SPLIT_FILES) if self.split_files else ()
        for file in files:
            split = split_in(_SPLIT_FILES.fullmatch(file.name)[1])  # type: ignore[index]  # the search matched it
            for line in Lines(file).or_faults():
                if isinstance(line, LongLine):
                    notes.add(UNKNOWN, str(line))
                    continue
                name = line.strip()
                name = (
                    name if name in known or not name else f"{name}.jpg"
                )  # some lists have no endings
                if name in known and splits.setdefault(name, split) != split:
                    raise UserError(
                        f"{name} is in the split files of {splits[name]} and of {split}; so says {file.uri}"
                    )
                if name and name not in known:
                    notes.add(UNKNOWN, line.strip())
        return splits
