"""A run is killed between any two of its steps, and another one follows: rows of one captioner
only, each key once, and facts that are true.

A process that is killed (kill -9) does nothing more. So the folder as it is before each step of a
run is what a kill at that moment would leave: it is copied, and the next commands run on the copy.
"""

import contextlib
import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from table_jobs import Numbers, captions_job

from raycap.bulk import run as bulk_run
from raycap.bulk.options import BulkOptions
from raycap.bulk.run import run_job
from raycap.bulk.selection import chosen_units
from raycap.bulk.table import ChunkFile, OutputTable, TakenOverError, chunk_of
from raycap.errors import UserError
from raycap.schema import CAPTIONS, FAILED_TO_FETCH, SUCCESS
from raycap.storage import RunFolder, lease
from raycap.storage.lease import LEASE

pytestmark = pytest.mark.usefixtures("no_ray")

ROWS, MORE_ROWS = 8, 11


def open_model(
    model: str, fail: bool, options: BulkOptions, threads: int
) -> Callable[[pa.Table], pa.Table]:
    """What a captioner would write; some pictures cannot be fetched."""

    def caption(table: pa.Table) -> pa.Table:
        rows = []
        for key in table["key"].to_pylist():
            bad = fail and int(key) % 5 == 2
            row = {"key": key, "caption": "" if bad else f"{model} {key}"}
            row |= {"status": FAILED_TO_FETCH if bad else SUCCESS}
            row |= {"error_message": "gone" if bad else "", "uri": "", "sha256": ""}
            rows.append({**row, "alternatives": [], "score": None, "width": 1, "height": 1})
        return pa.Table.from_pylist(rows, CAPTIONS)

    return caption


@dataclass
class Command:
    """A command line: which captioner, with which flags."""

    model: str
    retry: bool = False
    overwrite: bool = False
    fail: bool = False  # some pictures cannot be fetched now
    rows: int = ROWS

    def __str__(self) -> str:
        flags = [name for name in ("retry", "overwrite", "fail") if getattr(self, name)]
        return " ".join([self.model, *flags, str(self.rows)])

    def run(self, out: Path, opens: Callable[..., Any] = open_model) -> None:
        options = BulkOptions(
            out=str(out),
            batch=4,
            part_rows=5,
            retry="failed" if self.retry else "",
            overwrite=self.overwrite,
        )
        opens = functools.partial(opens, self.model, self.fail)
        run_job(captions_job(Numbers(self.rows), options, self.model, opens), {})


@dataclass
class Recorder:
    """Copies a folder before each step that the driver does in it."""

    out: Path
    copies: Path
    seen: set[str] = field(default_factory=set)
    steps: list[Path] = field(default_factory=list)

    def copy(self, what: str, halve: Path | None = None) -> None:
        if not self.out.exists():
            return
        target = self.copies / f"{len(self.steps):03d} {what}"
        shutil.copytree(self.out, target)
        if halve is not None:  # a removal that was killed on its way
            for path in [path for path in sorted((target / halve).rglob("*")) if path.is_file()][
                ::2
            ]:
                path.unlink()
        digest = state(target)
        if digest in self.seen:
            shutil.rmtree(target)
            return
        self.seen.add(digest)
        lease = target / LEASE
        if lease.exists():  # its process is dead
            lease.write_text(json.dumps(json.loads(lease.read_text()) | {"started": "long ago"}))
        self.steps.append(target)


def state(folder: Path) -> str:
    """Of all that is in the folder but its lease."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LEASE]
    digests = [
        (str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    ]
    return json.dumps(digests)


def killed_everywhere(command: Command, out: Path, copies: Path) -> list[Path]:
    """The folder as a kill would leave it, at each step of the command."""
    recorder = Recorder(out, copies)
    # The worker and the driver are threads here: nothing is written while the folder is copied.
    one_at_a_time = threading.RLock()

    def recorded(owner: type, name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def step(self: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(self, RunFolder):
                place = Path(self.path())
                if place != out and out not in place.parents:
                    return method(self, *arguments, **named)
                target = place / arguments[0]
            with one_at_a_time:
                recorder.copy(name)
                if name == "remove" and target.is_dir():
                    recorder.copy("half a removal", target.relative_to(out))
                answer = method(self, *arguments, **named)
                recorder.copy(f"after {name}")
                return answer

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "stage", "rename", "remove"):
            patch.setattr(RunFolder, name, recorded(RunFolder, name))
        name = "create_write_transaction"
        patch.setattr(DeltaTable, name, recorded(DeltaTable, name))
        command.run(out)
    return recorder.steps


def rows_of(folder: Path, files: list[str]) -> list[dict[str, Any]]:
    return [row for file in files for row in pq.ParquetFile(folder / file).read().to_pylist()]


def check(out: Path, finished: bool) -> str:
    """What always holds of the folder; the captioner of its rows."""
    table, files = out / "captions", []
    if (table / "_delta_log").exists():
        delta = DeltaTable(table)
        files = pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist()
    rows = rows_of(table, files)
    keys = [row["key"] for row in rows]
    assert len(set(keys)) == len(keys), "a key twice"
    captioners = {pq.read_schema(table / file).metadata[b"captioner"].decode() for file in files}
    assert len(captioners) <= 1, "rows of two captioners"
    assert {row["caption"].split()[0] for row in rows if row["caption"]} <= captioners, (
        "a part lies about its rows"
    )
    facts = json.loads((out / "facts.json").read_text()) if (out / "facts.json").exists() else None
    if facts is not None:
        assert facts["table_version"] == delta.version()
        assert facts["rows"] == len(rows)
        assert facts["failed"] == sum(row["status"] != SUCCESS for row in rows)
        assert {facts["identity"]["captioner"]} == captioners, "facts of other rows"
        plain = sorted(path.name for path in table.glob("*.parquet"))
        assert plain == sorted(files), "readers of plain Parquet see other rows"
    if finished:
        assert facts is not None and keys
        assert json.loads((out / "run.json").read_text())["identity"] == facts["identity"]
        # A kill may also leave a hidden file that was on its way, such as .0ad8ac9f.part.
        left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert left == {"_lease.lock", "_plan", "captions", "facts.json", "run.json"}
    return next(iter(captioners), "")


FIRST = Command("A", fail=True)
RETRY = Command("A", retry=True)
OVERWRITE = Command("B", overwrite=True, fail=True)
RESUME = Command("A", rows=MORE_ROWS)
AFTER = [RETRY, OVERWRITE, RESUME, Command("B"), Command("A", overwrite=True)]


def follow(step: Path, commands: list[Command], folder: Path) -> None:
    """The commands one after the other on a copy of what the kill left, and the last captioner's
    once more."""
    check(step, finished=False)
    out = folder / "copy"
    shutil.copytree(step, out)
    for command in commands:
        try:
            command.run(out)
        except UserError as error:
            assert "holds rows of another run" in str(error)
        captioner = check(out, finished=False)
    if not captioner and (out / "run.json").exists():
        captioner = json.loads((out / "run.json").read_text())["identity"]["captioner"]
    Command(captioner or "A", rows=MORE_ROWS).run(out)
    check(out, finished=True)
    keys = [
        row["key"]
        for path in (out / "captions").glob("*.parquet")
        for row in rows_of(out / "captions", [path.name])
    ]
    assert sorted(map(int, keys)) == list(range(MORE_ROWS)), "a row is lost"
    shutil.rmtree(out)


def test_a_retry_killed_at_any_step_and_then_an_overwrite_with_another_captioner(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    FIRST.run(out)
    steps = killed_everywhere(RETRY, out, tmp_path / "copies")
    left_over = [step for step in steps if (step / "_side").exists()]
    assert len(left_over) > 2
    for step in (left_over[0], left_over[len(left_over) // 2], left_over[-1]):
        follow(step, [OVERWRITE], tmp_path)


def test_a_driver_that_wakes_up_while_another_run_works_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended in the middle of a first run. Meanwhile the table is made again."""
    out = tmp_path / "out"
    steps = killed_everywhere(FIRST, out, tmp_path / "copies")
    chunks = [list((step / "captions" / "_chunks").glob("*.parquet")) for step in steps]
    has_table = [(step / "captions" / "_delta_log").exists() for step in steps]
    out = next(
        step
        for step, files, begun in zip(steps, chunks, has_table, strict=True)
        if begun and len(files) >= 2
    )
    late = OutputTable(RunFolder(str(out / "captions")))
    [*_, file] = sorted((out / "captions" / "_chunks").glob("*.parquet"))
    path = f"_chunks/{file.name}"
    unknown = chunk_of(path)._replace(shard=9)  # as if the table did not have it
    chunk = ChunkFile(path, file.stat().st_size, 4, unknown)
    stopped = []

    def wake_up(*arguments: Any) -> Any:
        with pytest.raises(TakenOverError):
            late.commit_chunks([chunk], 1, CAPTIONS)
        stopped.append(chunk)
        return open_model(*arguments)

    OVERWRITE.run(out, wake_up)
    assert stopped and check(out, finished=True) == "B"


def test_a_driver_that_wakes_up_with_an_abandoned_table_is_stopped(tmp_path: Path) -> None:
    """It was suspended before the last commit of an --overwrite. Then the old captioner's run went
    on, with nothing new to make."""
    out = tmp_path / "out"
    FIRST.run(out)
    steps = killed_everywhere(OVERWRITE, out, tmp_path / "copies")
    side = [step for step in steps if list(step.glob("captions/part-0002-*"))]
    late = OutputTable(RunFolder(str(side[0] / "captions")))
    assert late.operation == 2 and late.completed == 1
    Command("A").run(side[0])
    with pytest.raises(TakenOverError):
        late.replace(2, [], (), CAPTIONS)
    assert check(side[0], finished=True) == "A"


@pytest.mark.parametrize("quick", [Command("A"), Command("B", overwrite=True)], ids=str)
@pytest.mark.parametrize("late", [Command("A"), Command("B", overwrite=True)], ids=str)
@pytest.mark.parametrize(
    "is_finished",
    [True, pytest.param(False, marks=pytest.mark.thorough)],
    ids=["finished", "killed"],
)
def test_what_another_run_does_between_a_decision_and_its_plan_is_not_doubled(
    late: Command,
    quick: Command,
    is_finished: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs that do not see each other's lease. The late one has seen an empty folder."""
    out = tmp_path / "out"
    others = [quick]

    def units(*arguments: Any) -> Any:
        if others:
            opens = open_model if is_finished else killed_worker
            with contextlib.suppress(RuntimeError, UserError):
                others.pop().run(out, opens)
        return chosen_units(*arguments)

    monkeypatch.setattr(lease, "_is_alive", lambda found: False)
    monkeypatch.setattr(bulk_run, "chosen_units", units)
    with contextlib.suppress(UserError):
        late.run(out)
    assert not others
    captioner = check(out, finished=False)
    record = json.loads((out / "run.json").read_text())["identity"]["captioner"]
    Command(captioner or record, overwrite=captioner != record).run(out)
    check(out, finished=True)
    assert len(pq.read_table(out / "captions")) == ROWS


def test_the_plan_says_whose_rows_they_are(tmp_path: Path) -> None:
    """Two runs began at the same time: one has written the plan, and the other run.json."""
    out = tmp_path / "out"
    Command("B").run(out)
    record = json.loads((out / "run.json").read_text())
    record["identity"]["captioner"] = "A"
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds rows of another run"):
        Command("A", rows=MORE_ROWS).run(out)
    assert check(out, finished=True) == "B"


def killed_worker(*arguments: Any) -> Any:
    """Ends the run when its first chunk is to be made."""
    raise RuntimeError("killed")


def test_an_interrupted_listing_is_completed_with_its_own_selection(tmp_path: Path) -> None:
    """By a retry whose --only and --sample are about rows of the table."""
    out, rows = tmp_path / "out", 300
    FIRST.run(out)
    with pytest.raises(RuntimeError, match="killed"):
        Command("A", rows=rows).run(out, killed_worker)
    for shard in sorted((out / "_plan/0002/00000").glob("*.parquet"))[1:]:
        shard.unlink()
    options = BulkOptions(out=str(out), batch=4, retry="failed", only="width > 0", sample=0.1)
    opens = functools.partial(open_model, "A", False)
    run_job(captions_job(Numbers(rows), options, "A", opens), {})
    assert len(pq.read_table(out / "captions")) == rows


@pytest.mark.parametrize(
    "third",
    [0, *(pytest.param(third, marks=pytest.mark.thorough) for third in (1, 2))],
)
@pytest.mark.parametrize("killed", [FIRST, RETRY, OVERWRITE, RESUME], ids=str)
def test_every_command_killed_at_some_steps_and_then_another(
    killed: Command, third: int, tmp_path: Path
) -> None:
    """Each third is every third step."""
    out = tmp_path / "out"
    if killed is not FIRST:
        FIRST.run(out)
    steps = killed_everywhere(replace(killed), out, tmp_path / "copies")
    assert len(steps) > 5
    for number, step in list(enumerate(steps))[third::3]:
        follow(step, [AFTER[number % len(AFTER)]], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("killed", [FIRST, RETRY, OVERWRITE, RESUME], ids=str)
def test_every_command_killed_at_any_step_and_then_every_other(
    killed: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if killed is not FIRST:
        FIRST.run(out)
    for step in killed_everywhere(replace(killed), out, tmp_path / "copies"):
        for command in AFTER:
            follow(step, [command], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_kills_one_after_the_other(tmp_path: Path) -> None:
    """A retry is killed, and then the overwrite after it too."""
    out = tmp_path / "out"
    FIRST.run(out)
    steps = [
        step
        for step in killed_everywhere(RETRY, out, tmp_path / "copies")
        if (step / "_side").exists() and not (step / "facts.json").exists()
    ]
    middle = steps[len(steps) // 2]
    shutil.copytree(middle, tmp_path / "again")
    for number, step in enumerate(
        killed_everywhere(OVERWRITE, tmp_path / "again", tmp_path / "more")
    ):
        follow(step, [AFTER[number % len(AFTER)]], tmp_path)
