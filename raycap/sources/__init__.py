"""Where pictures and captions come from: each source, whatever it reads, gives manifest rows.

A source is a frozen dataclass; its fields are its options. To add one, write its class and its line in SOURCES.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raycap.sources.coco import Coco
from raycap.sources.detection import detect
from raycap.sources.flickr import Flickr
from raycap.sources.folder import Folder
from raycap.sources.huggingface import HuggingFace
from raycap.sources.karpathy import Karpathy
from raycap.sources.notes import Notes
from raycap.sources.shapes import Shapes
from raycap.sources.table import Table
from raycap.sources.urls import Urls
from raycap.uris import uri_of

if TYPE_CHECKING:
    import pyarrow as pa

    from raycap.fetch import Trust

__all__ = [
    "SOURCES",
    "Coco",
    "Flickr",
    "Folder",
    "HuggingFace",
    "Karpathy",
    "Notes",
    "Shapes",
    "Source",
    "Table",
    "Urls",
    "anywhere",
    "detect",
]


class Source(Protocol):
    """What every source can do. It holds options only, so it travels to other processes as it is."""

    @property
    def path(self) -> str:
        """What the user gave: a folder, file, URI or URL."""

    @property
    def trust(self) -> "Trust":
        """Which local paths and stores its rows may name: what lies below its own folder, or in its own bucket."""

    @property
    def names_urls(self) -> bool:
        """Whether most rows are addresses on the web, of which one task fetches many at a time."""

    @property
    def carried(self) -> tuple[str, ...]:
        """The user's own columns behind the manifest's."""

    def check(self) -> None:
        """Refuse early what cannot be read, naming what was looked for and where; cheap."""

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        """Manifest rows (and the carried columns), first 64, then at most 1,000 at a time, in an order that is the
        same as long as the files are. NumberedKeys are unique, and stay when rows are added.

        What cannot be used and has a key is a row with its `error`. What has none is added to `notes`, with other
        oddities; they are whole when the last table has come.
        """


def anywhere(source: Source) -> Source:
    """The same source for a process with another working directory, as workers on a cluster are."""
    given = {name: getattr(source, name, "") for name in ("path", "pictures")}
    local = {name: path for name, path in given.items() if path and os.path.exists(path)}  # noqa: PTH110
    options: Any = source
    moved: Source = dataclasses.replace(
        options, **{name: uri_of(str(Path(path).absolute())) for name, path in local.items()}
    )
    return moved


SOURCES: dict[str, Any] = {
    "folder": Folder,
    "urls": Urls,
    "table": Table,
    "flickr": Flickr,
    "coco": Coco,
    "karpathy": Karpathy,
    "huggingface": HuggingFace,
    "shapes": Shapes,
}
