"""Units of a list are listed in Ray tasks; the process of a task is killed on the way."""

import os
import queue
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_units_of_files import new_plan, read_plan_rows

from raycap.bulk.list_tasks import list_in_tasks
from raycap.bulk.listing import lister
from raycap.bulk.options import BulkOptions
from raycap.bulk.worker_pool import PlanFailed
from raycap.sources import Notes, Urls, pieces
from raycap.storage import RunFolder

pytestmark = pytest.mark.usefixtures("one_ray")


def folder_that_kills(uri: str, at: str, mark: Path) -> RunFolder:
    """Its first process that would create this file is killed. Made in a function, so that Ray
    sends the class too."""

    class Killing(RunFolder):
        def create(self, name: str, content: bytes) -> bool:
            if name.endswith(at) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().create(name, content)

    return Killing(uri)


def list_that_is_watched(path: str, log: Path) -> Urls:
    class Watched(Urls):
        def tables_of_unit(self, unit: str, notes: Notes) -> Any:
            with log.open("a") as file:
                file.write(f"{unit}\n")
            return super().tables_of_unit(unit, notes)

    return Watched(path)


@pytest.mark.parametrize("at, again", [("00007.names", 1), ("00001.repeats", 0)])
@pytest.mark.parametrize("tasks", [1, 2])
def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, again: int, tasks: int
) -> None:
    """Between two units, and between two partitions of names."""
    monkeypatch.setattr(pieces, "UNIT_BYTES", 120)
    path, mark = tmp_path / "urls.txt", tmp_path / "killed"
    path.write_text("".join(f"http://a/{number % 31}.jpg\n" for number in range(120)))
    source = list_that_is_watched(str(path), tmp_path / "listed")
    out = folder_that_kills(str(tmp_path / "out"), at, mark)
    plan = new_plan(source, out)
    assert len(plan.units) > 12
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    rounds = lister(source, BulkOptions(), out, plan, ()).rounds(range(len(plan.units)), tasks)
    list_in_tasks(rounds, None, events)
    shards = []
    while len({shard.unit for shard in shards if shard.is_last}) < len(plan.units):
        event = events.get(timeout=120)
        assert not isinstance(event, PlanFailed), event.error
        shards.append(event.shard)
    assert mark.exists()
    found = read_plan_rows(out, plan, shards)
    whole = [key for table in Urls(str(path)).tables() for key in table["key"].to_pylist()]
    assert [row["key"] for row in found.rows] == whole
    listed = Counter((tmp_path / "listed").read_text().splitlines())
    assert sum(listed.values()) == len(plan.units) + again, "a unit was listed again"


def test_what_the_user_did_wrong_ends_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycap.bulk.ray_pool import reason_of
    from raycap.errors import UserError
    from raycap.sources import Table

    monkeypatch.setattr(pieces, "UNIT_BYTES", 120)
    path, out = tmp_path / "a.csv", RunFolder(str(tmp_path / "out"))
    path.write_text("id,url\n" + "".join(f"{n % 99},http://a\n" for n in range(100)))
    source = Table(str(path), key_column="id")
    plan = new_plan(source, out)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    rounds = lister(source, BulkOptions(), out, plan, ()).rounds(range(len(plan.units)), 2)
    list_in_tasks(rounds, None, events)
    while not isinstance(event := events.get(timeout=120), PlanFailed):
        pass
    with pytest.raises(UserError, match=r"'0' occurs twice: .*line 2 and .*line 101"):
        reason_of(event.error)
