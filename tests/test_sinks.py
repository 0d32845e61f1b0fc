"""The other forms of a table: their content, that writing twice is as once, and that no name leads
out of the folder."""

import base64
import datetime
import decimal
import hashlib
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from raycap.config import loads
from raycap.errors import UserError
from raycap.fetch import Fetch, Trust
from raycap.schema import CAPTIONS
from raycap.sinks import SINKS, SinkSettings, write_part
from raycap.sinks.text_names import name_beside, text_name
from raycap.storage import RunFolder
from raycap.uris import uri_of

PART = "captions/part-a.parquet"


def table(tmp_path: Path, beside: bool = False, mode: str = "skip") -> SinkSettings:
    """Three rows, one of them failed, of pictures that are there."""
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    rows = []
    for number, (name, caption) in enumerate(
        {"a.png": "a red dog", "b c.png": "zwei Hunde 犬", "d.png": ""}.items()
    ):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(photos / name)
        made = {
            "caption": caption,
            "score": -1.0 if caption else None,
            "alternatives": [],
            "sha256": hashlib.sha256((photos / name).read_bytes()).hexdigest(),
        }
        status = {
            "status": "success" if caption else "failed_to_caption",
            "error_message": "" if caption else "none",
        }
        rows.append(
            {"key": name, "uri": str(photos / name), "width": 9, "height": 9, **made, **status}
        )
    (tmp_path / "out" / "captions").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "out" / PART)
    trust = Trust.below(str(photos))
    return SinkSettings(RunFolder(str(tmp_path / "out")), mode, beside, Fetch(), trust)


@pytest.mark.parametrize(
    "name", ["a#1.png", "a?b=1.png", "100%.png", "file:b.png", "a::b.png", "d\udce9.png"]
)
def test_pictures_of_any_name_get_their_text_and_their_ending(name: str, tmp_path: Path) -> None:
    settings = table(tmp_path, beside=True)
    picture = tmp_path / "photos" / name
    Image.new("RGB", (9, 9)).save(picture, "png")
    part = pq.read_table(tmp_path / "out" / PART).slice(0, 1)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    for column, value in {"uri": uri_of(str(picture)), "sha256": digest}.items():
        part = part.set_column(part.column_names.index(column), column, pa.array([value]))
    pq.write_table(part, tmp_path / "out" / PART)
    write_part(SINKS["txt"], PART, settings)
    assert picture.with_suffix(".txt").read_text() == "a red dog\n"
    write_part(SINKS["webdataset"], PART, settings)
    with tarfile.open(tmp_path / "out" / "webdataset" / "part-a.tar") as tar:
        assert tar.getnames() == ["000000.json", "000000.txt", "000000.png"]
        assert tar.extractfile("000000.png").read() == picture.read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("mode", ["skip", "overwrite"])
def test_twice_is_as_once(name: str, mode: str, tmp_path: Path) -> None:
    settings, sink = table(tmp_path, mode=mode), SINKS[name]
    before = snapshot(tmp_path)
    write_part(sink, PART, settings)
    once = snapshot(tmp_path)
    assert settings.folder.exists(sink.mark(PART, settings))
    write_part(sink, PART, settings)
    assert snapshot(tmp_path) == once
    sink.forget(PART, settings)
    assert snapshot(tmp_path) == before
    sink.forget(PART, settings)  # a second try, after a kill


def test_json_lines_hold_every_row(tmp_path: Path) -> None:
    write_part(SINKS["jsonl"], PART, table(tmp_path))
    lines = (tmp_path / "out/jsonl/part-a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == pq.read_table(
        tmp_path / "out" / PART
    ).to_pylist()


def test_sidecars_under_the_output_and_beside_the_pictures(tmp_path: Path) -> None:
    write_part(SINKS["txt"], PART, table(tmp_path))
    assert (tmp_path / "out/txt/a.png.txt").read_text() == "a red dog\n"
    assert (tmp_path / "out/txt/b c.png.txt").read_text() == "zwei Hunde 犬\n"
    assert not (tmp_path / "out/txt/d.png.txt").exists(), "a failed row has no caption to write"
    write_part(SINKS["txt"], PART, table(tmp_path, beside=True))
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
    ],
)
def test_a_text_file_of_other_words(
    mode: str, expected: str, differing: int, tmp_path: Path
) -> None:
    settings = table(tmp_path, beside=True, mode=mode)
    (tmp_path / "photos/a.txt").write_text("mine\n")
    assert write_part(SINKS["txt"], PART, settings).get("left_alone", 0) == differing
    assert (tmp_path / "photos/a.txt").read_text() == expected


def test_webdataset_groups_picture_caption_and_row(tmp_path: Path) -> None:
    write_part(SINKS["webdataset"], PART, table(tmp_path))
    with tarfile.open(tmp_path / "out/webdataset/part-a.tar") as tar:
        content = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert sorted(content) == [
        f"{number:06d}.{end}" for number in (0, 1) for end in ("json", "png", "txt")
    ]
    assert content["000000.png"] == (tmp_path / "photos/a.png").read_bytes()
    assert content["000001.txt"].decode() == "zwei Hunde 犬"
    assert json.loads(content["000000.json"])["key"] == "a.png"


def test_imagefolder_names_pictures_and_captions(tmp_path: Path) -> None:
    settings = table(tmp_path)
    write_part(SINKS["imagefolder"], PART, settings)
    SINKS["imagefolder"].finish(settings.folder)
    lines = [
        json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"file_name": "a.png", "text": "a red dog"},
        {"file_name": "b c.png", "text": "zwei Hunde 犬"},
    ]


def test_no_sidecar_beside_a_url(tmp_path: Path) -> None:
    settings = table(tmp_path, beside=True)
    rows = pq.read_table(tmp_path / "out" / PART).to_pylist()
    rows[0]["uri"] = "https://example.org/a.png"
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "out" / PART)
    with pytest.raises(UserError, match="--txt-beside"):
        write_part(SINKS["txt"], PART, settings)


# Keys that are alike, or that look for a way out of the folder.
STEPS = st.sampled_from(
    ["", ".", "..", "a", "A", "a.jpg", "a.png", "a.txt", "b.txt", "a%2E", "%", "https:", "x" * 300]
) | st.text(max_size=4)
KEYS = st.lists(STEPS, max_size=4).map("/".join) | st.text() | st.from_regex(r"a-[0-9a-f]{20}")
TRICKS = ["img.php?id=1", "img.php?id=2", "https://a/../b?c#d", "x" * 999, "/".join("y" * 3000)]


@given(st.sets(KEYS | st.sampled_from(TRICKS), max_size=30))
@example(set(TRICKS))
def test_names_of_texts_are_unique_and_inside_the_folder(keys: set[str]) -> None:
    names = [text_name(key) for key in keys]
    # Their own results as keys: names that look like those of other keys.
    more = {name.removesuffix(".txt") for name in names} - keys
    names += [text_name(key) for key in more]
    assert len(set(names)) == len(names)
    files, folders = set(names), set()
    for name in names:
        path = PurePosixPath(name)
        assert str(path) == name and not path.is_absolute() and ".." not in path.parts
        assert all(0 < len(part.encode()) <= 255 for part in path.parts) and len(name) < 2500
        folders |= {str(parent) for parent in path.parents}
    assert not files & folders, "a text and a folder of the same name"


@pytest.mark.parametrize(
    "key, name",
    {
        "a.jpg": "a.jpg",
        "train/b c.png": "train/b c.png",
        "img": "img",
        "é.png": "%C3%A9.png",
    }.items(),
)
def test_a_plain_key_is_the_name_of_its_text(key: str, name: str) -> None:
    assert text_name(key) == f"{name}.txt"


@pytest.mark.parametrize(
    "key, shown",
    {
        "a.txt/b": "a%2Etxt/b",
        "../a.jpg": "%2E%2E/a.jpg",
        "https://host/img.php?id=1": "https%3A/host/img.php%3Fid%3D1",
        "": "%",
    }.items(),
)
def test_other_keys_have_a_digest_behind_them(key: str, shown: str) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()[:20]
    assert text_name(key) == f"{shown}-{digest}.txt"


BESIDE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
ENDINGS = st.sampled_from(["", ".jpg", ".JPG", ".Jpg", ".png", ".txt", ".jpg.png", ".jpeg", ".a"])
STEMS = st.sampled_from(["a", "b", ".", "a-" + "0" * 20, "x" * 251, "é" * 125]) | BESIDE
PICTURES = st.tuples(STEMS, ENDINGS).map("".join).filter(lambda name: len(name.encode()) <= 255)


@given(st.sets(PICTURES, max_size=20))
@example({"a", "a.jpg", "a.png", "a.jpg.png", "a.txt"})
def test_names_beside_pictures_are_unique(pictures: set[str]) -> None:
    names = {picture: name_beside(picture, pictures.__contains__)[0] for picture in pictures}
    for picture in [*pictures]:  # their results as pictures
        for more in {names[picture].removesuffix(".txt")} - {"", *pictures}:
            names[more] = name_beside(more, {*pictures, more}.__contains__)[0]
            assert names[more] not in [names[each] for each in pictures]
    assert len({names[picture] for picture in pictures}) == len(pictures)
    for name in names.values():
        assert name.endswith(".txt") and 0 < len(name.encode()) <= 255 and "/" not in name


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".png", ".webp"])
def test_a_picture_alone_has_the_text_that_trainers_look_for(ending: str) -> None:
    assert name_beside(f"a b.1{ending}", lambda name: False) == ("a b.1.txt", False)


# --- columns of the user's own table


DAY = datetime.datetime(2024, 2, 29, 12, 30, 1, 250_000)
# Values of a carried column, and how a line of JSON has them.
CARRIED: dict[str, tuple[pa.DataType, Any, Any]] = {
    "bool": (pa.bool_(), True, True),
    "uint64": (pa.uint64(), 2**64 - 1, 2**64 - 1),
    "float16": (pa.float16(), np.float16(0.5), 0.5),
    "float": (pa.float64(), 0.1, 0.1),
    "nan": (pa.float64(), float("nan"), None),
    "infinity": (pa.float32(), float("-inf"), None),
    "decimal": (pa.decimal128(38, 2), decimal.Decimal("0.10"), "0.10"),
    "string": (pa.string(), "zwei Hunde \u72ac\n", "zwei Hunde \u72ac\n"),
    "large_string": (pa.large_string(), "a", "a"),
    "binary": (pa.binary(), b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
    "fixed_binary": (pa.binary(2), b"ab", base64.b64encode(b"ab").decode()),
    "date32": (pa.date32(), DAY.date(), "2024-02-29"),
    "date64": (pa.date64(), DAY.date(), "2024-02-29"),
    "time32": (pa.time32("s"), datetime.time(1, 2, 3), "01:02:03"),
    "time64": (pa.time64("us"), datetime.time(1, 2, 3, 4), "01:02:03.000004"),
    "timestamp": (pa.timestamp("us"), DAY, "2024-02-29T12:30:01.250000"),
    "zoned": (pa.timestamp("ms", "UTC"), DAY, "2024-02-29T12:30:01.250000+00:00"),
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
    "far_future": (pa.timestamp("s"), 2**40, None),
    "duration": (pa.duration("s"), datetime.timedelta(minutes=1), 60.0),
    "interval": (pa.month_day_nano_interval(), (1, 2, 3), [1, 2, 3]),
    "null": (pa.null(), None, None),
    "list": (pa.list_(pa.date32()), [DAY.date(), None], ["2024-02-29", None]),
    "vector": (pa.list_(pa.float32(), 2), [1.0, float("nan")], [1.0, None]),
    "struct": (
        pa.struct([("when", pa.date32()), ("many", pa.list_(pa.binary()))]),
        {"when": DAY.date(), "many": [b"a"]},
        {"when": "2024-02-29", "many": ["YQ=="]},
    ),
    "map": (pa.map_(pa.string(), pa.date32()), [("a", DAY.date())], [["a", "2024-02-29"]]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "red", "red"),
}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("kind", CARRIED)
def test_columns_of_every_type_are_written(name: str, kind: str, tmp_path: Path) -> None:
    settings = table(tmp_path)
    arrow_type, value, expected = CARRIED[kind]
    part = pq.read_table(tmp_path / "out" / PART)
    column = pa.array([value, None, value], arrow_type)
    if kind in ("interval", "null", "far_future", "float16"):
        column = pa.array([value] * 3, arrow_type)
    try:
        pq.write_table(part.append_column("mine", column), tmp_path / "out" / PART)
    except pa.ArrowException:
        pytest.skip("Parquet has no such type")
    write_part(SINKS[name], PART, settings)
    lines = []
    if name == "jsonl":
        lines = (tmp_path / "out/jsonl/part-a.jsonl").read_text().splitlines()
    if name == "webdataset":
        with tarfile.open(tmp_path / "out/webdataset/part-a.tar") as tar:
            lines = [tar.extractfile("000000.json").read().decode()]
    for line in lines[:1]:
        written = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        if kind == "far_future":
            assert isinstance(written["mine"], str), "a year that Python does not know"
        else:
            assert written["mine"] == expected


def test_a_fixed_shape_tensor_is_written_too(tmp_path: Path) -> None:
    settings = table(tmp_path)
    part = pq.read_table(tmp_path / "out" / PART)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((3, 2, 2), np.float32))
    pq.write_table(part.append_column("mine", tensors), tmp_path / "out" / PART)
    write_part(SINKS["jsonl"], PART, settings)
    line = json.loads((tmp_path / "out/jsonl/part-a.jsonl").read_text().splitlines()[0])
    assert np.ravel(line["mine"]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["append", "prepend"])
def test_a_config_with_a_removed_mode_names_the_remedy(mode: str) -> None:
    with pytest.raises(UserError, match="give skip or overwrite"):
        loads(f"caption: {{txt_mode: {mode}}}")
