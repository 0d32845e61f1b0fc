"""For the tests of sources: writes small files, and reads a source with its promises checked."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from raycap.schema import MANIFEST
from raycap.sources import Notes, Source


def write(path: Path, content: str | bytes = b"picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(source: Source) -> pa.Table:
    """All rows, twice, for what every source promises must hold of both."""
    source.check()
    pieces = list(source.tables())
    table = pa.concat_tables(pieces)
    assert all(piece.schema == pieces[0].schema for piece in pieces), "a stream has one schema"
    assert pieces[0].schema.names == [*MANIFEST.names, *source.carried]
    assert pieces[0].select(MANIFEST.names).schema == MANIFEST
    assert 1 <= len(pieces[0]) <= 64 and all(1 <= len(piece) <= 1000 for piece in pieces)
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys) and all(keys), "keys are unique, none empty"
    assert pa.concat_tables(source.tables()).equals(table), "the order and the keys stay"
    return table


def noted(source: Source) -> Notes:
    """What the source notes while it lists its rows."""
    notes = Notes()
    for _ in source.tables(notes):
        pass
    return notes


def rows(source: Source) -> list[dict[str, Any]]:
    return read(source).to_pylist()


def column(source: Source, name: str) -> list[Any]:
    return read(source)[name].to_pylist()
