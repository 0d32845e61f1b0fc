"""A run is killed between any two of its steps, and another one follows: rows of one captioner
only, each key once, and facts that are true.

A process that is killed (kill -9) does nothing more. So the folder as it is before each step of a
run is what a kill at that moment would leave: it is copied, and the next commands run on the copy.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raycap.bulk.commit import FileLayout
from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions
from raycap.bulk.overwrite import NEW
from raycap.bulk.pending import TICKET
from raycap.bulk.pictures import manifest
from raycap.bulk.run import run_job
from raycap.cluster import Cluster
from raycap.cluster.session import session
from raycap.errors import UserError
from raycap.schema import CAPTIONS, FAILED_TO_FETCH, SUCCESS
from raycap.sources.manifest import Row, tables
from raycap.storage import RunFolder
from raycap.storage.lease import LEASE

pytestmark = pytest.mark.ray

ROWS, MORE_ROWS = 12, 15


@pytest.fixture(scope="module", autouse=True)
def _in_a_session(one_ray: None) -> Iterator[None]:
    # Workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with session(Cluster()):
        yield


@dataclass(frozen=True)
class Numbers:
    """A source of so many rows."""

    rows: int
    path: str = "numbers"
    carried: tuple[str, ...] = ()

    def check(self) -> None: ...

    def notes(self) -> tuple[str, ...]:
        return ()

    def tables(self, notes: object = None) -> Iterator[pa.Table]:
        return tables((Row(str(number), "") for number in range(self.rows)), lambda: "nothing")


def caption(table: pa.Table, model: str, fail: bool) -> pa.Table:
    """What a captioner would say; some pictures cannot be fetched."""
    rows = []
    for row in table.select(["key", *TICKET.names]).to_pylist():
        bad = fail and int(row["key"]) % 5 == 2
        columns = {
            "caption": "" if bad else f"{model} {row['key']}",
            "status": FAILED_TO_FETCH if bad else SUCCESS,
        }
        columns |= {
            "error_message": "gone" if bad else "",
            "uri": "",
            "sha256": "",
            "alternatives": [],
        }
        rows.append({**row, **columns, "score": None, "width": 1, "height": 1})
    return pa.Table.from_pylist(rows, pa.schema([*CAPTIONS, *TICKET]))


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

    def run(self, out: Path) -> None:
        options = BulkOptions(
            out=str(out),
            batch=4,
            part_rows=4,
            retry="failed" if self.retry else "",
            overwrite=self.overwrite,
        )
        told = {"model": self.model, "fail": self.fail}
        work = TableJob(
            command="caption",
            table="captions",
            source=Numbers(self.rows),  # type: ignore[arg-type]
            options=options,
            identity={"captioner": self.model},
            layout=FileLayout(4, 30.0, CAPTIONS, (), {"captioner": self.model}),
            rows=lambda job, pending: manifest(pending, 4).map_batches(
                caption, batch_format="pyarrow", fn_kwargs=told
            ),
        )
        run_job(work, {})


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

    def recorded(name: str) -> Callable[..., Any]:
        method = getattr(RunFolder, name)

        def step(self: RunFolder, *arguments: Any) -> Any:
            place = Path(self.path())
            if place == out or out in place.parents:
                recorder.copy(name)
                target = place / arguments[0]
                if name == "remove" and target.is_dir():
                    recorder.copy("half a removal", target.relative_to(out))
            answer = method(self, *arguments)
            if place == out or out in place.parents:
                recorder.copy(f"after {name}")
            return answer

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stage", "rename", "remove"):
            patch.setattr(RunFolder, name, recorded(name))
        command.run(out)
    return recorder.steps


def check(out: Path, finished: bool) -> str:
    """What always holds of the folder; the captioner of its rows."""
    parts = sorted((out / "captions").glob("*.parquet")) if (out / "captions").exists() else []
    rows = [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]
    keys = [row["key"] for row in rows]
    assert len(set(keys)) == len(keys), "a key twice"
    captioners = {pq.read_schema(part).metadata[b"captioner"].decode() for part in parts}
    assert len(captioners) <= 1, "rows of two captioners"
    assert {row["caption"].split()[0] for row in rows if row["caption"]} <= captioners, (
        "a part lies about its rows"
    )
    facts = json.loads((out / "facts.json").read_text()) if (out / "facts.json").exists() else None
    if facts is not None:
        assert facts["rows"] == len(rows)
        assert facts["failed"] == sum(row["status"] != SUCCESS for row in rows)
        assert {facts["identity"]["captioner"]} == captioners, "facts of other rows"
        assert json.loads((out / "run.json").read_text())["identity"] == facts["identity"]
    if finished:
        assert facts is not None and keys
        # A kill may also leave a hidden file that was on its way, such as .0ad8ac9f.part.
        left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        # What a killed --overwrite made stays for the next one.
        assert left - {NEW} == {"_lease.lock", "captions", "facts.json", "run.json"}
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
    Command(captioner or "A", rows=MORE_ROWS).run(out)
    check(out, finished=True)
    keys = [
        key
        for part in (out / "captions").iterdir()
        for key in pq.read_table(part)["key"].to_pylist()
    ]
    assert sorted(map(int, keys)) == list(range(MORE_ROWS)), "a row is lost"
    if (out / NEW).exists():
        Command("B", overwrite=True, rows=MORE_ROWS).run(out)
        assert check(out, finished=True) == "B" and not (out / NEW).exists()
    shutil.rmtree(out)


def test_a_retry_killed_at_any_step_and_then_an_overwrite_with_another_captioner(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    FIRST.run(out)
    steps = killed_everywhere(RETRY, out, tmp_path / "copies")
    left_over = [step for step in steps if list(step.glob("_retried/part-*"))]
    assert len(left_over) > 2
    for step in (left_over[0], left_over[len(left_over) // 2], left_over[-1]):
        follow(step, [OVERWRITE], tmp_path)


@pytest.mark.parametrize("origin", [{"act": "caption", "captioner": "B"}, None])
def test_a_side_table_of_another_or_an_unknown_run_is_not_merged(
    origin: dict[str, str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    FIRST.run(out)
    before = {path.name: path.read_bytes() for path in (out / "captions").iterdir()}
    Command("B").run(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "captions", out / "_retried")
    if origin is not None:
        (out / "_retried" / "_origin.json").write_text(json.dumps(origin))
    capsys.readouterr()
    Command("A").run(out)
    assert "left rows of another run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (out / "captions").iterdir()} == before
    assert check(out, finished=True) == "A"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("killed", [FIRST, RETRY, OVERWRITE, RESUME], ids=str)
def test_every_command_killed_at_any_step_and_then_every_other(
    killed: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if killed is not FIRST:
        FIRST.run(out)
    steps = killed_everywhere(replace(killed), out, tmp_path / "copies")
    assert len(steps) > 5
    for step in steps:
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
        if (step / "_retried").exists() and not (step / "facts.json").exists()
    ]
    middle = steps[len(steps) // 2]
    shutil.copytree(middle, tmp_path / "again")
    for number, step in enumerate(
        killed_everywhere(OVERWRITE, tmp_path / "again", tmp_path / "more")
    ):
        follow(step, [AFTER[number % len(AFTER)]], tmp_path)
