"""Text files, below the run's folder or beside the pictures."""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

from raycap.errors import UserError
from raycap.schema import SUCCESS
from raycap.sinks.rows import captioned_rows, planned_table, rows_of
from raycap.sinks.sink import Sink, SinkSettings
from raycap.sinks.text_names import name_beside, text_name
from raycap.storage import RunFolder, output_folder
from raycap.uris import WEB, WRAPPERS, local_path, scheme_of

# Text files that are read or written at a time, each of which waits for its disk or store.
FILES_AT_ONCE = 16


class TextFiles(Sink):
    """A text file for each picture that has a caption. A file with another text stays as it is,
    unless the mode is overwrite.

    A journal beside each mark lists the files that are written, before they are. So they can be
    removed with the rows that they came from, and files that the user has made or changed stay.
    """

    name = "txt"

    def marks(self, settings: SinkSettings) -> str:
        return f"{self.name}/{'_beside' if settings.beside else '_written'}"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        rows = (self._beside if settings.beside else self._below)(part, settings, counts)
        captions = list(rows)
        todo: dict[_Place, bytes] = {}
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            found = pool.map(lambda item: item[0].folder(settings).read(item[0].name), captions)
            for (place, caption), existing in zip(captions, found, strict=True):
                text = None if existing is None else _text(existing)
                if existing is not None and text is None:
                    counts["no_text"] += 1
                elif text is None or (text != caption.strip() and self._replaces(settings)):
                    todo[place] = f"{caption}\n".encode()
                elif text != caption.strip():
                    counts["left_alone"] += 1
            digests = {place: _digest(content) for place, content in todo.items()}
            self._write_journal(part, settings, self._read_journal(part, settings) | digests)
            writes = pool.map(
                lambda item: item[0].folder(settings).write(item[0].name, item[1]), todo.items()
            )
            list(writes)  # raises what went wrong
        return counts

    def is_final(self, counts: Mapping[str, int], settings: SinkSettings) -> bool:
        return not (counts.get("left_alone") and self._replaces(settings))

    def forget(self, part: str, settings: SinkSettings) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            own = self._read_journal(part, settings).items()
            list(pool.map(lambda item: _remove_unchanged(item[0], item[1], settings), own))
        super().forget(part, settings)
        settings.folder.remove(self._journal(part, settings))

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        lines = []
        if number := counts.get("left_alone"):
            lines.append(
                f"{number:,} text file(s) existed already with another text and were left alone "
                "(--txt-mode overwrite replaces them)"
            )
        if number := counts.get("no_text"):
            lines.append(
                f"{number:,} picture(s) have no text file: a file of that name holds no text, and "
                "stays (without --txt-beside, texts go to a folder of their own)"
            )
        if number := counts.get("neighbours"):
            lines.append(
                f"{number:,} picture(s) lie beside another one that differs in the ending alone "
                "(a.jpg, a.png): their text files have the whole name (a.jpg.txt, a.png.txt)"
            )
        return lines

    def _replaces(self, settings: SinkSettings) -> bool:
        return settings.text_mode == "overwrite"

    def _below(
        self, part: str, settings: SinkSettings, counts: Counter[str]
    ) -> "Iterator[tuple[_Place, str]]":
        """Each caption with the place of its file in the run's folder."""
        for row in captioned_rows(part, settings):
            yield _Place("", f"{self.name}/{text_name(row['key'])}"), row["caption"]

    def _beside(
        self, part: str, settings: SinkSettings, counts: Counter[str]
    ) -> "Iterator[tuple[_Place, str]]":
        """Each caption with the place of its file beside the picture."""
        planned = planned_table(part, settings)
        embedded = None if planned is None else planned["embedded"].to_pylist()
        there = _Neighbours()
        for number, row in enumerate(rows_of(part, settings)):
            if row["status"] != SUCCESS:
                continue
            uri = row["uri"]
            is_inside = embedded is not None and embedded[number]
            if is_inside or scheme_of(uri) in (*WEB, "hf", *WRAPPERS):
                raise UserError(
                    f"no text file can be put beside {uri}, which is no file in a folder: omit "
                    f"--txt-beside, and texts go to {settings.folder / self.name}"
                )
            path = local_path(uri)
            parent, slash, name = (uri if path is None else path).rpartition("/")
            folder = parent or slash or "."
            text, has_neighbour = name_beside(name, functools.partial(there.has, folder))
            counts["neighbours"] += has_neighbour
            yield _Place(folder, text), row["caption"]

    def _journal(self, part: str, settings: SinkSettings) -> str:
        return f"{self.marks(settings)}/{PurePosixPath(part).stem}.files"

    def _read_journal(self, part: str, settings: SinkSettings) -> "dict[_Place, str]":
        content = settings.folder.read(self._journal(part, settings)) or b""
        lines = [json.loads(line) for line in content.splitlines()]
        return {_Place(folder, name): digest for folder, name, digest in lines}

    def _write_journal(
        self, part: str, settings: SinkSettings, digests: "Mapping[_Place, str]"
    ) -> None:
        lines = (f"{json.dumps([*place, digest])}\n" for place, digest in digests.items())
        settings.folder.write(self._journal(part, settings), "".join(lines).encode())


class _Place(NamedTuple):
    """Where a text file is."""

    uri: str  # of its folder; "" for the run's
    name: str

    def folder(self, settings: SinkSettings) -> RunFolder:
        return output_folder(self.uri) if self.uri else settings.folder


def _remove_unchanged(place: _Place, digest: str, settings: SinkSettings) -> None:
    folder = place.folder(settings)
    content = folder.read(place.name)
    if content is not None and _digest(content) == digest:
        folder.remove(place.name)


class _Neighbours:
    """Which files lie beside a picture."""

    def __init__(self) -> None:
        self._names: tuple[str, set[str]] = ("", set())  # of the last folder in a store

    def has(self, parent: str, name: str) -> bool:
        folder = output_folder(parent)
        if folder.is_local:
            return os.path.lexists(folder.path(name))
        if self._names[0] != parent:
            self._names = (parent, set(folder.names(hidden=True)))
        return name in self._names[1]


def _text(content: bytes) -> str | None:
    """What a text file says; None for a file of another kind."""
    try:
        return None if b"\0" in content else content.decode().strip()
    except UnicodeDecodeError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
