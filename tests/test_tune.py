"""`raycap tune` on a real Ray: trials end early, die, are killed with their driver; the sweep
comes to its end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from feature_tables import features, source_config, write

from raycap import Captioner
from raycap.cli import main
from raycap.config import load
from raycap.storage.training_log import read_log

pytestmark = pytest.mark.ray

CONFIG = """
encoder: {kind: pixels, size: 32, patch: 16, frequencies: 2}
decoder:
  kind: top_down
  hidden_width: 16
  embedding_width: 16
  attention_width: 16
  projection_width: 16
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 1}
train:
  features: %s
  cache: %s
  epochs: 4
  batch: 8
  lr: 0.02
  schedule: {kind: constant, warmup: 0}
  precision: fp32
  log_steps: 1
  trackers: []
  workers: {count: 0}
cluster: {cpus: 2}
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tables") / "table", features(48))


@pytest.fixture
def sweep(tmp_path: Path, table: str) -> Callable[..., list[str]]:
    """The words of a command for a sweep of a space, given as YAML."""
    config = tmp_path / "run.yaml"
    config.write_text(source_config(table) + CONFIG % (table, tmp_path / "cache"))

    def words(space: str, *flags: str) -> list[str]:
        (tmp_path / "space.yaml").write_text(space)
        named = ["--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / "sweep")]
        return ["tune", "--config", str(config), *named, *flags]

    return words


def trials(tmp_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    return rows


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def journal(tmp_path: Path, trial: str) -> Path:
    return tmp_path / "sweep" / "trials" / trial / "metrics.jsonl"


@pytest.mark.slow
def test_trials_with_workers_of_their_own_share_two_processors_and_leave_nothing(
    sweep: Callable[..., list[str]],
    tmp_path: Path,
    one_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two at once: one is killed on the way, the later ones are ended early; each gives its
    processor back."""
    space = "train.lr: {choice: [2.0e-2, 1.0e-4, 1.0e-5, 1.0e-6]}"
    flags = [
        "--searcher",
        "grid",
        "--grace",
        "1",
        "--reduction",
        "2",
        "--train.validation.best-by",
        "loss",
    ]
    command = sweep(space, *flags, "--train.workers.count", "1", "--train.epochs", "3")

    def kill() -> None:
        wait_for(lambda: read_log(journal(tmp_path, "0000")))
        os.kill(trial_process(tmp_path / "sweep" / "trials" / "0000"), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(command) == 0
    killer.join()
    rows = trials(tmp_path)
    statuses = [row["status"] for row in rows]
    assert statuses.count("stopped") >= 2 and set(statuses) == {"stopped", "finished"}
    best = min(rows, key=lambda row: row["score"])
    assert (best["trial"], best["train.lr"], best["status"]) == ("0000", 0.02, "finished")
    assert all(
        len(row["curve"]) == row["epochs"] and row["score"] == min(row["curve"]) for row in rows
    )
    wait_for(lambda: ray.available_resources().get("CPU") == 2)

    out = tmp_path / "sweep"
    assert Captioner.load(out / "captioner").facts["training"]["learning rate"] == 0.02
    assert load(str(out / "best.yaml")).train.lr == 0.02
    assert not (out / "_ray").exists() and not list(out.glob("trials/*/checkpoints"))

    capsys.readouterr()
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*.*") if "lease" not in path.name
    }
    assert main(command) == 0
    assert "finished; nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert main([*command, "--train.epochs", "5"]) == 2
    assert "train.epochs was 3, now 5" in capsys.readouterr().err
    assert main(sweep("train.lr: {choice: [0.01]}", *command[7:])) == 2
    assert "space.train.lr was" in capsys.readouterr().err


def trial_process(folder: Path) -> int:
    """Which process holds the run: its lease names it."""
    return int(json.loads((folder / "_lease.json").read_text())["pid"])


def test_a_trial_that_fails_is_recorded_with_its_reason(
    sweep: Callable[..., list[str]],
    tmp_path: Path,
    one_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--searcher", "grid", "--scheduler", "none", "--train.epochs", "2"]
    assert main(sweep("vocabulary.min_count: {choice: [1, 9999]}", *flags)) == 1
    rows = trials(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert "9999" in rows[1]["reason"] and rows[1]["score"] is None
    assert rows[1]["reason"] in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "sweep"), "--out", str(page)]) == 0
    assert "Failed trials" in page.read_text() and "9999" in page.read_text()


def test_a_captioner_to_start_from_that_is_not_there_is_refused_before_any_trial(
    sweep: Callable[..., list[str]],
    tmp_path: Path,
    one_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    space = "train.start_from: {choice: ['', /no/such/captioner]}"
    assert main(sweep(space, "--searcher", "grid", "--scheduler", "none")) == 2
    assert "/no/such/captioner is no captioner folder" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "trials").exists()


def alive(folder: Path) -> bool:
    """Whether the process that holds a run still lives."""
    return (folder / "_lease.json").exists() and Path(f"/proc/{trial_process(folder)}").exists()


def up_to_checkpoint(folder: Path) -> list[dict[str, Any]]:
    """What a run has noted before its last checkpoint: that is not done again."""
    newest = max(folder.glob("checkpoints/step-*"), default=None)
    step = json.loads((newest / "state.json").read_text())["place"]["step"] if newest else 0
    return [line for line in read_log(folder / "metrics.jsonl") if line["step"] <= step]


@pytest.mark.slow
def test_a_killed_driver_goes_on_without_doing_again_what_is_done(
    sweep: Callable[..., list[str]], tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="needs Optuna: pip install 'raycap[optuna]'")
    space = """
train.lr: {log_uniform: [1e-3, 5e-2]}
decoder.kind: {choice: [top_down, recurrent]}
decoder.cell: {choice: [lstm, gru], when: {decoder.kind: recurrent}}
"""
    flags = ["--searcher", "optuna", "--trials", "3", "--concurrent", "2", "--scheduler", "none"]
    command = sweep(space, *flags, "--train.epochs", "10")
    process = subprocess.Popen(
        [sys.executable, "-m", "raycap", *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ended():
        return sorted(path.parent for path in (tmp_path / "sweep").glob("trials/*/ended.json"))

    def started():
        return sorted(path.parent for path in (tmp_path / "sweep").glob("trials/*/metrics.jsonl"))

    wait_for(lambda: ended() and any(folder not in ended() for folder in started()))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(alive(folder) for folder in started()))
    done = {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in ended()}
    saved = {folder: up_to_checkpoint(folder) for folder in started() if folder not in done}
    parameters = {folder: (folder / "trial.json").read_bytes() for folder in started()}

    assert main(command) == 0
    rows = trials(tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert all(row["epochs"] == 10 for row in rows)
    assert done == {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in done}
    for folder, before in saved.items():
        assert read_log(folder / "metrics.jsonl")[: len(before)] == before
    assert parameters == {folder: (folder / "trial.json").read_bytes() for folder in parameters}
    assert len({row["parameters"] for row in rows}) == 3
    facts = json.loads((tmp_path / "sweep" / "facts.json").read_text())
    assert facts["trials"] == {"finished": 3}
