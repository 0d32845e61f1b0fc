"""The other forms of a table: what is in them, that twice is as once, and that no name leads out."""

import json
import tarfile
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raycap.errors import UserError
from raycap.fetch import Fetch, Trust
from raycap.schema import CAPTIONS
from raycap.sinks import SINKS, Sinks, files_of, is_written, join, safe_name, write
from raycap.storage import RunFolder
from raycap.uris import uri_of

PART = "captions/part-a.parquet"


def table(tmp_path: Path, beside: bool = False, mode: str = "skip") -> Sinks:
    """Three rows, one of them failed, of pictures that are there."""
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    rows = []
    for number, (name, caption) in enumerate(
        {"a.png": "a red dog", "b c.png": "zwei Hunde 犬", "d.png": ""}.items()
    ):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(photos / name)
        said = {
            "caption": caption,
            "score": -1.0 if caption else None,
            "alternatives": [],
            "sha256": "0" * 64,
        }
        status = {
            "status": "success" if caption else "failed_to_caption",
            "error_message": "" if caption else "none",
        }
        rows.append(
            {"key": name, "uri": str(photos / name), "width": 9, "height": 9, **said, **status}
        )
    (tmp_path / "out" / "captions").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "out" / PART)
    return Sinks(RunFolder(str(tmp_path / "out")), mode, beside, Fetch(), Trust.below(str(photos)))


@pytest.mark.parametrize(
    "name", ["a#1.png", "a?b=1.png", "100%.png", "file:b.png", "a::b.png", "d\udce9.png"]
)
def test_pictures_of_any_name_get_their_text_and_their_ending(name: str, tmp_path: Path) -> None:
    sinks = table(tmp_path, beside=True)
    picture = tmp_path / "photos" / name
    Image.new("RGB", (9, 9)).save(picture, "png")
    part = pq.read_table(tmp_path / "out" / PART).slice(0, 1)
    part = part.set_column(part.column_names.index("uri"), "uri", pa.array([uri_of(str(picture))]))
    pq.write_table(part, tmp_path / "out" / PART)
    write("txt", PART, sinks)
    assert picture.with_suffix(".txt").read_text() == "a red dog\n"
    write("webdataset", PART, sinks)
    with tarfile.open(tmp_path / "out" / "webdataset" / "part-a.tar") as tar:
        assert tar.getnames() == ["000000.json", "000000.txt", "000000.png"]
        assert tar.extractfile("000000.png").read() == picture.read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("mode", ["skip", "overwrite", "append", "prepend"])
def test_twice_is_as_once(name: str, mode: str, tmp_path: Path) -> None:
    sinks = table(tmp_path, mode=mode)
    assert not is_written(name, PART, sinks.folder)
    write(name, PART, sinks)
    once = snapshot(tmp_path)
    assert is_written(name, PART, sinks.folder)
    write(name, PART, sinks)
    assert snapshot(tmp_path) == once
    for file in files_of(PART):
        sinks.folder.remove(file)
    assert not is_written(name, PART, sinks.folder)


def test_json_lines_hold_every_row(tmp_path: Path) -> None:
    write("jsonl", PART, table(tmp_path))
    lines = (tmp_path / "out/jsonl/part-a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == pq.read_table(
        tmp_path / "out" / PART
    ).to_pylist()


def test_sidecars_under_the_output_and_beside_the_pictures(tmp_path: Path) -> None:
    write("txt", PART, table(tmp_path))
    assert (tmp_path / "out/txt/a.txt").read_text() == "a red dog\n"
    assert (tmp_path / "out/txt/b c.txt").read_text() == "zwei Hunde 犬\n"
    assert not (tmp_path / "out/txt/d.txt").exists(), "a failed row has no caption to write"
    write("txt", PART, table(tmp_path, beside=True))
    assert (tmp_path / "photos/a.txt").read_text() == "a red dog\n"
    assert sorted(
        path.name for path in (tmp_path / "photos").iterdir() if path.suffix != ".png"
    ) == [
        "a.txt",
        "b c.txt",
    ]


@pytest.mark.parametrize(
    "mode, expected, differing",
    [
        ("skip", "mine\n", 1),
        ("overwrite", "a red dog\n", 0),
        ("append", "mine\na red dog\n", 0),
        ("prepend", "a red dog\nmine\n", 0),
    ],
)
def test_a_text_file_of_other_words(
    mode: str, expected: str, differing: int, tmp_path: Path
) -> None:
    sinks = table(tmp_path, beside=True, mode=mode)
    (tmp_path / "photos/a.txt").write_text("mine\n")
    assert write("txt", PART, sinks) == differing
    assert (tmp_path / "photos/a.txt").read_text() == expected


def test_webdataset_groups_picture_caption_and_row(tmp_path: Path) -> None:
    write("webdataset", PART, table(tmp_path))
    with tarfile.open(tmp_path / "out/webdataset/part-a.tar") as tar:
        content = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert sorted(content) == [
        f"{number:06d}.{end}" for number in (0, 1) for end in ("json", "png", "txt")
    ]
    assert content["000000.png"] == (tmp_path / "photos/a.png").read_bytes()
    assert content["000001.txt"].decode() == "zwei Hunde 犬"
    assert json.loads(content["000000.json"])["key"] == "a.png"


def test_imagefolder_names_pictures_and_captions(tmp_path: Path) -> None:
    sinks = table(tmp_path)
    write("imagefolder", PART, sinks)
    join(sinks.folder)
    lines = [
        json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"file_name": "a.png", "text": "a red dog"},
        {"file_name": "b c.png", "text": "zwei Hunde 犬"},
    ]


def test_no_sidecar_beside_a_url(tmp_path: Path) -> None:
    sinks = table(tmp_path, beside=True)
    rows = pq.read_table(tmp_path / "out" / PART).to_pylist()
    rows[0]["uri"] = "https://example.org/a.png"
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "out" / PART)
    with pytest.raises(UserError, match="--txt-beside"):
        write("txt", PART, sinks)


@given(st.text(), st.text())
def test_no_key_leads_out_of_its_folder(key: str, other: str) -> None:
    for each in (
        key,
        f"../{key}",
        f"/{key}",
        f"{key}/../../{other}",
        "..",
        "https://a/../b?c#d",
        "x" * 999,
    ):
        path = PurePosixPath(safe_name(each))
        assert not path.is_absolute() and ".." not in path.parts and path.parts
        assert all(0 < len(part.encode()) <= 255 for part in path.parts)
        path.with_suffix(".txt")
