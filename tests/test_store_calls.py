"""What a table job asks of a store: how often, and what happens if it fails. An outage costs a run
nothing, whatever was asked at that moment. A refusal ends the run in words, and the same command
goes on when the store does not refuse any more."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fault_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_jobs import NoPictures, Numbers, captions_job
from test_kill_points import open_model

from raycap.bulk import scheduler
from raycap.bulk.options import BulkOptions
from raycap.bulk.run import run_job
from raycap.bulk.table import OutputTable
from raycap.errors import UserError
from raycap.sources import Notes
from raycap.sources.manifest import Row, tables
from raycap.storage import RunFolder, lease

pytestmark = pytest.mark.usefixtures("no_ray")

ROWS = 20
UNITS, ROWS_IN_UNIT, BATCH = 4, 12, 4
FOREVER = 3600.0
# So many requests of each kind are answered before those that fail: the run is at work then.
ANSWERED = {"list": 2, "get": 3, "put": 2, "create": 2, "delete": 1, "log": 3, "commit": 1}


def run(out: str) -> int:
    options = BulkOptions(out=out, batch=4, part_rows=8)
    opens = functools.partial(open_model, "A", False)
    return run_job(captions_job(Numbers(ROWS), options, "A", opens), {})


def check(out: str) -> None:
    """Every row is there once, and nothing is left of the work on it."""
    folder = RunFolder(out)
    table = OutputTable(folder / "captions")
    files = [(folder / "captions").reading(file.path, pq.read_table) for file in table.files()]
    captions = [caption for rows in files for caption in rows["caption"].to_pylist()]
    assert sorted(captions) == sorted(f"A {number}" for number in range(ROWS))
    facts = folder.read_json("facts.json") or {}
    assert (facts["rows"], facts["table_version"]) == (ROWS, table.version)
    names = {*folder.folders(), *folder.names(hidden=True)}
    assert names == {"_plan", "captions", "facts.json", "run.json"}


def end_the_process(out: str) -> None:
    """As if the run had been a process, which has ended, and not a call in this one."""
    folder = RunFolder(out)
    if (held := folder.read_json(lease.LEASE)) is not None:
        folder.write_json(lease.LEASE, held | {"started": "long ago"})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_SETTLE", 0.0)


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    s3.mkdir("asked")
    return "s3://asked"


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("503", 0.3),
        pytest.param("503", 5.0, marks=pytest.mark.thorough),
        pytest.param("silent", 5.0, marks=pytest.mark.thorough),
    ],
)
def test_an_outage_in_each_kind_of_call_costs_nothing(
    how: str, seconds: float, bucket: str, s3_server: str
) -> None:
    out = f"{bucket}/{how}-{seconds}"
    for kind, answered in ANSWERED.items():
        fault_stores.begin_outage(s3_server, kind, how, seconds, answered)
    try:
        assert run(out) == 0
    finally:
        failed = fault_stores.end_outages(s3_server)
    assert all(failed[kind] > 0 for kind in fault_stores.KINDS), failed
    check(out)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "log" else pytest.param(kind, marks=pytest.mark.thorough)
        for kind in fault_stores.KINDS
    ],
)
def test_a_refusal_ends_the_run_in_words_and_the_next_one_goes_on(
    kind: str, bucket: str, s3_server: str
) -> None:
    out = f"{bucket}/refused-{kind}"
    fault_stores.begin_outage(s3_server, kind, "403", FOREVER, ANSWERED[kind])
    try:
        with pytest.raises(UserError, match=f"{out}.*(Forbidden|Access ?Denied)"):
            run(out)
    finally:
        failed = fault_stores.end_outages(s3_server)
    assert failed[kind] > 0
    end_the_process(out)
    assert run(out) == 0
    check(out)


@dataclass(frozen=True)
class Units(NoPictures):
    """Units of 12 rows: a shard of three chunks for each."""

    def units(self) -> tuple[str, ...]:
        return tuple(map(str, range(UNITS)))

    def tables_of_unit(self, unit: str, notes: Notes) -> Iterator[pa.Table]:
        first = int(unit) * ROWS_IN_UNIT
        return tables((Row(str(first + row), "") for row in range(ROWS_IN_UNIT)), None)

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        for unit in self.units():
            yield from self.tables_of_unit(unit, notes or Notes())


@pytest.mark.thorough
def test_how_many_calls_a_run_makes(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docs/scale.md` has these figures."""
    monkeypatch.setattr(scheduler, "SECONDS_BETWEEN_COMMITS", 0.0)
    options = BulkOptions(out=f"{bucket}/counted", batch=BATCH, part_rows=ROWS_IN_UNIT)
    opens = functools.partial(open_model, "A", False)
    fault_stores.requests_since(s3_server)
    assert run_job(captions_job(Units(), options, "A", opens), {}) == 0
    asked = fault_stores.requests_since(s3_server)

    calls: Counter[str] = Counter()
    written: dict[str, set[str]] = {"chunk": set(), "commit": set(), "shard": set(), "part": set()}
    for kind, method, path in asked:
        if "/_chunks/" in path:
            thing = "chunk"
        elif re.search(r"_plan/0001/\d+/\d+\.parquet", path):
            thing = "shard"
        elif kind in ("log", "commit"):
            thing = "commit"
        elif "/part-" in path:
            thing = "part"
        else:
            thing = "run"
        calls[thing] += 1
        if thing in written and method == "PUT":
            written[thing].add(path)
    assert len(written["chunk"]) == UNITS * ROWS_IN_UNIT // BATCH
    assert len(written["shard"]) == 2 * UNITS, "the last shard of these units is empty"
    each = {thing: calls[thing] / len(paths) for thing, paths in written.items()}
    assert (each["chunk"], each["part"]) == (4, 3)
    # Looked for, written; its size asked and read, again for each chunk at the worst.
    assert each["shard"] <= 5
    # However long the log is: there are as many commits here as chunks, or a few less.
    assert len(written["commit"]) > 8 and each["commit"] <= 14
    assert calls["run"] - UNITS <= 70
