"""The doors in jobs/, through `ray job submit` to a real cluster on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from feature_tables import features, write
from small_captioner import photos, save_captioner
from test_train import CONFIG, DECODER

from raycap.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
PICTURES = 240


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the environment of somebody must say who submits a job to it."""
    gcs, dashboard, client, agent = free_ports(4)
    folder = Path("/tmp") / f"raycap-jobs-{os.getpid()}"  # paths of sockets must be short
    log = (tmp_path_factory.mktemp("cluster") / "head.log").open("wb")
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={gcs}",
        f"--temp-dir={folder}",
    ]
    ports = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports.append(f"--dashboard-agent-listen-port={agent}")
    # Somebody who has used Ray on this machine before has a token file, and Ray then asks for it.
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    # The cluster's `python` is this one, also where its environment was never activated.
    environment["PATH"] = f"{Path(RAY).parent}{os.pathsep}{environment['PATH']}"
    environment["HOME"] = str(tmp_path_factory.mktemp("home"))  # for the cache
    head = subprocess.Popen(
        [*command, *ports, "--object-store-memory=300000000", "--disable-usage-stats"],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while head.poll() is None and time.monotonic() < end:
        with socket.socket() as look:
            if not look.connect_ex(("127.0.0.1", dashboard)):
                break
        time.sleep(0.2)
    try:
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.terminate()
        head.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def submit(
    cluster: dict[str, str], *job: str, name: str = "", wait: bool = True
) -> "subprocess.CompletedProcess[str]":
    named = [f"--submission-id={name}"] if name else []
    waiting = [] if wait else ["--no-wait"]
    command = [
        RAY,
        "job",
        "submit",
        "--working-dir",
        str(REPOSITORY),
        *named,
        *waiting,
        "--",
        "python",
        *job,
    ]
    return subprocess.run(
        command, env=cluster, capture_output=True, text=True, timeout=250, check=False
    )


def rows(out: Path) -> list[str]:
    parts = (out / "captions").glob("*.parquet")
    return [
        key for part in parts for key in pq.read_table(part, columns=["key"])["key"].to_pylist()
    ]


# What each job reads is in the working directory that goes along, as it is for most people; what it writes is not.
# The encoder and the pictures are the smoke test's, which need no download.
SMOKE = ["--config", "configs/smoke.yaml", "--source.count", "24"]


def check_job(cluster: dict[str, str], *job: str) -> str:
    """Submit a job that must end well; the answer is what it printed."""
    done = submit(cluster, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_caption_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    printed = check_job(cluster, "jobs/caption.py", "samples", "--out", str(tmp_path / "out"))
    assert "12 rows, 0 failed" in printed
    assert len(rows(tmp_path / "out")) == 12


def test_the_extract_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    check_job(cluster, "jobs/extract.py", *SMOKE, "--out", str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "features").num_rows == 24


def test_the_evaluate_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    check_job(cluster, "jobs/evaluate.py", "shipped", *SMOKE, "--out", str(out))
    assert "bleu_4" in out.read_text()


def test_the_train_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_job(cluster, "jobs/train.py", *SMOKE, "--epochs", "1", "--batch", "8", "--out", str(out))
    assert (out / "captioner" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_tune_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text("train.lr: {log_uniform: [1e-3, 1e-2]}\n")
    small = ["--train.epochs", "1", "--train.batch", "8", "--trials", "2"]
    check_job(cluster, "jobs/tune.py", *SMOKE, *small, "--space", str(space), "--out", str(out))
    assert pq.read_table(out / "trials.parquet").num_rows == 2


def test_a_job_stopped_halfway_is_finished_by_the_same_job(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    source, model, out = (
        photos(tmp_path / "photos", range(PICTURES), size=8),
        tmp_path / "model",
        tmp_path / "out",
    )
    save_captioner(model)
    slow = ["--batch", "8", "--part-rows", "16", "--part-seconds", "0.1", "--actors", "1"]
    job = ["jobs/caption.py", str(source), "--model", str(model), "--out", str(out), *slow]
    began = submit(cluster, *job, name="first", wait=False)
    assert began.returncode == 0, began.stderr
    end = time.monotonic() + 120
    while not (out / "captions").exists() and time.monotonic() < end:
        time.sleep(0.05)
    subprocess.run(
        [RAY, "job", "stop", "first"], env=cluster, capture_output=True, timeout=60, check=True
    )
    status = subprocess.run(
        [RAY, "job", "status", "first"], env=cluster, capture_output=True, text=True, check=True
    )
    assert "stopped" in status.stdout.lower() + status.stderr.lower()
    stood = rows(out)
    assert 0 < len(stood) < PICTURES and not (out / "facts.json").exists()
    ended = submit(cluster, *job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        f"{PICTURES} rows, 0 failed; {PICTURES - len(stood)} made now"
        in ended.stdout + ended.stderr
    )
    assert sorted(rows(out)) == [path.name for path in sorted(source.iterdir())]


def test_exit_codes_and_refusals_reach_whoever_submits(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    no_model = submit(
        cluster,
        "jobs/caption.py",
        "--source",
        "shapes",
        "--model",
        "/none",
        "--out",
        str(tmp_path),
    )
    assert no_model.returncode == 1
    assert "/none is no captioner folder" in no_model.stdout + no_model.stderr
    assert "exit code 2" in no_model.stdout + no_model.stderr
    # `python -m raycap` finds the package in the working directory; what it would write there would be lost.
    lost = submit(cluster, "-m", "raycap", "inspect", "--source", "shapes")
    assert lost.returncode == 1
    assert (
        "inspection.failed.jsonl would be written into the job's own copy"
        in lost.stdout + lost.stderr
    )


@pytest.mark.parametrize(
    "command",
    [
        ["caption", "pictures"],
        ["caption", "pictures", "--out", "captions"],
        ["caption", "pictures/00000.png", "--show"],
        ["extract", "pictures", "--encoder", "pixels", "--out", "features"],
        ["train", "--source", "shapes", "--encoder", "pixels", "--out", "run"],
        [
            "tune",
            "--source",
            "shapes",
            "--encoder",
            "pixels",
            "--space",
            "space.yaml",
            "--out",
            "sweep",
        ],
        ["evaluate", "shipped", "--references", "references.csv"],
        ["inspect", "pictures"],
        ["report", "captions.csv"],
    ],
    ids=" ".join,
)
def test_an_output_in_the_copy_of_the_working_directory_is_refused(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And it is refused before any work: what is made by then would be lost."""
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    photos(copy / "pictures", range(1))
    (copy / "references.csv").write_text("image,caption\n00000.png,a dog runs\n")
    (copy / "captions.csv").write_text("image,caption\n00000.png,a dog runs\n")
    (copy / "space.yaml").write_text("train.lr: {log_uniform: [1e-3, 1e-2]}\n")
    before = sorted(copy.rglob("*"))
    monkeypatch.chdir(copy)
    assert main(command) == 2
    assert (
        "would be written into the job's own copy of its working directory"
        in capsys.readouterr().err
    )
    assert not ray.is_initialized()
    assert sorted(copy.rglob("*")) == before


def test_a_captioner_a_table_and_a_list_in_the_copy_of_the_working_directory_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    save_captioner(copy / "model")
    photos(copy / "pictures", range(1))
    (copy / "references.csv").write_text("image,caption\n00000.png,a dog runs\n")
    write(copy / "encoded", features(24))
    (copy / "train.yaml").write_text(CONFIG % DECODER)
    monkeypatch.chdir(copy)
    assert main(["caption", "pictures/00000.png", "--model", "model"]) == 0
    assert (
        main(
            [
                "evaluate",
                "references.csv",
                "--references",
                "references.csv",
                "--out",
                f"{tmp_path}/s.json",
            ]
        )
        == 0
    )
    made = [
        "--out",
        f"{tmp_path}/run",
        "--cache",
        f"{tmp_path}/cache",
        "--epochs",
        "1",
        "--workers.count",
        "0",
    ]
    assert main(["train", "--config", "train.yaml", "--features", "encoded", *made]) == 0


def test_without_the_token_nobody_gets_in(cluster: dict[str, str]) -> None:
    stranger = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = submit(
        stranger | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}, "-c", "pass"
    )
    assert refused.returncode != 0
