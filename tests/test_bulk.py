"""What a table job rests on, without Ray: leases, whole files, progress, counts of reasons."""

import fcntl
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from raycap.bulk.counts import MOST_REASONS, OTHER_REASONS, RowCounts, count_rows, reason_head
from raycap.bulk.options import BulkOptions
from raycap.errors import UserError
from raycap.progress import Progress
from raycap.schema import FAILED_TO_FETCH
from raycap.storage import Lease, RunFolder, differences
from raycap.storage import lease as lease_of_storage


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
    for seconds in (-1000, 1000):  # the clock of the other machine may be wrong
        beat = found["beat"] + seconds
        folder.write_json("_lease.json", found | {"host": "elsewhere", "beat": beat})
        with Lease(folder):
            pass


def test_a_process_that_sleeps_with_the_lock_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_of_storage, "SECONDS_FOR_LOCK", 0.1)
    folder = RunFolder(str(tmp_path))
    with (tmp_path / "_lease.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with Lease(folder) as lease:
            lease.check()


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


def test_a_file_is_created_once(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    assert folder.create("a/b", b"one") and not folder.create("a/b", b"two")
    assert folder.create("a/b", b"one"), "an answer may have been lost: the content is the same"
    assert folder.read("a/b") == b"one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert folder.folders() == ["a"]


def test_what_differs_in_each_row_is_no_reason_of_its_own() -> None:
    heads = {
        reason_head(f"no answer from host{number}.example.com within 30 s: {number}")
        for number in range(100)
    }
    assert heads == {"no answer from ... within 30 s"}
    assert reason_head("HTTP status 404: not there") == "HTTP status 404"
    slow = "reading it took longer than 4 s (--reading.timeout)"
    assert reason_head(slow) == slow, "the name of an option is no host"
    assert reason_head("1,234,567 pixels, more than 1000000") == "... pixels, more than ..."


def test_reasons_take_bounded_memory() -> None:
    counts = RowCounts()
    for group in range(40):
        words = [f"{letter}{'x' * group}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        table = pa.table({"status": [FAILED_TO_FETCH] * 26, "error_message": words})
        counts.add(count_rows(table))
    assert counts.failed == 26 * 40 == counts.reasons.total()
    assert len(counts.reasons) <= MOST_REASONS + 1
    assert counts.reasons[FAILED_TO_FETCH, OTHER_REASONS] > 0


def test_counts_travel_in_the_metadata_of_files() -> None:
    reasons = Counter({(FAILED_TO_FETCH, 'say "no"'): 2})
    counts = RowCounts(Counter({"success": 3, FAILED_TO_FETCH: 2}), reasons)
    again = RowCounts.from_json(counts.to_json())
    assert (again.statuses, again.reasons) == (counts.statuses, counts.reasons)


def test_differences_are_named_by_their_place() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 3}
    assert differences(old, old) == []
    assert differences(old, {"a": 1, "b": {"c": 3, "d": [1]}}) == [
        "b.c was 2, now 3",
        "gone was 3, now None",
    ]


def test_progress_shows_what_a_person_would_ask(capsys: pytest.CaptureFixture[str]) -> None:
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
