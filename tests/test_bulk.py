"""What makes each row exactly one, without Ray: digests, listings, the publisher's memory, leases,
whole files."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.bulk.commit import Committer, FileLayout, StagedFile, write_staged
from raycap.bulk.contents import RowCounts, are_among, digests_of, sorted_digests
from raycap.bulk.options import BulkOptions
from raycap.bulk.overwrite import NEW, finish_overwrite
from raycap.bulk.pending import TICKET, PendingRows, count_pending
from raycap.errors import UserError
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.progress import Progress
from raycap.schema import CAPTIONS
from raycap.sources import Notes
from raycap.sources.manifest import Row, tables
from raycap.storage import Lease, RunFolder, differences


@given(st.lists(st.text()), st.lists(st.text()), st.lists(st.text()))
def test_a_key_is_found_where_it_stands_and_nowhere_else(
    first: list[str], second: list[str], asked: list[str]
) -> None:
    groups = [
        sorted_digests([digests_of(first[:3]), digests_of(first[3:])]),
        sorted_digests([digests_of(second)]),
    ]
    found = are_among(digests_of(asked), groups)
    assert found.tolist() == [key in {*first, *second} for key in asked]


def test_two_keys_that_share_half_a_digest() -> None:
    group = sorted_digests([np.array([[5, 5, 7], [1, 2, 3]], np.uint64)])
    asked = np.array([[5, 5, 5, 7, 8], [1, 2, 3, 3, 3]], np.uint64)
    assert are_among(asked, [group]).tolist() == [True, True, False, True, False]


@dataclass(frozen=True)
class Numbers:
    """A source of so many rows."""

    rows: int
    path: str = "numbers"
    trust: Trust = ONLY_WEB
    names_urls: bool = False
    carried: tuple[str, ...] = ()

    def check(self) -> None: ...

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        return tables((Row(str(number), "") for number in range(self.rows)), lambda: "nothing")


@pytest.mark.parametrize("rows", [1, 64, 65, 1064, 5000])
@pytest.mark.parametrize(
    "options",
    [BulkOptions(), BulkOptions(limit=70), BulkOptions(sample=0.4)],
)
def test_a_listing_numbers_its_rows_and_marks_the_last(rows: int, options: BulkOptions) -> None:
    todo = PendingRows(Numbers(rows), options)
    listed = pa.concat_tables(list(todo.tables()))
    keys = listed["key"].to_pylist()
    assert listed["place"].to_pylist() == list(range(len(listed)))
    assert listed["last"].to_pylist() == [False] * (len(listed) - 1) + [True] * bool(len(listed))
    assert len(set(listed["listing"].to_pylist())) <= 1 and len(set(keys)) == len(keys)
    assert count_pending(todo, None)[0] == len(listed) and min(1, len(listed)) == min(
        1, count_pending(todo, 1)[0]
    )
    if options.limit:
        assert keys == [str(number) for number in range(min(rows, options.limit))]
    elif options.sample == 1:
        assert set(keys) == {str(number) for number in range(rows)}


@given(
    st.lists(st.tuples(st.integers(1, 2), st.lists(st.integers(0, 40), min_size=1)), max_size=12)
)
def test_no_row_is_published_twice_whatever_is_made_again(
    reports: list[tuple[int, list[int]]],
) -> None:
    one = Committer(None, "captions", None, None)  # type: ignore[arg-type]
    published: list[int] = []
    for listing, places in reports:
        last = 40 if 40 in places else None
        report = StagedFile("", "", (listing,), np.array(places), last, RowCounts())
        if one._is_new(report):
            one._remember(report)
            published += places
    assert len(set(published)) == len(published)
    if reports and published:  # a second listing is not taken at all
        taken = {listing for listing, places in reports if set(places) & set(published)}
        assert reports[0][0] in taken


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    row = {
        "uri": "",
        "caption": "a",
        "score": -1.0,
        "alternatives": [],
        "status": "success",
        "error_message": "",
    }
    row |= {"width": 1, "height": 1, "sha256": "", "listing": 7, "notes": Notes().to_json()}
    rows = [{"key": str(n), **row, "place": n, "last": n == 4} for n in range(5)]
    blocks = [
        pa.Table.from_pylist(some, pa.schema([*CAPTIONS, *TICKET]))
        for some in (rows[:2], rows[2:])
    ]
    parts = FileLayout(10, 1.0, CAPTIONS, (), {"raycap": "x"})
    reports = [write_staged(RunFolder(str(tmp_path)), "run", parts, *blocks) for _ in range(2)]
    assert reports[0].notes == {"left_out": [], "notes": []}
    assert (
        reports[0].name == reports[1].name and reports[0].last == 4 and reports[0].counts.rows == 5
    )
    other = write_staged(RunFolder(str(tmp_path)), "run", parts, blocks[0])
    assert other.name != reports[0].name and other.last is None and other.notes is None


def test_a_lease_is_one_persons_until_they_are_dead(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"))
    taking = f"from raycap.storage import *; Lease(RunFolder({folder.uri!r})).__enter__(); "
    with Lease(folder) as lease:
        with pytest.raises(UserError, match="another run writes to"):
            Lease(folder).__enter__()
        other = subprocess.run([sys.executable, "-c", taking], capture_output=True, text=True)
        assert "another run writes to" in other.stderr
        lease.check()
    subprocess.run([sys.executable, "-c", f"{taking}import os; os.kill(os.getpid(), 9)"])
    with Lease(folder) as lease:  # its owner is dead
        folder.write_json("_lease.json", {"run": "another"})
        with pytest.raises(UserError, match="has taken over"):
            lease.check()


def test_a_lease_of_another_machine_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path))
    with Lease(folder):
        found = folder.read_json("_lease.json")
    assert found is not None
    folder.write_json("_lease.json", found | {"host": "elsewhere"})
    with pytest.raises(UserError, match="on elsewhere"):
        Lease(folder).__enter__()
    folder.write_json("_lease.json", found | {"host": "elsewhere", "beat": found["beat"] - 1000})
    with Lease(folder):
        pass


def test_a_folder_shows_whole_files_only(tmp_path: Path) -> None:
    folder = RunFolder(f"file://{tmp_path}/deep/out")
    assert folder.names("captions") == [] and folder.read("x") is None and not folder.exists()
    folder.stage("_staged/a", b"one")
    assert folder.names("") == []
    folder.rename("_staged/a", "captions/a")
    folder.write("captions/.hidden", b"")
    assert folder.names("captions") == ["captions/a"] and folder.read("captions/a") == b"one"
    folder.remove("captions")
    folder.remove("captions")
    assert not folder.exists("captions")
    with pytest.raises(UserError, match="not whole JSON"):
        folder.write("run.json", b"{")
        folder.read_json("run.json")


class Crashing(RunFolder):
    """Stops the process, as it were, after so many changes to the disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "left", None)

    def _count(self) -> None:
        if self.left is not None:  # type: ignore[attr-defined]
            object.__setattr__(self, "left", self.left - 1)  # type: ignore[attr-defined]
            if self.left < 0:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    def rename(self, old: str, new: str) -> None:
        self._count()
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self._count()
        super().remove(name)


@pytest.mark.parametrize("changes", range(14))
def test_a_swap_of_tables_ends_well_wherever_it_was_cut_off(changes: int, tmp_path: Path) -> None:
    out = Crashing(str(tmp_path / "out"))
    for folder, word in ((out, b"old"), (out / NEW, b"new")):
        folder.write("captions/part", word)
        folder.write("captions/part-only-" + word.decode(), word)
        folder.write_json("run.json", {"table": "captions", "word": word.decode()})
        folder.write_json("facts.json", {"word": word.decode()})
    out.write("jsonl/part.jsonl", b"of the old rows")
    object.__setattr__(out, "left", changes)
    try:
        finish_overwrite(out)
    except KeyboardInterrupt:
        seen = {path.read_bytes() for path in (tmp_path / "out" / "captions").glob("*")}
        assert len(seen) <= 1, "old or new, never both"
        object.__setattr__(out, "left", None)
        finish_overwrite(out)
    assert out.names("captions") == ["captions/part", "captions/part-only-new"]
    assert out.read_json("run.json") == {"table": "captions", "word": "new"}
    assert out.read_json("facts.json") == {"word": "new"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "captions",
        "facts.json",
        "run.json",
    ]


def test_differences_are_named_by_their_place() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 3}
    assert differences(old, old) == []
    assert differences(old, {"a": 1, "b": {"c": 3, "d": [1]}}) == [
        "b.c was 2, now 3",
        "gone was 3, now None",
    ]


def test_progress_says_what_a_person_would_ask(capsys: pytest.CaptureFixture[str]) -> None:
    known: list[int | None] = [None, 400]
    with Progress("caption", lambda: known.pop(0), seconds_between_lines=0) as progress:
        progress.add(100, {("failed_to_fetch", "404 \x1b[31m"): 3})
        progress.add(100, 0)
    first, second = capsys.readouterr().err.splitlines()
    assert "100 rows" in first and "3 failed (3 404 \\x1b[31m)" in first
    assert "200 of 400 rows, ends about" in second and "rows/s" in second


@pytest.mark.parametrize(
    "option, rows, allowed", [("", 9, float("inf")), ("500", 9, 500), ("10%", 200, 20)]
)
def test_failures_allowed(option: str, rows: int, allowed: float) -> None:
    assert BulkOptions(max_failed=option).failures_allowed(rows) == allowed
