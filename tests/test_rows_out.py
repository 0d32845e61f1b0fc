"""Rows out = rows in: what a source cannot use is a failed row with its reason, or is counted."""

import contextlib
import errno
import io
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from server import serving
from source_rows import column, noted, read, rows, write

from raycap.bulk.listing import list_source
from raycap.bulk.options import BulkOptions
from raycap.bulk.pictures import load_table
from raycap.bulk.plan import Plan, read_shard
from raycap.errors import UserError
from raycap.evaluation.references import read_references
from raycap.fetch import Fetch
from raycap.images import Reading, Square
from raycap.sources import (
    SOURCES,
    Coco,
    Flickr,
    Folder,
    HuggingFace,
    Karpathy,
    Notes,
    Table,
    delimited,
    detect,
    lines,
    listing,
    records,
    with_absolute_paths,
)
from raycap.sources.manifest import Row, tables
from raycap.sources.notes import (
    DAMAGED_ROW,
    MALFORMED_CAPTION,
    MALFORMED_LINE,
    NAMELESS,
    UNUSABLE_CAPTION,
)
from raycap.storage import RunFolder
from raycap.storage.location import existing
from raycap.uris import local_path


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "png")
    return file.getvalue()


def test_a_row_that_the_source_cannot_use_is_not_fetched(tmp_path: Path) -> None:
    there = str(write(tmp_path / "a.png", picture()))
    with serving({"/b.png": picture()}) as server:
        rows = [
            Row("bad", server.url("/b.png"), error="a link that leads out of the folder: x"),
            Row("good", there),
            Row("bad inside", "", picture=picture(), error="a directory, not a file: y"),
            Row("inside", "", picture=picture()),
        ]
        [table] = tables(rows, lambda: "nothing")
        fetch = Fetch(allow_private=True)
        opened = load_table(
            table, fetch, Folder(str(tmp_path)).trust, Reading(), Square(), keep_pixels=False
        )
        assert not server.asked
    assert opened["key"].to_pylist() == [row.key for row in rows]
    assert opened["status"].to_pylist() == [
        "failed_to_fetch",
        "success",
        "failed_to_fetch",
        "success",
    ]
    assert opened["error_message"].to_pylist() == [row.error for row in rows]
    assert opened["sha256"].to_pylist()[::2] == ["", ""]
    assert not {"bytes", "error"} & set(opened.column_names)


# --- folders ---


def errors(source: Any) -> dict[str, str]:
    """The reason of each key, without the address behind it."""
    return {row["key"]: row["error"].removesuffix(f": {row['uri']}") for row in rows(source)}


def test_what_is_no_file_and_has_the_name_of_a_picture(tmp_path: Path) -> None:
    write(tmp_path / "good.jpg")
    write(tmp_path / "folder.jpg" / "inside.jpg")
    write(tmp_path / "folder" / "inside.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    bad = {
        "folder.jpg": "a directory, not a file",
        "link to pipe.jpg": "a link to what is not a regular file",
        "loop.jpg": "a link that cannot be followed (Too many levels of symbolic links)",
        "pipe.jpg": "not a regular file",
    }
    good = dict.fromkeys(["good.jpg", "folder.jpg/inside.jpg", "folder/inside.jpg"], "")
    assert errors(Folder(str(tmp_path))) == good | bad
    # '*' means every file: folders stay out, but a pipe is taken for the file that it is not.
    assert errors(Folder(str(tmp_path), glob="*")) == good | bad | {"pipe": "not a regular file"}


def unlistable(folder: Path, depth: int = 17) -> str:
    """Nested folders with a path longer than the system allows: no process can list the last."""
    here = Path.cwd()
    os.chdir(folder)
    for _ in range(depth):
        os.mkdir("deep" * 60)  # noqa: PTH102
        os.chdir("deep" * 60)
    os.chdir(here)
    return str(folder / "/".join(["deep" * 60] * depth))


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    deepest = unlistable(tmp_path)
    notes = noted(Folder(str(tmp_path)))
    [item] = notes.left_out()
    assert (item["count"], item["what"]) == (1, "folder could not be listed")
    assert item["examples"][0].startswith(deepest[:100])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"no file that ends in .*; 1 folder could not be listed"):
        list(Folder(str(tmp_path)).tables())


class Failing:
    """os.scandir on a disk with faults: some listings fail, at once or behind some names."""

    def __init__(self, faults: dict[str, list[int]], code: int, behind: int = 0) -> None:
        self.faults, self.code, self.behind = faults, code, behind
        self.listed: Counter[str] = Counter()

    def __call__(self, path: str) -> Any:
        name = Path(path).name
        self.listed[name] += 1
        fails = self.listed[name] in self.faults.get(name, [])
        if fails and not self.behind:
            raise OSError(self.code, os.strerror(self.code), path)
        return self._entries(path, fails)

    @contextlib.contextmanager
    def _entries(self, path: str, fails: bool) -> Iterator[Any]:
        with SCANDIR(path) as entries:
            yield self._some(entries, path) if fails else entries

    def _some(self, entries: Any, path: str) -> Iterator[Any]:
        yield from itertools.islice(entries, self.behind)
        raise OSError(self.code, os.strerror(self.code), path)


SCANDIR = os.scandir


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("behind", [0, 2])
def test_a_fault_that_passes_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    names = [f"{folder}/{number}.jpg" for folder in "abc" for number in range(5)]
    for name in names:
        write(tmp_path / name)
    disk = Failing({"b": [1, 2]}, errno.EIO, behind)
    monkeypatch.setattr(os, "scandir", disk)
    notes = Notes()
    found = [
        key for table in Folder(str(tmp_path)).tables(notes) for key in table["key"].to_pylist()
    ]
    assert found == names and notes.lines() == []
    assert disk.listed["b"] == 3 and disk.listed["a"] == 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 4), (errno.ESTALE, 4), (errno.EACCES, 1)])
def test_a_fault_that_stays_costs_its_folder_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, tries: int
) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg"):
        write(tmp_path / name)
    disk = Failing({"b": list(range(99))}, code)
    monkeypatch.setattr(os, "scandir", disk)
    notes = Notes()
    found = [
        key for table in Folder(str(tmp_path)).tables(notes) for key in table["key"].to_pylist()
    ]
    assert found == ["a/1.jpg", "c/3.jpg"] and disk.listed["b"] == tries
    assert notes.lines() == [f"1 folder could not be listed ({tmp_path}/b: {os.strerror(code)})"]


@pytest.mark.usefixtures("no_pauses")
def test_a_huge_folder_that_breaks_off_doubles_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        write(tmp_path / "b" / f"{number}.jpg")
    monkeypatch.setattr(listing, "SORTED_NAMES", 10)
    monkeypatch.setattr(os, "scandir", Failing({"b": [1]}, errno.EIO, behind=25))
    notes = Notes()
    found = [
        key for table in Folder(str(tmp_path)).tables(notes) for key in table["key"].to_pylist()
    ]
    assert len(found) == len(set(found)) == 20
    assert notes.lines() == [
        f"1 folder could not be listed ({tmp_path}/b: {os.strerror(errno.EIO)}, after 20 names)"
    ]


def test_a_dead_disc_does_not_hold_a_walk_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(listing.time, "sleep", slept.append)
    patience = listing.ListingRetries()
    for _ in range(1000):
        tries = 1
        while patience.waits(OSError(errno.EIO, "x"), tries):
            tries += 1
    assert 30 < sum(slept) <= listing.MOST_SECONDS_WAITED


@pytest.mark.usefixtures("no_pauses")
def test_a_prefix_of_a_bucket_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fsspec.filesystem("memory")
    for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg"):
        bucket.pipe(f"memory://prefixes/{name}", b"x")
    asked: Counter[str] = Counter()
    ls = type(bucket).ls

    def failing(self: Any, path: str, detail: bool = True, **more: Any) -> Any:
        asked[path[-1]] += 1
        if path.endswith("/b") and asked["b"] <= faults:
            raise RuntimeError("503 slow down")  # stores' clients have errors of their own
        return ls(self, path, detail=detail, **more)

    monkeypatch.setattr(type(bucket), "ls", failing)
    for faults, keys in (  # noqa: B007 - `failing` reads it
        (2, ["a/1.jpg", "b/2.jpg", "c/3.jpg"]),
        (99, ["a/1.jpg", "c/3.jpg"]),
    ):
        asked.clear()
        notes = Notes()
        found = [
            key
            for table in Folder("memory://prefixes").tables(notes)
            for key in table["key"].to_pylist()
        ]
        assert found == keys
    assert notes.lines() == ["1 folder could not be listed (memory://prefixes/b: 503 slow down)"]


@pytest.mark.parametrize("glob", ["***", "**a", "a/***/b", "***/*.jpg"])
def test_a_glob_that_means_nothing_is_refused_at_once(glob: str) -> None:
    with pytest.raises(
        UserError, match=r"the glob .* cannot be understood .*'\*\.png' means any depth"
    ):
        Folder("x", glob=glob)


@given(st.text(st.sampled_from("*?[]!-ab/.\\{}(),"), max_size=8))
def test_every_glob_is_a_pattern_or_refused(glob: str) -> None:
    with contextlib.suppress(UserError):
        Folder("x", glob=glob)


def test_a_root_whose_name_is_not_utf8(tmp_path: Path) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 %41")
    write(Path(root) / "a.jpg", b"a")
    write(Path(root) / "metadata.jsonl", '{"file_name": "a.jpg", "text": "x"}')
    for kind in (Folder, HuggingFace):
        source = with_absolute_paths(kind(root))
        source.path.encode()  # as run.json, facts.json and reports hold it
        [row] = rows(source)
        assert row["key"] == "a.jpg" and Path(str(local_path(row["uri"]))).read_bytes() == b"a"
        assert (existing(source.path) / "a.jpg").parent.is_folder()


def test_what_a_link_is_called_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/dangling\xff")).symlink_to("gone")
    notes = noted(Folder(str(tmp_path)))
    assert "dangling%FF" in notes.lines()[0]
    "".join(notes.lines()).encode()


@pytest.mark.parametrize(
    "name", ["captions.txt", "metadata.jsonl", "x.parquet", "captions_val.json"]
)
def test_a_pipe_in_the_place_of_a_file_holds_nobody(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / name)
    assert detect(str(tmp_path)) == "folder"
    assert set(errors(Folder(str(tmp_path)))) == {"a.jpg"}
    with pytest.raises(UserError, match="not a regular file"):
        existing(str(tmp_path / name)).open()


# --- tables ---


def test_a_line_with_an_unquoted_comma_is_counted_with_its_number(tmp_path: Path) -> None:
    lines = [
        "url,note",
        "http://h/1.jpg,a",
        "http://h/2,2.jpg,b",
        "http://h/3.jpg,c",
        "http:///4.jpg,d",
        ",e",
    ]
    table = Table(str(write(tmp_path / "pairs.csv", "\n".join(lines))))
    assert column(table, "uri") == ["http://h/1.jpg", "http://h/3.jpg", "http:///4.jpg", ""]
    assert noted(table).left_out() == [
        {
            "count": 1,
            "what": "malformed line left out",
            "examples": ["pairs.csv line 3: 3 fields instead of 2"],
        }
    ]


def test_a_table_with_nothing_but_malformed_lines_is_reported(tmp_path: Path) -> None:
    table = Table(str(write(tmp_path / "t.csv", "url,note\nhttp://h/1,2,3\nhttp://h/2\n")))
    with pytest.raises(
        UserError, match=r"has no usable rows; 2 malformed lines left out .t\.csv line 2: 3 fields"
    ):
        table.check()
    with pytest.raises(UserError, match="2 malformed lines left out"):
        list(table.tables())


def test_large_fields_cost_nothing(tmp_path: Path) -> None:
    picture = "A" * 3_000_000
    lines = [f"http://h/{number}.jpg,{picture},note" for number in range(4)]
    table = Table(
        str(write(tmp_path / "t.csv", "\n".join(["url,base64,note", *lines]))), columns=("note",)
    )
    assert column(table, "note") == ["note"] * 4
    large = Table(table.path, columns=("base64",))
    assert [len(text) for text in column(large, "base64")] == [3_000_000] * 4


def test_a_line_beyond_the_limit_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1000)
    lines = ["url,note", "http://h/1.jpg,a", f"http://h/2.jpg,{'x' * 2000}", "http://h/3.jpg,c"]
    table = Table(str(write(tmp_path / "t.csv", "\n".join(lines))))
    assert column(table, "uri") == ["http://h/1.jpg", "http://h/3.jpg"]
    assert noted(table).count(MALFORMED_LINE) == 1
    lines[2] = 'http://h/2.jpg,"' + "x\n" * 2000
    with pytest.raises(
        UserError, match=r"the row that begins in line 3 is longer than .* never closed"
    ):
        list(Table(str(write(tmp_path / "t.csv", "\n".join(lines)))).tables())


def test_large_texts_come_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_BYTES", 10_000)
    lines = [json.dumps({"url": f"http://h/{number}", "x": "y" * 4000}) for number in range(10)]
    table = Table(str(write(tmp_path / "t.jsonl", "\n".join(lines))), columns=("x",))
    assert [len(piece) for piece in table.tables()] == [3, 3, 3, 1]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "urls.txt", "Flickr8k.token.txt"])
def test_a_line_without_end_costs_itself(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines.Lines.__init__, "__defaults__", (1000, None))
    long = "x" * 200_000
    urls = [f"http://h/{number}" for number in range(3)]
    contents = {
        "t.csv": ["url,note", f"{urls[0]},a", f'{urls[1]},"{long}"', f"{urls[2]},c"],
        "t.jsonl": [json.dumps({"url": url, "x": long if url == urls[1] else ""}) for url in urls],
        "urls.txt": [urls[0], urls[1] + long, urls[2]],
        "Flickr8k.token.txt": [
            f"a.jpg#{number}\t{long if number == 1 else 'said'}" for number in range(3)
        ],
    }
    write(tmp_path / "a.jpg")
    path = str(write(tmp_path / name, "\n".join(contents[name])))
    source = SOURCES[detect(path)](path)
    notes = noted(source)
    if name == "Flickr8k.token.txt":
        assert column(source, "references") == [["said", "said"]]
    else:
        assert column(source, "uri") == [urls[0], urls[2]]
    where = {"t.csv": 3}.get(name, 2)
    assert f"{name} line {where}: longer than" in notes.lines()[0]
    assert bool(notes.left_out()) == (name != "Flickr8k.token.txt")


def parquet_file(path: Path, table: pa.Table, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def not_text(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """A column of text whose bytes are no UTF-8, as a file may hold it."""
    return pa.Array.from_buffers(kind, len(values), pa.array(values, pa.binary()).buffers())


def test_a_text_that_is_no_utf8_costs_nothing_but_its_bytes(tmp_path: Path) -> None:
    urls = not_text([b"http://h/1", b"http://h/\xff", b"http://h/3"], pa.string())
    captions = pa.ListArray.from_arrays(
        [0, 1, 2, 3], not_text([b"a", b"\xc3\x28", b"c"], pa.string())
    )
    facts = pa.StructArray.from_arrays(
        [not_text([b"x", b"\xed\xa0\x80", b"z"], pa.string())], ["by"]
    )
    columns = {"url": urls, "captions": captions, "facts": facts, "note": urls.dictionary_encode()}
    path = parquet_file(tmp_path / "t.parquet", pa.table(columns))
    table = read(Table(path, references=("captions",), columns=("facts", "note")))
    assert table["key"].to_pylist() == ["http://h/1", "http://h/\ufffd", "http://h/3"]
    assert table["references"].to_pylist() == [["a"], ["\ufffd("], ["c"]]
    assert [fact["by"] for fact in table["facts"].to_pylist()] == ["x", "\ufffd" * 3, "z"]
    assert table["note"].to_pylist() == table["uri"].to_pylist()


def damage(path: str, groups: tuple[int, ...]) -> None:
    """Overwrite the data of the first column in these row groups."""
    metadata = pq.ParquetFile(path).metadata
    data = bytearray(Path(path).read_bytes())
    for group in groups:
        place = metadata.row_group(group).column(0)
        start = place.dictionary_page_offset or place.data_page_offset
        data[start : start + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    Path(path).write_bytes(data)


@pytest.mark.parametrize("groups", [(0,), (3,), (9,), (3, 4), (0, 1, 8, 9)])
def test_a_damaged_row_group_costs_its_rows_and_no_others(
    tmp_path: Path, groups: tuple[int, ...]
) -> None:
    urls = [f"http://h/{number}" for number in range(1000)]
    path = parquet_file(tmp_path / "t.parquet", pa.table({"url": urls}), row_group_size=100)
    damage(path, groups)
    whole = [number for number in range(1000) if number // 100 not in groups]
    assert column(Table(path), "key") == [urls[number] for number in whole]
    [item] = noted(Table(path)).left_out()
    first = 100 * groups[0]
    assert item["count"] == 100 * len(groups)
    assert item["examples"][0].startswith(f"t.parquet rows {first} to {first + 99}: ")
    # Pictures that are named by their row keep their names.
    pictures = pa.table({"image": [bytes([number % 251]) * 9 for number in range(1000)]})
    path = parquet_file(tmp_path / "p.parquet", pictures, row_group_size=100, use_dictionary=False)
    damage(path, groups)
    assert column(HuggingFace(path), "key") == [f"p.parquet/{number}" for number in whole]
    assert noted(HuggingFace(path)).count(DAMAGED_ROW) == 100 * len(groups)


def test_a_table_of_damaged_rows_alone_is_refused(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "t.parquet", pa.table({"url": ["http://h/1"] * 9}))
    damage(path, (0,))
    with pytest.raises(UserError, match="no usable rows; 9 rows left out"):
        Table(path).check()


def test_every_damaged_footer_is_a_refusal_that_names_the_file(tmp_path: Path) -> None:
    path = Path(
        parquet_file(
            tmp_path / "t.parquet", pa.table({"url": ["http://h/1"] * 99, "x": range(99)})
        )
    )
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    chance, refused = random.Random(5), 0
    for _ in range(150):
        mutant = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            mutant[chance.randrange(footer, len(whole))] = chance.randrange(256)
        path.write_bytes(mutant)
        try:
            Table(str(path)).check()
            list(Table(str(path)).tables())
        except UserError as refusal:
            refused += 1
            assert "t.parquet" in str(refusal)
    assert refused > 50


def test_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.table([["http://h/1"], ["http://h/2"], ["n"]], names=["url", "url", "note"])
    path = parquet_file(tmp_path / "t.parquet", twice)
    with pytest.raises(
        UserError, match=r"t\.parquet has several columns 'url': rename all but one"
    ):
        Table(path).check()
    harmless = pa.table([["http://h/1"], ["n"], ["m"]], names=["url", "note", "note"])
    assert column(Table(parquet_file(tmp_path / "t.parquet", harmless)), "uri") == ["http://h/1"]
    with pytest.raises(UserError, match=r"several columns 'url'"):
        Table(str(write(tmp_path / "t.csv", "url,url\nhttp://h/1,http://h/2\n"))).check()


def test_a_broken_link_among_the_files_of_a_table_is_counted(tmp_path: Path) -> None:
    parquet_file(tmp_path / "1.parquet", pa.table({"url": ["http://h/1"]}))
    (tmp_path / "2.parquet").symlink_to(tmp_path / "gone")
    notes = noted(Table(str(tmp_path)))
    assert notes.left_out()[0]["examples"] == [f"{tmp_path}/2.parquet: a link to a missing file"]
    assert notes.left_out()[0]["what"] == "file of rows left out"


# --- described pictures ---


def described(tmp_path: Path, name: str, document: Any, pictures: int = 3) -> str:
    for number in range(pictures):
        write(tmp_path / f"{number}.jpg")
    return str(write(tmp_path / name, json.dumps(document)))


def test_cocos_ids_may_be_anything(tmp_path: Path) -> None:
    ids = [1.0, [2], {"a": 3}, 10**40, True, "seven", float("nan")]
    images = [{"id": given, "file_name": f"{number}.jpg"} for number, given in enumerate(ids)]
    annotations = [
        {"image_id": given, "caption": f"said {number}"} for number, given in enumerate(ids)
    ]
    path = described(
        tmp_path, "captions.json", {"images": images, "annotations": annotations}, len(ids)
    )
    assert column(Coco(path), "references") == [[f"said {number}"] for number in range(len(ids))]
    known = read_references(Coco(path))
    assert known.captions == {f"{number}.jpg": [f"said {number}"] for number in range(len(ids))}
    assert known.numbers == {"0.jpg": 1, "3.jpg": 10**40}


def test_odd_records_of_coco_cost_themselves(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    images += [
        {"id": 3, "file_name": None},
        {"id": 4, "file_name": ["x"]},
        {"id": 5},
        7,
        None,
        [1],
    ]
    images += [{"id": 6, "file_name": "../up.jpg"}, {"id": 7, "file_name": "\ud800.jpg"}]
    annotations = [{"image_id": 0, "caption": text} for text in (None, 5, ["x"], "good")] + [
        None,
        {},
    ]
    path = described(tmp_path, "captions.json", {"images": images, "annotations": annotations})
    found = {row["key"]: row for row in rows(Coco(path))}
    assert found["0.jpg"]["references"] == ["good"]
    assert {key: row["error"] for key, row in found.items()} == {
        **dict.fromkeys(["0.jpg", "1.jpg", "2.jpg"], ""),
        "../up.jpg": "a picture has to lie below the picture folder: ../up.jpg",
        "\\ud800.jpg": f"no such file: {tmp_path}/\\ud800.jpg",
    }
    notes = noted(Coco(path))
    assert notes.count(NAMELESS) == 6 and notes.count(UNUSABLE_CAPTION) == 5
    assert [item["count"] for item in notes.left_out()] == [6], (
        "a caption that is no text costs no row"
    )


def test_karpathys_files_without_this_or_that(tmp_path: Path) -> None:
    images = [
        {
            "filename": "0.jpg",
            "split": "val",
            "sentences": [{"tokens": ["a", "dog"]}, {"raw": " Two. "}, {}, None],
        },
        {"filename": "1.jpg", "split": None, "sentences": None, "filepath": None},
        {"filename": "2.jpg"},
        {"split": "train", "sentences": []},
        "nothing",
    ]
    path = described(tmp_path, "dataset_x.json", {"images": images})
    assert [
        (row["key"], row["split"], row["references"], row["error"]) for row in rows(Karpathy(path))
    ] == [
        ("0.jpg", "dev", ["a dog", "Two."], ""),
        ("1.jpg", "", [], ""),
        ("2.jpg", "", [], ""),
    ]
    notes = noted(Karpathy(path))
    assert notes.count(NAMELESS) == 2 and notes.count(UNUSABLE_CAPTION) == 2


def test_pictures_in_a_folder_that_cannot_be_listed_are_still_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{"filename": f"{number}.jpg"} for number in range(3)]
    path = described(tmp_path, "dataset_x.json", {"images": images})
    listdir = os.listdir

    def forbidden(folder: str) -> list[str]:
        if folder == str(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", forbidden)
    assert column(Karpathy(path), "error") == ["", "", ""]


def test_odd_names_and_numbers_beside_flickrs_captions(tmp_path: Path) -> None:
    lines = ["a.jpg#0\tsaid", f"b.jpg#{'9' * 5000}\tsaid", " #0\tno name", "c.jpg#0\tsaid"]
    write(tmp_path / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    write(tmp_path / "a.jpg")
    write(tmp_path / os.fsdecode(b"caf\xe9.jpg"), b"coffee")
    flickr = Flickr(str(tmp_path))
    found = {row["key"]: row for row in rows(flickr)}
    assert set(found) == {"a.jpg", "c.jpg", "./caf%E9.jpg"}
    assert Path(str(local_path(found["./caf%E9.jpg"]["uri"]))).read_bytes() == b"coffee"
    notes = noted(flickr)
    assert notes.count(MALFORMED_CAPTION) == 2 and notes.left_out() == [], (
        "a lost caption is no lost picture"
    )


def test_a_line_of_spaces_takes_no_quadratic_time(tmp_path: Path) -> None:
    spaces = "a.jpg| 1" + " " * 200_000 + "x|y|\n"  # took a quarter of an hour
    write(
        tmp_path / "results.csv", f"image_name| comment_number| comment\na.jpg| 0| said\n{spaces}"
    )
    write(tmp_path / "a.jpg")
    assert column(Flickr(str(tmp_path)), "references") == [["said"]]


# --- what is reported of it ---


def test_notes_are_short_and_can_be_written() -> None:
    notes = Notes()
    for number in range(1000):
        notes.add(MALFORMED_LINE, f"\ud800{number}" * 1000)
    [line] = notes.lines()
    assert line.startswith("1,000 malformed lines left out (?0?0") and line.endswith(", ...)")
    assert len(line) < 1100
    assert json.loads(notes.to_json()) == {"left_out": notes.left_out(), "notes": []}


def test_the_last_shard_of_a_listing_brings_the_notes(tmp_path: Path) -> None:
    lines = [f"http://h/{number}{',x' if number % 10 == 9 else ''}" for number in range(3000)]
    source = Table(str(write(tmp_path / "t.csv", "\n".join(["url", *lines]))))
    out = RunFolder(str(tmp_path / "out"))
    plan = Plan(operation=1, kind="first", identity={}, batch=8, chunk_rows=64)
    for _ in range(2):  # Ray may run the task again
        *others, last = list_source(source, BulkOptions(), out, plan, (), (0,))
        assert others and not any(shard.is_last or shard.notes for shard in others)
        [item] = last.parsed_notes()["left_out"]
        assert last.is_last and (item["count"], item["what"]) == (300, MALFORMED_LINE.many)
        keys = [
            key
            for shard in (*others, last)
            for key in read_shard(out, 1, shard.unit, shard.number)["key"].to_pylist()
        ]
        assert keys == [f"http://h/{number}" for number in range(3000) if number % 10 != 9]
