"""Tables of pictures in every format, and Hugging Face's layouts."""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rows import column, noted, read, rows, write

from raycap.errors import UserError
from raycap.fetch import Trust
from raycap.schema import fit
from raycap.sources import HuggingFace, Table, detect
from raycap.sources.splits import seeded_split

PICTURES: list[dict[str, Any]] = [
    {
        "id": "7",
        "URL": "http://h/a.jpg",
        "caption": 'say "hi", twice',
        "part": "train",
        "licence": "by",
    },
    {"id": "8", "URL": "http://h/b.jpg", "caption": "two\nlines", "part": "val", "licence": ""},
    {"id": "9", "URL": "", "caption": "", "part": "test", "licence": "by"},
    {"id": "10", "URL": "http://h/a.jpg", "caption": "ünï", "part": "test", "licence": "nc"},
]


def delimited(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(PICTURES[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(PICTURES)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=2)
    return sink.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "t.csv": lambda: delimited(","),
    "semicolons.csv": lambda: b"\xef\xbb\xbf" + delimited(";"),
    "t.tsv": lambda: delimited("\t"),
    "t.csv.gz": lambda: gzip.compress(delimited(",")),
    "t.jsonl": lambda: "\n".join(json.dumps(row) for row in PICTURES).encode(),
    "t.json": lambda: "\n".join(json.dumps(row) for row in PICTURES).encode(),
    "t.parquet": lambda: parquet(PICTURES),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same(name: str, tmp_path: Path) -> None:
    path = str(write(tmp_path / name, FORMATS[name]()))
    assert detect(path) == "table"
    table = Table(path, split_column="part", references=("auto",), columns=("licence", "id"))
    assert table.trust == Trust((str(tmp_path),))
    found = rows(table)
    assert [row["key"] for row in found] == [
        "http://h/a.jpg",
        "http://h/b.jpg",
        "#1",
        "http://h/a.jpg#2",
    ]
    assert [row["uri"] for row in found] == [row["URL"] for row in PICTURES]
    assert [row["split"] for row in found] == ["train", "dev", "test", "test"]
    assert [row["references"] for row in found] == [
        [row["caption"]] if row["caption"] else [] for row in PICTURES
    ]
    assert [row["licence"] for row in found] == [row["licence"] for row in PICTURES]
    assert column(Table(path, key_column="id"), "key") == ["7", "8", "9", "10"]
    assert column(Table(path, column="licence", local=True), "uri")[0] == f"{tmp_path}/by"


def test_splits_are_drawn_by_address_not_by_row(tmp_path: Path) -> None:
    """A picture with a row for each of its captions is in one split."""
    lines = [
        "url,caption,split",
        *(f"http://h/{number // 5}.jpg,said {number},train" for number in range(1000)),
    ]
    path = str(write(tmp_path / "t.csv", "\n".join(lines)))
    assert set(column(Table(path), "split")) == {""}
    drawn = Table(path, split_column="split", fractions=(0.6, 0.3, 0.1))
    splits = {(row["uri"], row["split"]) for row in rows(drawn)}
    assert len(splits) == 200
    counts = Counter(split for _, split in splits)
    assert 90 < counts["train"] < 150 and 30 < counts["dev"] < 90 and counts["test"]
    with pytest.raises(UserError, match="add up to 1"):
        Table(path, fractions=(0.6, 0.3, 0.2))


def test_a_table_in_a_bucket(request: pytest.FixtureRequest) -> None:
    path = f"memory://{request.node.name}/t.csv"
    fsspec.filesystem("memory").pipe(path, b"path\na.jpg\nhttp://h/b.jpg\n")
    assert column(Table(path), "uri") == [f"memory://{request.node.name}/a.jpg", "http://h/b.jpg"]


def test_columns_keep_the_types_of_parquet(tmp_path: Path) -> None:
    kinds = pa.schema(
        [
            ("url", pa.large_string()),
            ("n", pa.int16()),
            ("tags", pa.list_(pa.string())),
            ("no", pa.null()),
        ]
    )
    names = [
        {"url": f"http://h/{index}", "n": index, "tags": ["x"], "no": None} for index in range(3)
    ]
    write(tmp_path / "parts" / "1.parquet", parquet(names, kinds))
    write(
        tmp_path / "parts" / "deep" / "2.parquet",
        parquet(names, kinds.set(1, pa.field("n", pa.int64()))),
    )
    table = read(Table(str(tmp_path / "parts"), columns=("n", "tags", "no")))
    assert [table.schema.field(name).type for name in ("n", "tags", "no")] == [
        pa.int16(),
        kinds[2].type,
        pa.string(),
    ]
    assert fit(table, table.schema).num_rows == 6
    assert table["key"].to_pylist()[3:] == [f"http://h/{index}#2" for index in range(3)]
    assert detect(str(tmp_path / "parts")) == "table"
    assert column(Table(f"{tmp_path}/parts/*.parquet"), "uri") == [row["url"] for row in names]
    assert detect(f"{tmp_path}/parts/*.parquet") == "table"


def test_no_file_of_a_deep_or_wide_dataset_is_missed(tmp_path: Path) -> None:
    for number in range(70):
        write(
            tmp_path / "deep" / f"y={number}" / "m" / "d" / "0.parquet",
            parquet([{"url": f"http://h/{number}"}]),
        )
        write(
            tmp_path / "wide" / f"c{number}" / "metadata.jsonl",
            json.dumps({"file_name": "0.jpg", "text": "x"}),
        )
        write(tmp_path / "wide" / f"c{number}" / "0.jpg")
    assert len(rows(Table(str(tmp_path / "deep")))) == 70
    assert len(rows(HuggingFace(str(tmp_path / "wide")))) == 70


def test_json_values_of_many_types_are_carried_as_text(tmp_path: Path) -> None:
    lines = [
        {"url": "u:1", "x": 1},
        {"url": "u:2", "x": {"a": [1]}},
        {"url": "u:3"},
        {"url": "u:4", "x": "é\ud800"},
    ]
    path = str(write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines))))
    assert next(Table(path, columns=("x",), local=True).tables())["x"].to_pylist() == [
        "1",
        '{"a": [1]}',
        None,
        "é?",
    ]


def test_json_lists_of_captions(tmp_path: Path) -> None:
    lines = [
        {"url": "http://h/1", "captions": ["a", "b"]},
        {"url": "http://h/2", "captions": "c"},
        {"url": ""},
    ]
    path = str(write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines))))
    assert column(Table(path, references=("captions",)), "references") == [["a", "b"], ["c"], []]


def test_a_table_without_header(tmp_path: Path) -> None:
    path = str(write(tmp_path / "cc.tsv", 'a "big" dog\thttp://h/a.jpg\n"a cat\thttp://h/b.jpg\n'))
    with pytest.raises(UserError, match=r"it has 1, 2: --source\.column"):
        Table(path).check()
    with pytest.raises(UserError, match="the quote opened in line 2 is never closed"):
        list(Table(path, column="2").tables())
    write(tmp_path / "cc.tsv", 'a "big" dog\thttp://h/a.jpg\na cat\thttp://h/b.jpg\n')
    assert column(Table(path, column="2", references=("1",)), "references") == [
        ['a "big" dog'],
        ["a cat"],
    ]


def test_malformed_lines_are_left_out_and_named(tmp_path: Path) -> None:
    path = str(
        write(
            tmp_path / "t.csv",
            'url,n\nhttp://h/1,1\nhttp://h/2\nhttp://h/3,a,b\n"http://h/4"x,1\nhttp://h/5,5\n',
        )
    )
    assert column(Table(path), "uri") == ["http://h/1", "http://h/5"]
    (note,) = noted(Table(path)).lines()
    assert note.startswith(
        "3 malformed lines left out (t.csv line 3: 1 fields instead of 2, t.csv line 4"
    )
    path = str(
        write(
            tmp_path / "t.jsonl", '{"url": "http://h/1"}\n[1]\n{"url": \n\n{"url": "http://h/2"}'
        )
    )
    assert column(Table(path), "uri") == ["http://h/1", "http://h/2"]
    assert "2 malformed lines left out (t.jsonl line 2" in noted(Table(path)).lines()[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "id,url\n1,http://h/a\n2,http://h/b\n1,http://h/c\n",
            r"the key '1' occurs twice: .*t.csv line 2 and .* line 4",
        ),
        ("id,url\n1,http://h/a\n,http://h/b\n", r"t.csv line 3 has an empty id"),
    ],
)
def test_keys_of_the_user_have_to_be_keys(tmp_path: Path, text: str, reason: str) -> None:
    table = Table(str(write(tmp_path / "t.csv", text)), key_column="id")
    with pytest.raises(UserError, match=reason):
        list(table.tables())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"columns": ("status",)}, "cannot carry status"),
        ({"columns": ("a", "a")}, "twice"),
        ({"column": "link"}, "no column link; it has url, a"),
        ({"columns": ("b",)}, "no column b"),
        ({"column": "a"}, "column a of .* holds no URLs .*--source.local"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    path = str(write(tmp_path / "t.csv", "url,a\nhttp://h/1,x.jpg\n"))
    with pytest.raises(UserError, match=reason):
        Table(path, **options).check()


def test_tables_that_are_none(tmp_path: Path) -> None:
    for name, content, reason in [
        ("t.csv", b"url\n", "has no rows"),
        ("t.csv", b"", "no column with one of the usual names"),
        ("t.parquet", b"PAR1 not really", "not a whole Parquet file"),
        ("t.xyz", b"url\nhttp://h/1", "does not say its format"),
    ]:
        with pytest.raises(UserError, match=reason):
            Table(str(write(tmp_path / name, content))).check()
    with pytest.raises(UserError, match="no file matches"):
        Table(f"{tmp_path}/*.nothing").check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.parquet file"):
        Table(str(tmp_path / "empty")).check()
    write(tmp_path / "p.parquet", parquet([{"url": {"bytes": b"x", "path": "p"}}]))
    with pytest.raises(UserError, match="--source huggingface"):
        Table(str(tmp_path / "p.parquet")).check()


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=8))
def test_whatever_csv_holds_comes_out(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("u", "x"), *cells])
    path = str(write(tmp_path / "t.csv", text.getvalue()))
    tables = list(Table(path, column="u", columns=("x",), local=True, format="csv").tables())
    assert pa.concat_tables(tables)["x"].to_pylist() == [carried for _, carried in cells]


# --- Hugging Face ---


def test_an_imagefolder(tmp_path: Path) -> None:
    for name in ("train/0.jpg", "train/sub/1.jpg", "validation/0.jpg"):
        write(tmp_path / name)
    lines = [{"file_name": "0.jpg", "text": "a"}, {"file_name": "sub/1.jpg", "text": "b"}]
    write(tmp_path / "train" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    write(tmp_path / "validation" / "metadata.csv", "file_name,caption_0,caption_1\n0.jpg,c,d\n")
    assert detect(str(tmp_path)) == "huggingface"
    found = rows(HuggingFace(str(tmp_path)))
    assert [(row["key"], row["split"], row["references"]) for row in found] == [
        ("train/0.jpg", "train", ["a"]),
        ("train/sub/1.jpg", "train", ["b"]),
        ("validation/0.jpg", "dev", ["c", "d"]),
    ]
    assert all(Path(row["uri"]).read_bytes() == b"picture" for row in found)
    assert set(column(HuggingFace(str(tmp_path), fractions=(0.0, 0.0, 1.0)), "split")) == {"test"}
    assert column(HuggingFace(str(tmp_path / "train" / "metadata.jsonl")), "key") == [
        "0.jpg",
        "sub/1.jpg",
    ]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_metadata_may_not_lead_out_of_the_dataset(tmp_path: Path, name: str) -> None:
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": name, "text": "x"}))
    [row] = rows(HuggingFace(str(tmp_path)))
    assert row["error"] == f"a picture has to lie below the file that names it: {name}"


def test_parquet_with_pictures_inside_as_flickr30k_ships(tmp_path: Path) -> None:
    kinds = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("caption", pa.list_(pa.string())),
            ("sentids", pa.list_(pa.string())),
            ("split", pa.string()),
            ("filename", pa.string()),
        ]
    )
    pictures = [
        {
            "image": {"bytes": bytes([index]) * 9, "path": None},
            "caption": ["a", "b"],
            "sentids": ["0"],
            "split": ("train", "val", "test")[index % 3],
            "filename": f"{index}.jpg",
        }
        for index in range(70)
    ]
    write(tmp_path / "TEST" / "test" / "0000.parquet", parquet(pictures, kinds))
    assert detect(str(tmp_path)) == "huggingface"
    found = rows(HuggingFace(str(tmp_path)))
    assert [row["key"] for row in found] == [picture["filename"] for picture in pictures]
    assert [row["bytes"] for row in found] == [picture["image"]["bytes"] for picture in pictures]
    assert [row["split"] for row in found[:3]] == ["train", "dev", "test"]
    assert found[0]["references"] == ["a", "b"]
    drawn = column(HuggingFace(str(tmp_path), fractions=(0.5, 0.5, 0.0)), "split")
    assert drawn == [seeded_split(picture["filename"], (0.5, 0.5, 0.0), 0) for picture in pictures]
    assert found[65]["uri"] == f"{tmp_path}/TEST/test/0000.parquet/65"


def test_embedded_pictures_without_names_and_without_bytes(tmp_path: Path) -> None:
    kinds = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("text", pa.string()),
        ]
    )
    first = [
        {"image": {"bytes": b"x", "path": None}, "text": "a"},
        {"image": {"bytes": None, "path": "p/y.jpg"}},
    ]
    write(tmp_path / "data" / "train-00000-of-00002.parquet", parquet(first, kinds))
    write(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        parquet([*first, {"image": None}], kinds),
    )
    found = rows(HuggingFace(str(tmp_path)))
    assert [row["key"] for row in found] == [
        "data/train-00000-of-00002.parquet/0",
        "p/y.jpg",
        "data/train-00001-of-00002.parquet/0",
        "p/y.jpg#2",
        "data/train-00001-of-00002.parquet/2",
    ]
    assert [row["bytes"] for row in found] == [b"x", None, b"x", None, None]
    assert found[1]["uri"] == f"{tmp_path}/data/p/y.jpg" and found[4]["uri"] == ""
    assert {row["split"] for row in found} == {"train"}


def test_a_picture_without_a_name_is_drawn_into_one_split(tmp_path: Path) -> None:
    """It has a row, and so a key, for each of its captions."""
    pictures = [{"image": bytes([number // 5]) * 9, "text": str(number)} for number in range(500)]
    write(tmp_path / "t.parquet", parquet(pictures))
    drawn = rows(HuggingFace(str(tmp_path / "t.parquet"), fractions=(0.5, 0.5, 0.0)))
    assert len({row["key"] for row in drawn}) == 500
    assert len({(row["bytes"], row["split"]) for row in drawn}) == 100
    assert {row["split"] for row in drawn} == {"train", "dev"}


def test_large_embedded_pictures_come_few_at_a_time(tmp_path: Path) -> None:
    pictures = [{"image": bytes([index]) * (12 << 20), "name": str(index)} for index in range(7)]
    write(tmp_path / "t.parquet", parquet(pictures))
    pieces = list(HuggingFace(str(tmp_path / "t.parquet")).tables())
    assert [len(piece) for piece in pieces] == [3, 3, 1]


def test_nothing_of_hugging_face(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metadata\.jsonl"):
        HuggingFace(str(tmp_path)).check()
    write(tmp_path / "metadata.csv", "name,text\na,b\n")
    with pytest.raises(UserError, match="no column file_name"):
        HuggingFace(str(tmp_path)).check()
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path / "x.parquet", parquet([{"a": 1}]))
    with pytest.raises(UserError, match="no column with pictures; it has a"):
        HuggingFace(str(tmp_path)).check()
