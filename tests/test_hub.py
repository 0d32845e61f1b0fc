"""hf:// data sets, read through the hub's own client from a server with the hub's routes."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub
from huggingface_hub import constants
from PIL import Image
from small_captioner import save_captioner
from source_rows import read
from tables import keys

from raycap.cli import main
from raycap.errors import UserError
from raycap.sources import HuggingFace, Notes, detect, pieces

pytestmark = pytest.mark.usefixtures("no_ray")

TOKEN = "hf_secretOfTheTest"


def pictures(folder: Path, count: int) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (32, 32), (number, 40, 90)).save(path)
        found.append(path.read_bytes())
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    images = tmp_path / "hub" / "cats" / "folder" / "train"
    pictures(images, 3)
    rows = [{"file_name": f"{number}.png", "text": f"cat {number}"} for number in range(3)]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = pictures(tmp_path / "plain", 12)
    inside = tmp_path / "hub" / "cats" / "inside" / "data"
    inside.mkdir(parents=True)
    for split, some in (("train", data[:8]), ("test", data[8:])):
        table = pa.table(
            {
                "image": [{"bytes": each, "path": None} for each in some],
                "caption": [f"a {split} cat"] * len(some),
            }
        )
        pq.write_table(table, inside / f"{split}-00000.parquet", row_group_size=2)
    with Hub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_pictures_inside_parquet(hub: Hub) -> None:
    uri = "hf://datasets/cats/inside"
    assert detect(uri) == "huggingface"
    table = read(HuggingFace(uri))
    assert table["key"].to_pylist()[:2] == [
        "data/test-00000.parquet/0",
        "data/test-00000.parquet/1",
    ]
    assert table["split"].to_pylist() == ["test"] * 4 + ["train"] * 8
    assert table["references"][0].as_py() == ["a test cat"]
    some = table.slice(3, 3)
    assert HuggingFace(uri).embedded_pictures(some) == some["bytes"].to_pylist()


def test_imagefolder(hub: Hub) -> None:
    table = read(HuggingFace("hf://datasets/cats/folder@main"))
    assert table["key"].to_pylist() == [f"train/{number}.png" for number in range(3)]
    assert table["uri"][0].as_py() == "hf://datasets/cats/folder@main/train/0.png"


def test_a_data_set_is_cut_by_row_groups(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", 100)
    source = HuggingFace("hf://datasets/cats/inside")
    units = source.units()
    assert len(units) == 6
    found = [
        key
        for unit in units
        for table in source.tables_of_unit(unit, Notes())
        for key in table["key"].to_pylist()
    ]
    assert found == read(source)["key"].to_pylist()


@pytest.mark.parametrize("name", ["inside", "folder"])
def test_a_data_set_is_captioned(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With a token, which is in the environment only."""
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "out"
    save_captioner(tmp_path / "model")
    command = ["caption", f"hf://datasets/cats/{name}", "--model", str(tmp_path / "model")]
    assert main([*command, "--out", str(out), "--batch", "4"]) == 0
    assert len(keys(out)) == (12 if name == "inside" else 3)
    assert all(authorization == f"Bearer {TOKEN}" for _, authorization in hub.asked)
    for file in [file for file in out.rglob("*") if file.is_file()]:
        assert TOKEN.encode() not in file.read_bytes()


@pytest.mark.parametrize("name", ["cats/none", "cats/inside@other", "cats", ""])
def test_a_data_set_that_is_not_there(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match=rf"cannot read hf://datasets/{name}: .*HF_TOKEN"):
        HuggingFace(f"hf://datasets/{name}").check()


def test_a_token_is_never_part_of_a_message(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token = "another"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["inspect", "hf://datasets/cats/inside"]) == 2
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err and "hf://datasets/cats/inside" in said.err
