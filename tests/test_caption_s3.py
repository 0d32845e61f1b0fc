"""`raycap caption` from a bucket into a bucket, on a server of the test's own."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from sessions import start_ray
from small_captioner import photos, save_captioner

from raycap.cli import main

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'raycap[s3]'")
moto_server = pytest.importorskip(
    "moto.server", reason="needs moto's server: pip install 'raycap[dev]'"
)

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("no_ray")
def test_from_a_bucket_into_a_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(ray.shutdown)  # its workers have this test's environment
    request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **secrets}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3 = s3fs.S3FileSystem(skip_instance_cache=True)
        s3.mkdir("bucket")
        for path in photos(tmp_path / "photos", range(20)).iterdir():
            s3.put_file(str(path), f"bucket/photos/{path.name}")
        save_captioner(tmp_path / "model")
        s3.put(str(tmp_path / "model"), "bucket/model", recursive=True)

        command = ["caption", "s3://bucket/photos", "--model", "s3://bucket/model"]
        command += ["--out", "s3://bucket/out", "--batch", "8"]

        def run(*flags: str) -> int:
            return main([*command, *flags])

        def keys() -> list[str]:
            s3.invalidate_cache()
            parts = s3.ls("bucket/out/captions")
            return [
                key for part in parts for key in pq.read_table(s3.open(part))["key"].to_pylist()
            ]

        s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
        start_ray(2)
        assert run("--limit", "12", "--part-rows", "8") == 0
        assert len(keys()) == len(set(keys())) == 12
        assert run("--also", "jsonl") == 0
        assert sorted(keys()) == [f"{number:05d}.png" for number in range(20)]
        s3.invalidate_cache()
        assert json.loads(s3.cat("bucket/out/facts.json"))["rows"] == 20
        left = sorted(Path(name).name for name in s3.ls("bucket/out"))
        assert left == ["captions", "facts.json", "jsonl", "run.json"]
        capsys.readouterr()
        assert run("--overwrite") == 2 and "another --out" in capsys.readouterr().err
    server.stop()
