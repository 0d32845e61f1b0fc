"""`raycap caption` from a bucket into a bucket, on a server of the test's own."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from small_captioner import photos, save_captioner

from raycap.cli import main

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'raycap[s3]'")
pytest.importorskip("moto.server", reason="needs moto's server: pip install 'raycap[dev]'")

SECRETS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with S3's interface, in a process of its own: the Delta library holds Python's lock
    while it waits for an answer."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while True:
            assert server.poll() is None, "the server has ended"
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.fixture
def s3(
    endpoint: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator["s3fs.S3FileSystem"]:
    """The filesystem of that server, which is also the one of raycap and of its workers."""
    for name, value in {"AWS_ENDPOINT_URL": endpoint, **SECRETS}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
    yield s3fs.S3FileSystem(skip_instance_cache=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_from_a_bucket_into_a_bucket(
    tmp_path: Path, s3: "s3fs.S3FileSystem", endpoint: str
) -> None:
    store = {"aws_endpoint_url": endpoint, "aws_allow_http": "true"}
    s3.mkdir("bucket")
    for path in photos(tmp_path / "photos", range(20)).iterdir():
        s3.put_file(str(path), f"bucket/photos/{path.name}")
    save_captioner(tmp_path / "model")
    s3.put(str(tmp_path / "model"), "bucket/model", recursive=True)
    command = ["caption", "s3://bucket/photos", "--model", "s3://bucket/model"]
    command += ["--out", "s3://bucket/out", "--batch", "8", "--part-rows", "8"]

    def captions() -> dict[str, str]:
        """Of the files that plain readers see, which are those of the Delta table."""
        s3.invalidate_cache()
        parts = [name for name in s3.ls("bucket/out/captions") if name.endswith(".parquet")]
        table = DeltaTable("s3://bucket/out/captions", storage_options=store)
        assert sorted(Path(part).name for part in parts) == sorted(
            Path(uri).name for uri in table.file_uris()
        )
        rows = [row for part in parts for row in pq.read_table(s3.open(part)).to_pylist()]
        assert len({row["key"] for row in rows}) == len(rows)
        return {row["key"]: row["caption"] for row in rows}

    assert main([*command, "--limit", "12"]) == 0
    assert len(captions()) == 12
    assert main([*command, "--also", "jsonl"]) == 0
    first = captions()
    assert sorted(first) == [f"{number:05d}.png" for number in range(20)]
    assert json.loads(s3.cat("bucket/out/facts.json"))["rows"] == 20
    left = sorted(Path(name).name for name in s3.ls("bucket/out"))
    assert left == ["_plan", "captions", "facts.json", "jsonl", "run.json"]
    assert main([*command, "--beam", "2", "--overwrite"]) == 0
    assert captions().keys() == first.keys() and captions() != first


@pytest.mark.ray
def test_actors_read_from_a_bucket_and_write_into_it(
    tmp_path: Path, s3: "s3fs.S3FileSystem", request: pytest.FixtureRequest
) -> None:
    import ray
    from sessions import start_ray

    request.addfinalizer(ray.shutdown)  # its workers have this test's environment
    s3.mkdir("pictures")
    for path in photos(tmp_path / "photos", range(20)).iterdir():
        s3.put_file(str(path), f"pictures/photos/{path.name}")
    save_captioner(tmp_path / "model")
    command = ["caption", "s3://pictures/photos", "--model", str(tmp_path / "model")]
    command += ["--batch", "8", "--part-rows", "8", "--actors", "2"]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    start_ray(2)
    assert main([*command, "--out", "s3://pictures/out"]) == 0
    s3.invalidate_cache()
    parts = [name for name in s3.ls("pictures/out/captions") if name.endswith(".parquet")]
    made = [pq.read_table(s3.open(part), columns=["key", "caption"]) for part in parts]
    rows = sorted((row["key"], row["caption"]) for table in made for row in table.to_pylist())
    here = pq.read_table(tmp_path / "here" / "captions", columns=["key", "caption"]).to_pylist()
    assert rows == sorted((row["key"], row["caption"]) for row in here)
