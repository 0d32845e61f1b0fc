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
from small_captioner import photos, save_captioner

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
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--temp-dir={folder}"]
    ports = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports.append(f"--dashboard-agent-listen-port={agent}")
    # Somebody who has used Ray on this machine before has a token file, and Ray then asks for it.
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    # The cluster's `python` is this one, also where its environment was never activated.
    environment["PATH"] = f"{Path(RAY).parent}{os.pathsep}{environment['PATH']}"
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
    command = [RAY, "job", "submit", "--working-dir", str(REPOSITORY), *named, *waiting, "--", "python", *job]
    return subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=250, check=False)


def rows(out: Path) -> list[str]:
    parts = (out / "captions").glob("*.parquet")
    return [key for part in parts for key in pq.read_table(part, columns=["key"])["key"].to_pylist()]


def test_a_job_stopped_halfway_is_finished_by_the_same_job(cluster: dict[str, str], tmp_path: Path) -> None:
    source, model, out = photos(tmp_path / "photos", range(PICTURES), size=8), tmp_path / "model", tmp_path / "out"
    save_captioner(model)
    slow = ["--batch", "8", "--part-rows", "16", "--part-seconds", "0.1", "--actors", "1"]
    job = ["jobs/caption.py", str(source), "--model", str(model), "--out", str(out), *slow]
    began = submit(cluster, *job, name="first", wait=False)
    assert began.returncode == 0, began.stderr
    end = time.monotonic() + 120
    while not (out / "captions").exists() and time.monotonic() < end:
        time.sleep(0.05)
    subprocess.run([RAY, "job", "stop", "first"], env=cluster, capture_output=True, timeout=60, check=True)
    status = subprocess.run(
        [RAY, "job", "status", "first"], env=cluster, capture_output=True, text=True, check=True
    )
    assert "stopped" in status.stdout.lower() + status.stderr.lower()
    stood = rows(out)
    assert 0 < len(stood) < PICTURES and not (out / "facts.json").exists()
    ended = submit(cluster, *job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{PICTURES} rows, 0 failed; {PICTURES - len(stood)} made now" in ended.stdout + ended.stderr
    assert sorted(rows(out)) == [path.name for path in sorted(source.iterdir())]


def test_exit_codes_and_refusals_reach_whoever_submits(cluster: dict[str, str], tmp_path: Path) -> None:
    no_model = submit(cluster, "jobs/caption.py", "--source", "shapes", "--model", "/none", "--out", str(tmp_path))
    assert no_model.returncode == 1
    assert "/none is no captioner folder" in no_model.stdout + no_model.stderr
    assert "exit code 2" in no_model.stdout + no_model.stderr
    # `python -m raycap` finds the package in the working directory; what it would write there would be lost.
    lost = submit(cluster, "-m", "raycap", "inspect", "--source", "shapes")
    assert lost.returncode == 1
    assert "inspection.failed.jsonl would be written into the job's own copy" in lost.stdout + lost.stderr


def test_without_the_token_nobody_gets_in(cluster: dict[str, str]) -> None:
    stranger = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = submit(stranger | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}, "-c", "pass")
    assert refused.returncode != 0
