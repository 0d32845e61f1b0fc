"""Jobs for Ray begin in the process of the command, and go on where the workers of Ray are."""

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from million import captioned  # in benchmarks/
from small_captioner import photos, save_captioner
from table_jobs import Numbers, captions_job

from raycap.bulk import early_pool
from raycap.bulk.early_pool import EarlyPool
from raycap.bulk.job import TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.table import OutputTable
from raycap.bulk.work import WorkOrder
from raycap.bulk.worker_pool import LocalPool, WorkerPool
from raycap.captioners.trained import TrainedCaptioner
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.storage import RunFolder

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS, BATCH = 80, 4
# The first, and what the worker has in hand when the others are ready.
BATCHES_HERE = 1 + 4


def model(caption: str, may_answer: Callable[[], bool]) -> Callable[..., Any]:
    """A captioner that always says this, when it may."""

    def open_model(_options: Any, _threads: int) -> Callable[[pa.Table], pa.Table]:
        def answer(table: pa.Table) -> pa.Table:
            assert may_answer()
            return captioned(table, caption)

        return answer

    return open_model


class TwoPools(Machines):
    """Begins with one worker in this process; the other pool has another worker here."""

    def __init__(self, others: Callable[..., Any], before_others: Callable[[], None]) -> None:
        super().__init__(Cluster())
        self._others, self._before_others = others, before_others

    def worker_pool(
        self, job: TableJob, order: WorkOrder, events: "queue.SimpleQueue[Any]", rows: int | None
    ) -> WorkerPool:
        def start_others() -> WorkerPool:
            self._before_others()
            return LocalPool(
                job.options, replace(order, open_model=self._open_other), events, True
            )

        return EarlyPool(LocalPool(job.options, order, events, True, " for now"), start_others)

    def _open_other(self, threads: int) -> Any:
        return self._others(None, threads)


def job(out: Path, open_model: Callable[..., Any]) -> TableJob:
    options = CaptionOptions(out=str(out), batch=BATCH, threads=1)
    return captions_job(Numbers(ROWS), options, "two", open_model)


def captions(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "captions")
    assert table.num_rows == ROWS, "each row once"
    return dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))


@pytest.mark.usefixtures("no_ray")
def test_first_rows_are_committed_before_others_start_and_the_others_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_pool, "MOST_SECONDS_ALONE", 3600.0)
    batches_here, batches_there = itertools.count(1), itertools.count(1)
    has_other_made, is_done_here = threading.Event(), threading.Event()
    committed: list[int] = []

    def may_answer() -> bool:
        """One batch, then nothing until the others have made some."""
        number = next(batches_here)
        if number == BATCHES_HERE:
            is_done_here.set()
        return number == 1 or has_other_made.wait(60)

    def may_other_answer() -> bool:
        """One batch, then nothing until the worker here could have more."""
        has_other_made.set()
        return next(batches_there) == 1 or is_done_here.wait(60)

    def before_others() -> None:
        table = OutputTable(RunFolder(str(tmp_path)) / "captions")
        committed.append(sum(chunk.rows for chunk in table.chunks()))

    machines = TwoPools(model("other", may_other_answer), before_others)
    assert run_job(job(tmp_path, model("here", may_answer)), {}, machines) == 0
    assert committed == [BATCH], "the others were started once, after a commit"
    said = list(captions(tmp_path).values())
    assert said.count("here") == BATCHES_HERE * BATCH, "it got nothing more"


@pytest.mark.usefixtures("no_ray")
def test_others_do_not_wait_long_for_the_first_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_pool, "MOST_SECONDS_ALONE", 0.0)
    has_other_made = threading.Event()

    def may_other_answer() -> bool:
        has_other_made.set()
        return True

    machines = TwoPools(model("other", may_other_answer), lambda: None)
    first = model("here", lambda: has_other_made.wait(60))
    assert run_job(job(tmp_path, first), {}, machines) == 0
    assert set(captions(tmp_path).values()) >= {"other"}


@pytest.mark.usefixtures("no_ray")
def test_a_job_that_is_done_before_others_start_needs_none(tmp_path: Path) -> None:
    started: list[None] = []
    options = CaptionOptions(out=str(tmp_path), batch=ROWS, threads=1)
    small = replace(job(tmp_path, model("here", lambda: True)), options=options)
    machines = TwoPools(model("other", lambda: True), lambda: started.append(None))
    assert run_job(small, {}, machines) == 0
    assert set(captions(tmp_path).values()) == {"here"}
    assert not started


@pytest.mark.usefixtures("no_ray")
def test_what_fails_here_is_made_by_the_others(tmp_path: Path) -> None:
    def fail() -> bool:
        raise RuntimeError("no memory")

    machines = TwoPools(model("other", lambda: True), lambda: None)
    assert run_job(job(tmp_path, model("here", fail)), {}, machines) == 0
    assert set(captions(tmp_path).values()) == {"other"}
    assert "no memory" in (tmp_path / "facts.json").read_text()


@pytest.mark.usefixtures("no_ray")
def test_a_mistake_of_the_user_ends_the_run(tmp_path: Path) -> None:
    def fail() -> bool:
        raise UserError("the model is broken")

    machines = TwoPools(model("other", lambda: True), lambda: None)
    with pytest.raises(UserError, match="the model is broken"):
        run_job(job(tmp_path, model("here", fail)), {}, machines)


@pytest.mark.parametrize(
    ("cluster", "holds_model", "device", "expected"),
    [
        (Cluster(), True, "cpu", True),
        (Cluster(), False, "cpu", False),
        (Cluster(local_rows=0), True, "cpu", False),
        (Cluster(), True, "meta", False),
    ],
)
def test_only_a_process_that_holds_the_model_and_takes_no_gpu_begins(
    cluster: Cluster, holds_model: bool, device: str, expected: bool, tmp_path: Path
) -> None:
    made = job(tmp_path, model("here", lambda: True))
    options = replace(made.options, device=device)
    assert Machines(cluster)._begins_here(
        replace(made, options=options, holds_model=holds_model)
    ) is (expected)


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_a_job_begins_here_and_goes_on_on_ray(tmp_path: Path) -> None:
    save_captioner(tmp_path / "model")
    captioner = TrainedCaptioner.read(tmp_path / "model", "cpu", "fp32")
    folder = photos(tmp_path / "photos", range(ROWS))
    small = ["--batch", "2", "--actors", "1", "--precision", "fp32"]
    command = [sys.executable, "-m", "raycap", "caption", str(folder), *small]
    command += ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--cluster.cpus", "1", "--cluster.local-rows", "1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    begun = done.stderr.index("the model runs in this process until Ray has started")
    assert begun < done.stderr.index("starting Ray on this machine")
    assert "1 model actor(s)" in done.stderr
    paths = sorted(folder.iterdir())
    expected = captioner.caption(paths)
    assert captions(tmp_path / "out") == {
        path.name: found.caption for path, found in zip(paths, expected, strict=True)
    }
