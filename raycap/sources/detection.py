"""Which kind of source a path is, told by what lies there."""

import re

from raycap.errors import UserError
from raycap.sources import coco, flickr_captions, huggingface, karpathy
from raycap.sources.lines import first_line, head, name_unpacked
from raycap.sources.records import Records, format_of
from raycap.storage.location import PICTURE_NAME, Location, existing, locate
from raycap.uris import is_web

_LISTS = (".txt", ".list", ".lst", ".urls")
_TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq")
_FOLDERS_WITH = {
    "flickr": flickr_captions.CAPTION_FILES,
    "karpathy": karpathy.ANNOTATIONS,
    "coco": coco.ANNOTATIONS,
    "huggingface": huggingface.METADATA,
    "parquet": huggingface.PARQUET,
}
_ANNOTATIONS = re.compile(
    "|".join(f"(?:{pattern.pattern})" for pattern in _FOLDERS_WITH.values()), re.IGNORECASE
)
# JSON files are told by the words near their beginning.
_HEAD_BYTES = 1 << 16


def detect(path: str) -> str:
    """The name in SOURCES of what is at `path`; a refusal that says what was looked for where nothing fits."""
    if is_web(path):
        return "urls"
    if path.startswith("hf://"):
        return "huggingface"
    if any(mark in path for mark in "*?") and not locate(path).exists():
        format_of(path)
        return "table"
    place = existing(path)
    kind = _of_folder(place) if place.is_folder() else _of_file(place)
    if kind:
        return kind
    raise UserError(
        f"cannot tell what {place.uri} is: pictures, lists ({', '.join(_LISTS)}), tables ({', '.join(_TABLES)}), "
        "COCO and Karpathy JSON and Flickr caption files are known by name and first lines; --source KIND says it"
    )


def _of_folder(folder: Location) -> str:
    """By annotation files that are no deeper than the pictures: a folder of photos may hold a dataset far down, or
    tables that an earlier run wrote there."""
    found: dict[str, Location] = {}
    for file in folder.search(_ANNOTATIONS):
        kind = next(
            kind for kind, pattern in _FOLDERS_WITH.items() if pattern.fullmatch(file.name)
        )
        if kind not in found and (kind != "flickr" or flickr_captions.caption_format(file)):
            found[kind] = file
    picture = next(folder.search(PICTURE_NAME), None)
    parquet = found.pop("parquet", None)
    near = {kind: file for kind, file in found.items() if not (picture and _deeper(file, picture))}
    if len(near) > 1:
        listed = ", ".join(f"{file.uri} ({kind})" for kind, file in near.items())
        raise UserError(
            f"{folder.uri} may be several things: {listed}; say which with --source KIND"
        )
    if near:
        return next(iter(near))
    return _of_parquet(parquet) if parquet and not picture else "folder"


def _deeper(file: Location, than: Location) -> bool:
    return file.path.count("/") > than.path.count("/")


def _of_parquet(file: Location) -> str:
    return (
        "huggingface" if huggingface.picture_column(Records(file, "parquet").schema()) else "table"
    )


def _of_file(file: Location) -> str:
    """By name, and by content where a name can mean several kinds; "" for none."""
    name = name_unpacked(file.name)
    if PICTURE_NAME.fullmatch(name):
        return "folder"
    if flickr_captions.CAPTION_FILES.fullmatch(file.name) and flickr_captions.caption_format(file):
        return "flickr"
    if huggingface.METADATA.fullmatch(file.name):
        return "huggingface"
    if name.endswith((".parquet", ".pq")):
        return _of_parquet(file)
    if name.endswith(_LISTS):
        return "urls"
    if name.endswith(_TABLES):
        return "table"
    return _of_json(file) if name.endswith(".json") else ""


def _of_json(file: Location) -> str:
    start = head(file, _HEAD_BYTES)
    if b'"sentences"' in start or b'"sentids"' in start:
        return "karpathy"
    if b'"images"' in start or b'"annotations"' in start:
        return "coco"
    return "table" if first_line(file).rstrip().endswith("}") else ""
