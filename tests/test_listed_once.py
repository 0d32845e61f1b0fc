"""A list that has not changed since it was listed is not listed again."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_captioner import photos
from toy_captioner import SizeOptions

from raycap.bulk.captions import captions_job
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.cluster import Cluster
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.sources import Notes, Urls, pieces
from raycap.sources.lines import Span
from raycap.sources.pieces import Piece, Unit, tell_changes

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The units that were listed, since the list was cleared."""
    units: list[str] = []
    whole = Urls.tables_of_unit

    def spied(source: Urls, unit: str, notes: Notes) -> Iterator[pa.Table]:
        units.append(unit)
        return whole(source, unit, notes)

    monkeypatch.setattr(Urls, "tables_of_unit", spied)
    monkeypatch.setattr(pieces, "UNIT_BYTES", 24)
    return units


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A list of four photos and a line that names none."""
    photos(tmp_path / "photos", [0, 1, 2, 3])
    path = tmp_path / "list.txt"
    names = [f"photos/{number:05}.png" for number in range(4)]
    path.write_text("\n".join([*names, "photos/none.png", ""]))
    return path


def caption(lines: Path, **options: Any) -> int:
    asked = CaptionOptions(out=str(lines.parent / "out"), batch=4, threads=1, **options)
    how = (Fetch(), Reading(), Cluster(local_rows=100))
    return run_job(captions_job(SizeOptions(), Urls(str(lines), local=True), asked, *how), {})


def keys(lines: Path) -> list[str]:
    table = pq.read_table(lines.parent / "out" / "captions", columns=["key"])
    return sorted(table["key"].to_pylist())


def test_a_finished_run_lists_nothing_and_says_the_same(
    lines: Path, listed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(lines) == 1  # one row has failed
    assert len(listed) > 2
    first = capsys.readouterr().out
    listed.clear()
    assert caption(lines) == 1
    assert listed == []
    second = capsys.readouterr().out
    assert "5 rows, 1 failed; 0 made now" in second
    reasons = [line for line in first.splitlines() if "failed_to_fetch" in line]
    assert reasons and reasons == [x for x in second.splitlines() if "failed_to_fetch" in x]


@pytest.mark.parametrize("change", ["longer", "touched", "no facts", "retried"])
def test_what_may_have_changed_is_listed(lines: Path, listed: list[str], change: str) -> None:
    caption(lines)
    before = keys(lines)
    listed.clear()
    if change == "longer":
        with lines.open("a") as file:
            file.write("photos/00000.png\n")
    elif change == "touched":
        os.utime(lines, ns=(1, 1))
    elif change == "no facts":
        (lines.parent / "out" / "facts.json").unlink()
    else:
        photos(lines.parent / "more", [0])
        (lines.parent / "more" / "00000.png").rename(lines.parent / "photos" / "none.png")
        assert caption(lines, retry="failed") == 0
        assert listed == []  # the retry itself is about rows of the table
        assert caption(lines) == 0
        assert listed == []
        return
    caption(lines)
    assert listed
    assert keys(lines) == sorted(before + ["photos/00000.png#2"] * (change == "longer"))


def test_what_could_not_be_read_for_a_moment_is_listed_again(
    lines: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails when a part of the list is about to be read. The list does not change."""
    stamp, faults = pieces._size_and_stamp, [OSError("away"), OSError("away")]
    cut: list[bool] = []

    def faulty(file: Any) -> tuple[int, str]:
        if cut and faults:
            raise faults.pop()
        cut.append(True)
        return stamp(file)

    monkeypatch.setattr(pieces, "_size_and_stamp", faulty)
    assert caption(lines) == 1
    assert not faults and len(keys(lines)) < 5
    caption(lines)
    assert len(keys(lines)) == 5
    listed.clear()
    caption(lines)
    assert listed == []


def test_another_sample_of_a_list_is_listed(lines: Path, listed: list[str]) -> None:
    caption(lines, sample=0.5)
    listed.clear()
    caption(lines)
    assert listed and len(keys(lines)) == 5


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [(["12 99", "13 98"], True), (["12 99", "13 "], False), ([], False)],
)
def test_a_version_of_each_file_is_needed(stamps: list[str], expected: bool) -> None:
    """Some stores give no date and no ETag."""
    units = [str(Unit("a", [Piece("a", Span(0, 12), stamp)])) for stamp in stamps]
    assert tell_changes([*units, ""]) == expected
    assert not tell_changes([""])
