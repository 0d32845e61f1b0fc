"""Finds out which kind of source a path is, from the path and from what lies there."""

import re
from typing import Any

from raycap.errors import UserError
from raycap.sources.folder import PICTURE_NAME
from raycap.sources.table import ENDINGS as TABLE_ENDINGS
from raycap.sources.tar_paths import TAR
from raycap.sources.urls import ENDINGS as LIST_ENDINGS
from raycap.storage.location import Location, existing

_PARQUET = re.compile(r".*\.parquet", re.IGNORECASE)


def kind_of_path(path: str, sources: dict[str, Any]) -> str:
    """Returns the kind, a name in `sources`, of what is at `path`; raises UserError for none."""
    for kind, source in sources.items():
        if source.accepts(path):
            return kind
    location = existing(path)
    if location.is_folder():
        return _kind_of_folder(location, sources)
    for kind, source in sources.items():
        if source.recognises(location):
            return kind
    raise UserError(
        f"cannot tell what {location.uri} is: pictures, lists ({', '.join(LIST_ENDINGS)}), tables "
        f"({', '.join(TABLE_ENDINGS)}), tars, COCO and Karpathy JSON and Flickr caption files are "
        "known by name and first lines; say which with --source KIND"
    )


def _kind_of_folder(folder: Location, sources: dict[str, Any]) -> str:
    """A dataset if its annotation files are no deeper than the pictures, else a plain folder.

    A folder of photos may hold a dataset far down, or tables that an earlier run wrote there.
    """
    patterns = {kind: source.folder_files for kind, source in sources.items()}
    named = {kind: pattern for kind, pattern in patterns.items() if pattern}
    patterns_of_files = (*named.values(), _PARQUET, TAR)
    any_file = "|".join(f"(?:{pattern.pattern})" for pattern in patterns_of_files)
    found: dict[str, Location] = {}
    parquet = tar = None
    for file in folder.search(re.compile(any_file, re.IGNORECASE)):
        kinds = [kind for kind, names in named.items() if names.fullmatch(file.name)]
        if not kinds and TAR.fullmatch(file.name):
            tar = tar or file
        elif not kinds:
            parquet = parquet or file
        elif kinds[0] not in found and sources[kinds[0]].recognises_in_folder(file):
            found[kinds[0]] = file

    picture = next(folder.search(PICTURE_NAME), None)
    if picture:
        depth = picture.path.count("/")
        found = {kind: file for kind, file in found.items() if file.path.count("/") <= depth}
    if len(found) > 1:
        listed = ", ".join(f"{file.uri} ({kind})" for kind, file in found.items())
        raise UserError(
            f"{folder.uri} may be several things: {listed}; say which with --source KIND"
        )
    if found:
        return next(iter(found))
    # Beside each tar img2dataset writes a Parquet file about its pictures.
    if tar and not picture and (not parquet or tar.path.count("/") <= parquet.path.count("/")):
        return next(kind for kind, source in sources.items() if source.recognises(tar))
    if parquet and not picture:
        return next(kind for kind, source in sources.items() if source.recognises(parquet))
    return "folder"
