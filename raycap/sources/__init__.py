"""Where pictures and captions come from: each source gives manifest rows, whatever it reads.

A source is a frozen dataclass; its fields are its options. To add one, write its class, a subclass
of `SourceDefaults` with what `Source` asks for, and its line in SOURCES.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from raycap.sources.coco import Coco
from raycap.sources.detection import kind_of_path
from raycap.sources.flickr import Flickr
from raycap.sources.folder import Folder
from raycap.sources.huggingface import HuggingFace
from raycap.sources.karpathy import Karpathy
from raycap.sources.notes import Notes
from raycap.sources.shapes import Shapes
from raycap.sources.source import Source, SourceDefaults
from raycap.sources.table import Table
from raycap.sources.urls import Urls
from raycap.sources.webdataset import WebDataset
from raycap.uris import is_local, uri_of

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
    "SourceDefaults",
    "Table",
    "Urls",
    "WebDataset",
    "detect",
    "with_absolute_paths",
]

# In this order `detect` asks them whether a path is for them.
SOURCES: dict[str, Any] = {
    "folder": Folder,
    "flickr": Flickr,
    "karpathy": Karpathy,
    "coco": Coco,
    "webdataset": WebDataset,
    "huggingface": HuggingFace,
    "urls": Urls,
    "table": Table,
    "shapes": Shapes,
}


def detect(path: str) -> str:
    """Returns the name in SOURCES of what is at `path`; raises UserError if nothing fits."""
    return kind_of_path(path, SOURCES)


def with_absolute_paths(source: Source) -> Source:
    """Returns the source for processes with other working directories, as on a cluster."""
    options: Any = source
    changes = {}
    for name in ("path", "pictures"):
        path = getattr(source, name, "")
        is_pattern = is_local(path) and re.search(r"[*?\[{]", path) is not None
        if path and (is_pattern or os.path.exists(path)):  # noqa: PTH110
            changes[name] = uri_of(str(Path(path).absolute()))
    moved: Source = dataclasses.replace(options, **changes)
    return moved
