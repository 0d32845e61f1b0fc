"""The loader of small jobs: several threads decode, each row comes once, and faults come out."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_captioner import photos

from raycap.bulk import loading
from raycap.bulk.loading import LocalLoader
from raycap.fetch import Fetch
from raycap.fetch.trust import ANYTHING
from raycap.images import Reading, Square
from raycap.sources import Folder

HOW = {
    "fetch": Fetch(),
    "trust": ANYTHING,
    "reading": Reading(),
    "intake": Square(8),
    "keep_pixels": True,
    "source": Folder(path="."),
}


def manifest(uris: list[str]) -> pa.Table:
    columns = {
        "key": uris,
        "uri": uris,
        "embedded": [False] * len(uris),
        "error": [""] * len(uris),
    }
    return pa.table(columns)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_row_is_loaded_once(tmp_path: Path, threads: int) -> None:
    folder = photos(tmp_path / "photos", [0, 1, 2])
    rows = manifest([str(path) for path in sorted(folder.iterdir())] + ["/none.jpg"])
    loader = LocalLoader(HOW, batch=2, threads=threads)
    for work in range(5):
        loader.add(work, rows)
    found: Counter[Any] = Counter()
    while sum(found.values()) < 5 * len(rows):
        loaded = loader.next(60)
        assert loaded is not None
        found.update(zip(loaded.places, loaded.table["status"].to_pylist(), strict=True))
    assert set(found.values()) == {1}
    assert Counter(status for _, status in found) == {"success": 15, "failed_to_fetch": 5}
    loader.stop()
    assert loader.next(60) is None and loader.next(60) is None


def test_a_fault_of_one_thread_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> pa.Table:
        raise RuntimeError("no child process")

    monkeypatch.setattr(loading, "load_table", broken)
    loader = LocalLoader(HOW, batch=1, threads=3)
    loader.add(0, manifest(["a.jpg", "b.jpg"]))
    with pytest.raises(RuntimeError, match="no child process"):
        for _ in range(4):
            assert loader.next(60) is not None
