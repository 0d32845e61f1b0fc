"""What a sink is, and how one part of a table is written by it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar, Literal

import pyarrow as pa

from raycap.fetch import Fetch, Trust
from raycap.sources import Source
from raycap.storage import RunFolder
from raycap.storage.retry import with_retries

TextMode = Literal["skip", "overwrite"]


@dataclass(frozen=True)
class SinkSettings:
    """Where and how the other forms are written."""

    folder: RunFolder
    text_mode: TextMode
    beside: bool  # text files go beside the pictures, not into the run's folder
    fetch: Fetch
    trust: Trust
    source: Source | None = None  # what has the pictures that it holds itself
    # The rows of the plan that a part is made of, in its order. They say which pictures the source
    # holds itself. None: none.
    planned: Callable[[RunFolder, str], Iterator[pa.Table]] | None = None
    only: str = ""  # --also-only: which rows of the table are written


class Sink:
    """One other form. `write` turns one part of the table into the file `target(part)`, or into
    files of other names."""

    name: ClassVar[str]  # of its folder in the run's folder
    ending: ClassVar[str] = ""  # of the file that is written for each part, if there is one
    joined: ClassVar[str] = ""  # a file that `finish` makes of all parts

    def target(self, part: str) -> str:
        """The file in the run's folder that holds a part."""
        return f"{self.name}/{PurePosixPath(part).stem}{self.ending}"

    def marks(self, settings: SinkSettings) -> str:
        """The folder of the files that say which parts are written."""
        return f"{self.name}/_written"

    def mark(self, part: str, settings: SinkSettings) -> str:
        """The file that says that a part is written, and what is to be said about it."""
        return f"{self.marks(settings)}/{PurePosixPath(part).stem}.json"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int] | None:
        """Returns counts of what `remarks` tells."""
        raise NotImplementedError

    def is_final(self, counts: Mapping[str, int], settings: SinkSettings) -> bool:
        """Whether a part that has been written with these counts stays as it is."""
        return True

    def forget(self, part: str, settings: SinkSettings) -> None:
        """Remove what was written of a part that is not in the table any more."""
        if self.ending:
            settings.folder.remove(self.target(part))
        settings.folder.remove(self.mark(part, settings))

    def finish(self, folder: RunFolder) -> None:
        """Called after all parts."""

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        """What a person should know, from the counts of all parts."""
        return []


def write_part(sink: Sink, part: str, settings: SinkSettings) -> dict[str, int]:
    """Write one part in one other form, and the mark that it is written; may run in a task.
    Returns the counts that are in the mark."""

    def write() -> dict[str, int]:
        counts = dict(sink.write(part, settings) or {})
        settings.folder.write_json(sink.mark(part, settings), counts)
        return counts

    return with_retries(write, f"write {sink.name} of {part}")
