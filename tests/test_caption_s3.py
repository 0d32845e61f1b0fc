"""`raycap caption` from a bucket into a bucket, on a server of the test's own."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from small_captioner import photos, save_captioner

from raycap import Captioner
from raycap.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


@pytest.mark.thorough
@pytest.mark.usefixtures("no_ray")
def test_from_a_bucket_into_a_bucket(tmp_path: Path, model: Path, s3: Any, s3_server: str) -> None:
    store = {"aws_endpoint_url": s3_server, "aws_allow_http": "true"}
    s3.mkdir("captions")
    for path in photos(tmp_path / "photos", range(20)).iterdir():
        s3.put_file(str(path), f"captions/photos/{path.name}")
    s3.put(str(model), "captions/model", recursive=True)
    command = ["caption", "s3://captions/photos", "--model", "s3://captions/model"]
    command += ["--out", "s3://captions/out", "--batch", "8", "--part-rows", "8"]

    def captions() -> dict[str, str]:
        """Of the files that plain readers see, which are those of the Delta table."""
        s3.invalidate_cache()
        parts = [name for name in s3.ls("captions/out/captions") if name.endswith(".parquet")]
        table = DeltaTable("s3://captions/out/captions", storage_options=store)
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
    assert json.loads(s3.cat("captions/out/facts.json"))["rows"] == 20
    left = sorted(Path(name).name for name in s3.ls("captions/out"))
    assert left == ["_plan", "captions", "facts.json", "jsonl", "run.json"]
    assert main([*command, "--beam", "2", "--overwrite"]) == 0
    assert captions().keys() == first.keys() and captions() != first


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_actors_read_from_a_bucket_and_write_into_it(tmp_path: Path, model: Path, s3: Any) -> None:
    folder = photos(tmp_path / "photos", range(20))
    s3.mkdir("pictures")
    for path in folder.iterdir():
        s3.put_file(str(path), f"pictures/photos/{path.name}")
    command = ["caption", "s3://pictures/photos", "--model", str(model)]
    command += ["--batch", "8", "--part-rows", "8", "--actors", "2"]
    assert main([*command, "--out", "s3://pictures/out"]) == 0
    s3.invalidate_cache()
    parts = [name for name in s3.ls("pictures/out/captions") if name.endswith(".parquet")]
    made = [pq.read_table(s3.open(part), columns=["key", "caption"]) for part in parts]
    rows = sorted((row["key"], row["caption"]) for table in made for row in table.to_pylist())
    paths = sorted(folder.iterdir())
    alone = Captioner.load(model).caption(paths)
    assert rows == [(path.name, each.caption) for path, each in zip(paths, alone, strict=True)]
