"""A run is suspended between two of its steps, and others go on meanwhile: for a moment, or for
days. Nothing that it decided before may come true after it. No row is lost, doubled or of another
captioner, and facts.json is true.

Each test does what another run did just before a step of the late run.
"""

import contextlib
import functools
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from table_jobs import Numbers, captions_job
from test_kill_points import MORE_ROWS, ROWS, check, killed_worker, open_model

from raycap.bulk import finish, run
from raycap.bulk.job import no_exports
from raycap.bulk.operations import Operations
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Plan, plans_of_table, write_plan
from raycap.bulk.scheduler import ChunkScheduler
from raycap.bulk.table import OutputTable, TakenOverError
from raycap.errors import UserError
from raycap.storage import RunFolder, lease

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(autouse=True)
def _no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease of a suspended run is dead."""
    monkeypatch.setattr(lease, "_is_alive", lambda found: False)
    monkeypatch.setattr(lease, "SECONDS_FOR_LOCK", 0.0)


def caption(
    out: Path,
    model: str = "A",
    rows: int = ROWS,
    part_rows: int = 5,
    fail: bool = False,
    opens: Callable[..., Any] = open_model,
    export: Callable[..., None] = no_exports,
    **options: Any,
) -> None:
    """`raycap caption` with a captioner that says its name."""
    bulk = BulkOptions(out=str(out), batch=4, part_rows=part_rows, **options)
    job = captions_job(Numbers(rows), bulk, model, functools.partial(opens, model, fail), export)
    run.run_job(job, {})


def killed(out: Path, *arguments: Any, **named: Any) -> None:
    """A run that ends before its first chunk is made."""
    with pytest.raises(RuntimeError, match="killed"):
        caption(out, *arguments, opens=killed_worker, **named)


def before(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    act: Callable[[], None],
    fits: Callable[..., bool] = lambda *arguments: True,
) -> list[Any]:
    """Before `owner.name` is called first, with arguments that fit, `act` is done. The list is
    empty then."""
    original, todo = getattr(owner, name), [act]

    def step(*arguments: Any, **named: Any) -> Any:
        if todo and fits(*arguments):
            todo.pop()()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, step)
    return todo


def end(out: Path, expected: str) -> None:
    """The table has rows of this captioner only; its next run makes what is missing, and the one
    after it makes nothing."""
    assert check(out, finished=False) in (expected, "")
    for _ in range(2):
        caption(out, expected, rows=MORE_ROWS)
        check(out, finished=True)
        rows = pq.read_table(out / "captions").to_pylist()
        assert sorted(int(row["key"]) for row in rows) == list(range(MORE_ROWS))


LATE = [{"model": "A", "rows": MORE_ROWS}, {"model": "B", "overwrite": True}]


@pytest.mark.parametrize("late", LATE, ids=["append", "overwrite"])
def test_a_number_that_is_over_is_not_planned(
    late: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has decided, and then another run used the number of its plan for a retry."""
    out = tmp_path / "out"
    caption(out, fail=True)
    others = lambda: caption(out, retry="failed", only="width > 0")  # noqa: E731
    todo = before(monkeypatch, Operations, "add", others)
    with pytest.raises(TakenOverError):
        caption(out, **late)
    assert not todo
    end(out, "A")


@pytest.mark.parametrize("late", LATE, ids=["append", "overwrite"])
def test_rows_of_another_captioner_are_noticed(
    late: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has compared itself with the rows of the table, and then they were replaced."""
    out = tmp_path / "out"
    caption(out)
    others = lambda: caption(out, "C", overwrite=True)  # noqa: E731
    todo = before(monkeypatch, run, "chosen_units", others)
    with pytest.raises(UserError, match="another run has"):
        caption(out, **late)
    assert not todo
    end(out, "C")


def test_an_overwrite_before_the_first_look_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    caption(out)
    others = lambda: caption(out, "B", overwrite=True)  # noqa: E731
    todo = before(monkeypatch, Operations, "unfinished", others)
    with pytest.raises(UserError, match="holds rows of another run"):
        caption(out, rows=MORE_ROWS)
    assert not todo
    end(out, "B")


def test_a_plan_without_rows_is_removed_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has found nothing new, and so has another one. Then there was something."""
    out = tmp_path / "out"
    caption(out)

    def others() -> None:
        caption(out)
        caption(out, rows=MORE_ROWS)

    todo = before(monkeypatch, ChunkScheduler, "notes", others)
    with contextlib.suppress(UserError):
        caption(out)
    assert not todo
    end(out, "A")


def test_a_plan_that_others_have_found_empty_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written its plan, and lists the source when there is something new."""
    out = tmp_path / "out"
    caption(out)
    others = lambda: caption(out)  # noqa: E731
    todo = before(monkeypatch, run, "lister", others)
    with pytest.raises(TakenOverError):
        caption(out, rows=MORE_ROWS)
    assert not todo
    end(out, "A")


def test_numbers_of_plans_without_rows_do_not_pile_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(4):
        caption(out)
    assert [path.name for path in sorted((out / "_plan").iterdir())] == ["0001", "0004"]
    end(out, "A")


def test_an_operation_that_is_complete_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overwrite was killed; the late run goes on with the old table, and others overwrite."""
    out = tmp_path / "out"
    caption(out)
    killed(out, "B", overwrite=True)
    others = lambda: caption(out, "B", overwrite=True)  # noqa: E731
    todo = before(monkeypatch, OutputTable, "begin", others)
    with pytest.raises(TakenOverError):
        caption(out)
    assert not todo
    end(out, "B")


def test_an_operation_that_was_given_up_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late run has said in the log that it gives it up, and not yet removed it."""
    out = tmp_path / "out"
    caption(out)
    killed(out, "B", overwrite=True)
    others = lambda: caption(out, "B", overwrite=True)  # noqa: E731
    is_removal = lambda folder, name: name == "_side/0002"  # noqa: E731
    todo = before(monkeypatch, RunFolder, "remove", others, is_removal)
    with pytest.raises(TakenOverError):
        caption(out, rows=MORE_ROWS)
    assert not todo
    end(out, "B")


def test_parts_in_the_table_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs join the same chunks, in parts of other sizes."""
    out = tmp_path / "out"
    others = lambda: caption(out, part_rows=3)  # noqa: E731
    todo = before(monkeypatch, finish, "count_rows", others)
    with pytest.raises(TakenOverError):
        caption(out, part_rows=5)
    assert not todo and check(out, finished=True) == "A"
    files = pa.table(DeltaTable(out / "captions").get_add_actions(flatten=True)).to_pylist()
    for file in files:
        path = out / "captions" / file["path"]
        assert path.stat().st_size == file["size_bytes"]
        assert pq.read_metadata(path).num_rows == file["num_records"]
    end(out, "A")


@pytest.mark.parametrize("is_killed", [True, False], ids=["begins", "ends"])
@pytest.mark.parametrize("step", ["exports", "facts", "written"])
def test_facts_of_a_table_that_has_changed_are_not_written(
    step: str, is_killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run overwrites the table while this one writes other formats or facts.json."""
    out = tmp_path / "out"

    def others(*arguments: Any) -> None:
        (killed if is_killed else caption)(out, "B", overwrite=True)

    if step == "exports":
        todo: Sequence[Any] = ()
        export = others
    else:
        owner, name = (run, "write_facts") if step == "facts" else (OutputTable, "load")
        has_facts = lambda *arguments: step == "facts" or (out / "facts.json").exists()  # noqa: E731
        todo, export = before(monkeypatch, owner, name, others, has_facts), no_exports
    with pytest.raises(TakenOverError):
        caption(out, fail=True, export=export)
    assert not todo
    if step == "exports" and not is_killed:  # those of the other run stay
        assert json.loads((out / "facts.json").read_text())["identity"] == {"captioner": "B"}
    end(out, "A" if is_killed else "B")


def test_facts_of_another_version_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run was killed before its last commit; a suspended one left facts.json; nothing has to be
    made but the parts."""
    out = tmp_path / "out"
    caption(out, rows=3)
    facts = (out / "facts.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(OutputTable, "replace", killed_worker)
        with pytest.raises(RuntimeError, match="killed"):
            caption(out)
    assert not (out / "facts.json").exists()
    (out / "facts.json").write_bytes(facts)
    caption(out)
    assert json.loads((out / "facts.json").read_text())["rows"] == ROWS
    end(out, "A")


@pytest.mark.parametrize("kind", ["first", "append", "overwrite"])
def test_a_plan_that_came_too_late_does_not_count(kind: Any, tmp_path: Path) -> None:
    """A run wrote it after its number was over, and was killed then."""
    out = tmp_path / "out"
    caption(out, fail=True)
    caption(out, retry="failed", only="width > 0")
    folder = RunFolder(str(out))
    write_plan(folder, Plan(2, kind, {"act": "caption", "captioner": "B"}, 4, 4))
    assert [plan.operation for plan in plans_of_table(folder, completed=2)] == [1]
    end(out, "A")


def nothing_new(out: Path) -> None:
    caption(out, fail=True)


def append(out: Path) -> None:
    caption(out, rows=MORE_ROWS)


def retry(out: Path) -> None:
    caption(out, retry="failed")


def retry_only(out: Path) -> None:
    caption(out, retry="failed", only="width > 0")


def overwrite(out: Path) -> None:
    caption(out, "B", overwrite=True, fail=True)


def other_parts(out: Path) -> None:
    caption(out, fail=True, part_rows=3)


def killed_overwrite(out: Path) -> None:
    with contextlib.suppress(RuntimeError):  # there may be nothing to make but the parts
        caption(out, "B", overwrite=True, opens=killed_worker)


LATE_RUNS = [nothing_new, append, retry, overwrite]
OTHER_RUNS = [append, retry, retry_only, overwrite, other_parts, killed_overwrite]


def at_step(patch: pytest.MonkeyPatch, out: Path, number: int, act: Any) -> list[Any]:
    """Before the step of this number that a run does in the folder, `act` is done. The list is
    empty then."""
    todo, steps, one_at_a_time = [act], [0], threading.Lock()

    def stepped(owner: type, name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def step(self: Any, *arguments: Any, **named: Any) -> Any:
            is_here = owner is DeltaTable or self.uri.startswith(str(out))
            with one_at_a_time:
                steps[0] += is_here
                acts = [todo.pop()] if todo and steps[0] > number else []
            for act in acts:
                act()
            return method(self, *arguments, **named)

        return step

    for name in ("create", "stage", "rename", "remove", "remove_file"):
        patch.setattr(RunFolder, name, stepped(RunFolder, name))
    name = "create_write_transaction"
    patch.setattr(DeltaTable, name, stepped(DeltaTable, name))
    return todo


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("other", OTHER_RUNS)
@pytest.mark.parametrize("start", ["empty", "killed", "finished", "killed overwrite"])
@pytest.mark.parametrize("late", LATE_RUNS)
def test_every_run_asleep_at_any_step_while_another_one_goes_on(
    late: Callable[[Path], None], start: str, other: Callable[[Path], None], tmp_path: Path
) -> None:
    template = tmp_path / "template"
    template.mkdir()
    if start == "killed":
        with contextlib.suppress(UserError):
            killed(template, fail=True)
    elif start != "empty":
        caption(template, fail=True)
        if start == "killed overwrite":
            killed_overwrite(template)
    for number in itertools.count():
        out = tmp_path / f"step {number}"
        shutil.copytree(template, out)

        is_done = threading.Event()

        def go_on(out: Path = out, is_done: threading.Event = is_done) -> None:
            with contextlib.suppress(UserError):
                other(out)
            is_done.set()

        with pytest.MonkeyPatch.context() as patch:
            todo = at_step(patch, out, number, go_on)
            with contextlib.suppress(UserError):
                late(out)
            if todo:
                assert number > 3
                return
            assert is_done.wait(60)  # it may be in a thread of the late run
        captioner = check(out, finished=False)
        if not captioner:  # the plan says it, or else the record
            plans = plans_of_table(RunFolder(str(out)), completed=0)
            record = json.loads((out / "run.json").read_text())
            captioner = (plans[0].identity if plans else record["identity"])["captioner"]
        end(out, captioner)
        shutil.rmtree(out)
