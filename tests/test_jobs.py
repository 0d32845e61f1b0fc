"""The scripts in jobs/, through `ray job submit` to a real cluster on this machine."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from feature_tables import features, source_config, write
from heads import check_job, head, submit
from small_captioner import photos, save_captioner
from tables import keys
from test_train import CONFIG, DECODER

from raycap.cli import main

PICTURES = 240


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of somebody who submits a job to a cluster."""
    home = tmp_path_factory.mktemp("home")  # for the cache
    with head(home, "--num-cpus=2", "--object-store-memory=300000000") as environment:
        yield environment


# What each job reads is in the working directory that goes along, as it is for most people; what
# it writes is not. The encoder and the pictures are the smoke test's, which need no download.
SMOKE = ["--config", "configs/smoke.yaml", "--source.count", "24"]


@pytest.mark.slow
def test_the_caption_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    printed = check_job(cluster, "jobs/caption.py", "samples", "--out", str(tmp_path / "out"))
    assert "12 rows, 0 failed" in printed
    assert len(keys(tmp_path / "out")) == 12


@pytest.mark.slow
def test_the_extract_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    check_job(cluster, "jobs/extract.py", *SMOKE, "--out", str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "features").num_rows == 24


@pytest.mark.slow
def test_the_evaluate_job_with_its_defaults(cluster: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    check_job(cluster, "jobs/evaluate.py", "shipped", *SMOKE, "--out", str(out))
    assert "bleu_4" in out.read_text()


@pytest.mark.slow
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


def stop(cluster: dict[str, str], name: str) -> None:
    """What `ray job stop` asks of the cluster. The command itself takes seconds to start, in which
    the job would end."""
    url = f"{cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/{name}"
    headers = {"Authorization": f"Bearer {cluster['RAY_AUTH_TOKEN']}"}
    asked = urllib.request.Request(f"{url}/stop", method="POST", headers=headers)
    urllib.request.urlopen(asked, timeout=60).close()
    status, end = "", time.monotonic() + 60
    while status != "STOPPED" and time.monotonic() < end:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=60
        ) as answer:
            status = json.load(answer)["status"]
        time.sleep(0.1)
    assert status == "STOPPED"


@pytest.mark.slow
def test_a_job_stopped_halfway_is_finished_by_the_same_job(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    source, model, out = (
        photos(tmp_path / "photos", range(PICTURES), size=8),
        tmp_path / "model",
        tmp_path / "out",
    )
    save_captioner(model)
    slow = ["--batch", "4", "--beam", "20", "--part-rows", "8"]
    slow += ["--actors", "1"]
    job = ["jobs/caption.py", str(source), "--model", str(model), "--out", str(out), *slow]
    began = submit(cluster, *job, name="first", wait=False)
    assert began.returncode == 0, began.stderr
    end = time.monotonic() + 120
    while not keys(out) and time.monotonic() < end:
        time.sleep(0.05)
    stop(cluster, "first")
    first = keys(out)
    assert 0 < len(first) < PICTURES and not (out / "facts.json").exists()
    ended = submit(cluster, *job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        f"{PICTURES} rows, 0 failed; {PICTURES - len(first)} made now"
        in ended.stdout + ended.stderr
    )
    assert sorted(keys(out)) == [path.name for path in sorted(source.iterdir())]


@pytest.mark.slow
def test_exit_codes_and_error_messages_reach_whoever_submits(
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
    # `python -m raycap` finds the package in the working directory; what it would write there
    # would be lost.
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
@pytest.mark.usefixtures("no_ray")
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
    (copy / "train.yaml").write_text(source_config("encoded") + CONFIG % DECODER)
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


@pytest.mark.thorough
def test_without_the_token_nobody_gets_in(cluster: dict[str, str]) -> None:
    no_token = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = submit(
        no_token | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}, "-c", "pass"
    )
    assert refused.returncode != 0
