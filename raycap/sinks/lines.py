"""Sinks of JSON lines: the whole rows, and the metadata file of an imagefolder."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import IO

from raycap.sinks.rows import captioned_rows, json_line, rows_of
from raycap.sinks.sink import Sink, SinkSettings
from raycap.storage import RunFolder


class JsonLines(Sink):
    """A line of JSON for each row."""

    name, ending = "jsonl", ".jsonl"

    def write(self, part: str, settings: SinkSettings) -> None:
        rows = rows_of(part, settings)
        write_lines(settings.folder, self.target(part), (json_line(row) for row in rows))


class ImageFolder(Sink):
    """metadata.jsonl as the `datasets` library reads it, to be put into the folder of the
    pictures."""

    name, ending, joined = "imagefolder", ".jsonl", "metadata.jsonl"

    def write(self, part: str, settings: SinkSettings) -> None:
        rows = captioned_rows(part, settings)
        lines = ({"file_name": row["key"], "text": row["caption"]} for row in rows)
        write_lines(
            settings.folder,
            self.target(part),
            (json.dumps(line, ensure_ascii=False) for line in lines),
        )

    def finish(self, folder: RunFolder) -> None:
        join_files(folder, folder.names(self.name), self.joined)


def write_lines(folder: RunFolder, name: str, lines: Iterable[str]) -> None:
    """Write a file of lines, however many they are; it appears whole."""
    with tempfile.TemporaryDirectory(dir=folder.scratch()) as place:
        path = f"{place}/lines"
        with open(path, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123
            file.writelines(f"{line}\n" for line in lines)
        folder.put(name, path)


def join_files(folder: RunFolder, names: Sequence[str], name: str) -> None:
    """Write the contents of these files into one, however large; it appears whole."""
    with tempfile.TemporaryDirectory(dir=folder.scratch()) as place:
        path = f"{place}/joined"
        with open(path, "wb") as joined:  # noqa: PTH123
            for each in names:
                start = joined.tell()

                def copy(file: IO[bytes], start: int = start) -> None:
                    joined.seek(start)  # an earlier try may have copied a piece
                    joined.truncate()
                    shutil.copyfileobj(file, joined)

                folder.reading(each, copy)
        folder.put(name, path)
