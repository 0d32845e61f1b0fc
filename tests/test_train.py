"""`raycap train` on a real Ray: many workers do what one does, and whatever is killed, the same
command continues."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from feature_tables import features, source_config, source_flags, source_rows, write

from raycap import Captioner
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.storage.training_log import read_epochs, read_log
from raycap.training.store import unpack_table

pytestmark = pytest.mark.ray

DECODER = (
    "{kind: top_down, hidden_width: 24, embedding_width: 16, attention_width: 16, "
    "projection_width: 16, output_dropout: 0.0}"
)
CONFIG = """
encoder: {kind: pixels, size: 32, patch: 16, frequencies: 2}
decoder: %s
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 1}
train:
  epochs: 3
  batch: 8
  lr: 0.02
  schedule: {warmup: 2}
  precision: fp32
  log_steps: 1
  trackers: []
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tables") / "table", features(48))


@pytest.fixture
def config(tmp_path: Path, table: str) -> Path:
    file = tmp_path / "run.yaml"
    cache = f"  features: {table}\n  cache: {tmp_path / 'cache'}\n"
    file.write_text(source_config(table) + CONFIG % DECODER + cache)
    return file


def curve(out: Path) -> list[dict[str, Any]]:
    """The epochs of a run, without its times."""
    return [
        {
            name: value
            for name, value in line.items()
            if "seconds" not in name and name != "samples"
        }
        for line in read_epochs(out / "metrics.jsonl")
    ]


def close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Whether losses agree to a thousandth, which is what other orders of adding float32 numbers
    leave."""
    names = ("training_loss", "validation_loss")
    return [one["epoch"] for one in ours] == [one["epoch"] for one in theirs] and all(
        one[name] == pytest.approx(other[name], rel=1e-3)
        for one, other in zip(ours, theirs, strict=True)
        for name in names
    )


# -------------------------------------------------------------------------------------------
# without Ray's workers


def test_in_this_process_and_from_the_command_line(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(out), "--workers.count", "0"]) == 0
    facts = json.loads((out / "facts.json").read_text())
    assert facts["epochs"] == 3 == len(curve(out))
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    captioner = Captioner.load(out / "captioner")
    assert isinstance(captioner, TrainedCaptioner) and captioner.neighbours is not None
    assert captioner.facts["training"]["epoch"] == facts["kept"]["epoch"]
    remembered = captioner.neighbours
    learned_from = int(captioner.facts["data"]["learned from"].split()[0])
    assert len(remembered.vectors) == learned_from and remembered.captions.fits(learned_from)
    assert len(remembered.familiarity) == int(captioner.facts["data"]["judged by"].split()[0])


def test_a_finished_run_reports_it_and_does_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        "--workers.count",
        "0",
    ]
    assert main(arguments) == 0
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("*.*")
        if "lease" not in path.name
    }
    assert main(arguments) == 0
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_of_an_earlier_version_continues_with_other_options(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        "--workers.count",
        "0",
    ]
    assert main([*arguments, "--epochs", "1"]) == 0
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    identity = record["identity"]
    for section, option in (
        *((identity["train"], name) for name in ("limit", "batch_norm", "cache_frozen_stages")),
        (identity["train"]["validation"], "padded_length"),
        (identity["vocabulary"], "tokeniser"),
        (identity["decoder"], "output_layers"),
    ):
        del section[option]  # which that version did not have
    file.write_text(json.dumps(record))
    assert main([*arguments, "--epochs", "1", "--batch-norm", "frozen"]) == 2
    assert "train.batch_norm was 'auto', now 'frozen'" in capsys.readouterr().err
    for value, code in ((False, 0), (True, 2)):
        record["identity"]["decoder"]["scaled_words"] = value
        file.write_text(json.dumps(record))
        assert main([*arguments, "--epochs", "1"]) == code
    printed = capsys.readouterr()
    assert (
        "finished; nothing to do" in printed.out and "decoder.scaled_words was True" in printed.err
    )


def test_another_run_in_the_same_folder_is_refused_and_fresh_starts_over(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        "--workers.count",
        "0",
    ]
    assert main(arguments) == 0
    assert main([*arguments, "--lr", "0.01"]) == 2
    assert "train.lr was 0.02, now 0.01" in capsys.readouterr().err
    assert main([*arguments, "--lr", "0.01", "--epochs", "1", "--fresh"]) == 0
    assert len(curve(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--validation-split", "test"], ["test", "dev: "]),
        (["--training-splits", "trian"], ["trian", "train: "]),
        (["--features", "no-such-folder"], ["no-such-folder", "raycap extract"]),
        (["--vocabulary.min-count", "999"], ["999", "--vocabulary.min-count"]),
        (["--encoder.patch", "8"], ["another encoder"]),
        (["--vocabulary.glove", "no-such.txt"], ["no-such.txt"]),
        (["--augmentation.flip"], ["augmentation", "leave out train.features"]),
        (
            ["--augmentation.flip", "--augmentation.views", "2"],
            ["augmentation.views", "leave out train.features"],
        ),
        (["--out", "memory://run"], ["memory of one process"]),
        (["--window", "0"], ["train.window is 0"]),
        (
            ["--augmentation.flip", "--augmentation.views", "2", "--train.data", "stream"],
            ["augmentation.views need the whole tables"],
        ),
        (["--start-from", "no-such-captioner"], ["no-such-captioner"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_started(
    flags: list[str],
    words: list[str],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = ["--out", str(tmp_path / "run"), "--workers.count", "0"]
    assert main(["train", "--config", str(config), *usual, *flags]) == 2
    shown = capsys.readouterr().err
    for word in words:
        assert word in shown
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_without_splits_is_refused_with_the_remedy(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "part": ""} for row in source_rows(8)]
    bare = write(tmp_path / "bare", features(8), rows)
    usual = ["--out", str(tmp_path / "run"), "--workers.count", "0", "--features", bare]
    assert main(["train", *source_flags(bare), "--config", str(config), *usual]) == 2
    assert "(none): 8: --source.fractions 0.9 0.1 0 draws" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.usefixtures("no_ray")
def test_a_source_that_cannot_be_learned_from_is_refused_before_a_picture_is_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG % DECODER)
    (tmp_path / "space.yaml").write_text("train.lr: {choice: [0.01, 0.02]}")
    (tmp_path / "mine.csv").write_text("path,caption\na.png,a dog\nb.png,a cat\n")
    usual = ["--config", str(tmp_path / "run.yaml"), "--train.cache", str(tmp_path / "cache")]
    own = ["--space", str(tmp_path / "space.yaml")] if command == "tune" else []
    assert (
        main([command, str(tmp_path / "mine.csv"), *usual, *own, "--out", str(tmp_path / "out")])
        == 2
    )
    assert "(none): 2: --source.fractions 0.9 0.1 0 draws" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists() and not ray.is_initialized()


def test_a_refused_run_leaves_its_folder_to_the_corrected_one(
    config: Path, tmp_path: Path
) -> None:
    arguments = [
        "train",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        "--workers.count",
        "0",
    ]
    assert main([*arguments, "--validation-split", "devv"]) == 2
    assert main([*arguments, "--epochs", "1"]) == 0


# -------------------------------------------------------------------------------------------
# killed for real


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Commands that a test starts; those that still run when it fails are ended."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(
    started: list["subprocess.Popen[bytes]"], config: Path, out: Path, *flags: str
) -> "subprocess.Popen[bytes]":
    """The command as a person starts it, in a session of its own. It gets Ctrl-C, also where tests
    run in the background, where interrupts are ignored."""
    command = [
        sys.executable,
        "-m",
        "raycap",
        "train",
        "--config",
        str(config),
        "--out",
        str(out),
        *flags,
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, before)
    started.append(process)
    return process


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def steps(out: Path) -> int:
    return max((line["step"] for line in read_log(out / "metrics.jsonl")), default=0)


@pytest.mark.slow
def test_a_killed_run_continues_and_its_curve_is_that_of_an_undisturbed_run(
    config: Path, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    here = ["--workers.count", "0", "--epochs", "24", "--validation.best-by", "loss"]
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "whole"), *here]) == 0
    out, killed = tmp_path / "killed", 0
    for _ in range(2):
        process, before = start(started, config, out, *here), steps(out)
        wait_for(
            lambda before=before, process=process: (
                steps(out) >= before + 10 or process.poll() is not None
            )
        )  # type: ignore[misc]
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed
    assert main(["train", "--config", str(config), "--out", str(out), *here]) == 0
    assert curve(out) == curve(tmp_path / "whole")
    weights = [
        (folder / "captioner" / "model.safetensors").read_bytes()
        for folder in (out, tmp_path / "whole")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param("0", marks=pytest.mark.thorough),
        pytest.param("1", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_saves_in_the_middle_of_an_epoch(
    workers: str, config: Path, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    out = tmp_path / "run"
    process = start(
        started, config, out, "--workers.count", workers, "--epochs", "400", "--batch", "2"
    )
    wait_for(lambda: steps(out) >= 6 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    state = json.loads(
        sorted((out / "checkpoints").iterdir())[-1].joinpath("state.json").read_text()
    )
    assert state["place"]["step"] >= 6
    assert not (out / "facts.json").exists() and not (out / "stop").exists()


LEAVES_AT_ONCE = """
import os, signal, sys, threading, time
from raycap.commands.training_run import run_and_display
from raycap.storage import RunFolder
from raycap.training.run_files import StopRequest

class Display:
    def update(self):
        pass

for seconds in (0.5, 2):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    stop = StopRequest(RunFolder(sys.argv[1]))
    run_and_display(lambda: time.sleep(3600), stop, Display())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.thorough
def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    """The deadline only ends what hangs: for the step, it would be an hour."""
    assert (
        subprocess.run(
            [sys.executable, "-c", LEAVES_AT_ONCE, str(tmp_path)], timeout=120
        ).returncode
        == 130
    )


# ------------------------------------------------------------------------------------------- on
# Ray's workers


ELASTIC = "--workers.min 1 --workers.max 2 --train.data stream"


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param("--workers.count 2", marks=pytest.mark.thorough),
        pytest.param(ELASTIC, marks=pytest.mark.slow),
    ],
    ids=["fixed", "elastic"],
)
def test_two_workers_do_what_one_does(
    workers: str, config: Path, tmp_path: Path, one_ray: None
) -> None:
    curves = []
    for name, flags in {"here": "--workers.count 0", "ray": workers}.items():
        out = ["--out", str(tmp_path / name), "--epochs", "2", "--train.window", "24"]
        assert main(["train", "--config", str(config), *out, *flags.split()]) == 0
        curves.append(curve(tmp_path / name))
        assert not (tmp_path / name / "_ray").exists()
    assert close(*curves)


@pytest.mark.thorough
def test_features_are_made_in_actors_where_ray_runs(
    tmp_path: Path, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = ["shapes", "--source", "shapes", "--source.count", "20"]
    encoder = ["--encoder", "pixels", "--encoder.size", "32"]
    few = ["--batch", "8", "--actors", "1"]
    assert main(["extract", *source, *encoder, *few, "--out", str(out)]) == 0
    assert "1 model actor(s)" in capsys.readouterr().err
    rows, keys = unpack_table(str(out / "features"), tmp_path / "cache")
    assert keys.to_pylist() == [f"{number:06d}.png" for number in range(20)]
    assert len(np.unique(rows.reshape(20, -1), axis=0)) == 20


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_curve_is_the_same(
    config: Path, tmp_path: Path, one_ray: None
) -> None:
    usual = ["train", "--config", str(config), "--epochs", "16", "--validation.best-by", "loss"]
    assert main([*usual, "--out", str(tmp_path / "whole"), "--workers.count", "0"]) == 0
    out = tmp_path / "killed"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: steps(out) >= 12)
        killed.append(_one_worker())
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*usual, "--out", str(out), "--workers.count", "2"]) == 0
    killer.join()
    assert killed
    assert close(curve(out), curve(tmp_path / "whole"))


def _one_worker() -> int:
    """The process number of a worker that trains."""
    names = {
        int(folder.name): folder.joinpath("cmdline").read_bytes()
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and folder.joinpath("cmdline").exists()
    }
    ours = set(_children(os.getpid()))
    return next(
        pid
        for pid, name in names.items()
        if name.startswith(b"ray::RayTrainWorker") and pid in ours
    )


def _children(pid: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                yield int(folder.name)
                yield from _children(int(folder.name))


def test_more_workers_than_the_cluster_has_room_for_are_refused(
    config: Path, tmp_path: Path, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    assert main([*usual, "--workers.count", "8", "--workers.cpus", "2"]) == 2
    assert "8 workers with 2.0 processors each" in capsys.readouterr().err
    if not ray.cluster_resources().get("GPU"):
        assert main([*usual, "--workers.gpu", "True"]) == 2
        assert "GPU" in capsys.readouterr().err
