"""WebDataset: tars of samples, on disk, in a bucket and on a web server."""

import gzip
import hashlib
import io
import itertools
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Server, serving
from small_captioner import photos, save_captioner
from source_rows import noted, write

from raycap.cli import main
from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher
from raycap.schema import MANIFEST
from raycap.sources import Table, WebDataset, detect, with_absolute_paths
from raycap.sources.braces import expanded
from raycap.sources.notes import (
    DAMAGED_TAR,
    UNPICTURED,
    UNUSABLE_CAPTION,
    UNUSABLE_FILE,
    Notes,
)
from raycap.sources.tar import BLOCK, DamagedTar, members
from raycap.sources.webdataset import PLACE

Member = tuple[str, bytes]


def jpeg(content: str | int) -> bytes:
    """Bytes that begin as those of a JPEG."""
    return b"\xff\xd8\xff\xe0" + str(content).encode()


def tar_of(*files: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return out.getvalue()


def sample(name: str, caption: str = "") -> list[Member]:
    """As img2dataset writes it."""
    fields = {"caption": caption, "url": f"https://example.org/{name}", "size": 3}
    return [
        (f"{name}.jpg", jpeg(name)),
        (f"{name}.json", json.dumps(fields).encode()),
        (f"{name}.txt", caption.encode()),
    ]


def read(source: WebDataset) -> pa.Table:
    """All rows, after what every source promises was checked; and that the pictures that are read
    again by their places are those of the listing."""
    source.check()
    pieces = list(source.tables())
    table = pa.concat_tables(pieces)
    assert table.column_names == [*MANIFEST.names, *source.carried, *PLACE]
    assert table.select(MANIFEST.names).schema == MANIFEST
    assert 1 <= len(pieces[0]) <= 64 and all(1 <= len(piece) <= 1000 for piece in pieces)
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys) and all(keys), "keys are unique, none empty"
    assert pa.concat_tables(source.tables()).equals(table), "the order and the keys stay"
    held = table.filter(table["bytes"].is_valid()).drop_columns(["bytes"])
    again = held.take(pa.array(range(len(held))[::-1], pa.int64()))  # in any order
    pictures = [data for data in table["bytes"].to_pylist() if data is not None]
    assert source.embedded_pictures(again) == pictures[::-1]
    return table


def rows(source: WebDataset) -> list[dict[str, Any]]:
    return read(source).to_pylist()


def keys(source: WebDataset) -> list[str]:
    found: list[str] = read(source)["key"].to_pylist()
    return found


# Tars


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1).map(
                lambda name: f"{name.strip('/')}x"
            ),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_that_were_written(files: list[Member], format: int) -> None:
    data = tar_of(*files, format=format)
    found = list(members(io.BytesIO(data)))
    assert [(each.name, data[each.offset :][: each.size]) for each in found] == files
    assert {each.kind for each in found} <= {"file"}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_kinds_of_members(format: int) -> None:
    long = f"{'d' * 90}/{'f' * 90}.jpg"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            (long, tarfile.REGTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("soft.jpg", tarfile.SYMTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("caf\udce9.jpg", tarfile.REGTYPE),
        ]:
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "t" * 90 if kind != tarfile.REGTYPE else ""
            about.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(about, io.BytesIO(b"abc"))
    found = list(members(io.BytesIO(out.getvalue())))
    assert [(each.name, each.kind, each.size) for each in found] == [
        (long, "file", 3),
        ("hard.jpg", "link", 0),
        ("soft.jpg", "link", 0),
        ("caf\udce9.jpg", "file", 3),
    ]


def test_tars_that_were_joined_and_binary_sizes() -> None:
    one = bytearray(tar_of(("a.jpg", b"first")))
    one[124:136] = b"\x80" + (5).to_bytes(11, "big")
    one[148:156] = b" " * 8
    one[148:156] = b"%06o\0 " % sum(one[:BLOCK])
    both = bytes(one) + tar_of(("b.jpg", b"second"))
    assert [both[each.offset :][: each.size] for each in members(io.BytesIO(both))] == [
        b"first",
        b"second",
    ]


@given(st.data())
def test_a_damaged_tar_is_read_up_to_the_damage(data: st.DataObject) -> None:
    whole = tar_of(*(member for number in range(4) for member in sample(f"{number:04}")))
    good = list(members(io.BytesIO(whole)))
    place = data.draw(st.integers(0, len(whole) - 1))
    mutant = bytearray(whole)
    mutant[place : place + 40] = data.draw(st.binary(min_size=40, max_size=40))
    found: list[Any] = []
    try:
        found.extend(members(io.BytesIO(bytes(mutant))))
    except DamagedTar as error:
        assert str(error)
    before = [each for each in good if each.offset + each.size <= place - place % BLOCK]
    assert found[: len(before)] == before


def test_hostile_headers_take_no_memory() -> None:
    def header(kind: bytes, size: bytes) -> bytes:
        block = bytearray(tar_of(("a.jpg", b""))[:BLOCK])
        block[156:157], block[124:136], block[148:156] = kind, size, b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    huge = b"\x80" + b"\xff" * 11
    for block in (header(b"0", huge), header(b"L", huge), header(b"x", b"7" * 12)):
        with pytest.raises(DamagedTar, match="ends too early"):
            list(members(io.BytesIO(block + bytes(10 * BLOCK))))
    large = header(b"x", b"%011o\0" % (2 << 20)) + bytes((2 << 20) + 2 * BLOCK)
    with pytest.raises(DamagedTar, match="a name of 2,097,152 bytes"):
        list(members(io.BytesIO(large)))
    with pytest.raises(DamagedTar, match="without a size"):
        list(members(io.BytesIO(header(b"0", b"\xff" * 12) + bytes(10 * BLOCK))))


# Samples


NAMES = st.text(
    st.characters(exclude_characters="\0/.", codec="utf-8"), min_size=1, max_size=20
) | st.sampled_from(["#2", "a#2", "a::b", "a%20b", "{0,2}", "*", "?", "[a]", "~", " ", "x" * 120])
FOLDERS = st.sampled_from(["", "d/", "d/e/", "./", "__x__/"])


@given(
    st.lists(
        st.tuples(
            FOLDERS, NAMES, st.sampled_from(["jpg", "JPEG", "png", "bin", ""]), st.booleans()
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda drawn: (drawn[0].removeprefix("./"), drawn[1]),
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_every_sample_is_a_row_with_its_picture_and_captions(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[tuple[str, str, str, bool]],
    format: int,
) -> None:
    files = []
    for number, (folder, name, ending, has_text) in enumerate(samples):
        path = folder + name
        picture = (f"{path}.{ending}".rstrip("."), jpeg(number))
        text = [(f"{path}.txt", f"caption {number}".encode())] if has_text else []
        # What an ending sorts to is no matter.
        files += [*text, picture] if number % 2 else [picture, *text]
    path = write(tmp_path_factory.mktemp("t") / "00000.tar", tar_of(*files, format=format))
    found = rows(WebDataset(str(path)))
    paired = {row["bytes"]: row["references"] for row in found}
    for number, (_, _, _, has_text) in enumerate(samples):
        assert paired[jpeg(number)] == ([f"caption {number}"] if has_text else [])
    assert {row["bytes"] for row in found} == {jpeg(number) for number in range(len(samples))}
    for row in found:
        digest = hashlib.sha256(row["bytes"]).hexdigest()
        assert (row["member_sha256"], row["member_size"]) == (digest, len(row["bytes"]))


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    for shard in range(2):
        names = [f"{shard:05}{number:04}" for number in range(3)]
        data = tar_of(*(member for name in names for member in sample(name, f"caption of {name}")))
        write(tmp_path / f"{shard:05}.tar", data)
        pq.write_table(pa.table({"url": ["https://x"]}), tmp_path / f"{shard:05}.parquet")
        write(tmp_path / f"{shard:05}_stats.json", "{}")
    assert detect(str(tmp_path)) == "webdataset"
    source = WebDataset(str(tmp_path), columns=("url", "size", "other"))
    found = rows(source)
    assert [row["key"] for row in found] == [
        f"{shard:05}/{shard:05}{number:04}" for shard in range(2) for number in range(3)
    ]
    first = found[0]
    assert first["uri"] == f"tar://000000000.jpg::{tmp_path}/00000.tar"
    assert first["references"] == ["caption of 000000000"]
    assert (first["url"], first["size"], first["other"]) == (
        "https://example.org/000000000",
        "3",
        None,
    )
    assert noted(source).lines() == []
    with Fetcher(Fetch(), source.trust) as fetcher:  # as a report shows the pictures
        assert fetcher.fetch(first["uri"]).data == first["bytes"]
        assert "refused" in fetcher.fetch("tar://a.jpg::/etc/x.tar").error


def test_pictures_are_known_by_their_bytes_and_captions_are_collected(tmp_path: Path) -> None:
    fields = {"caption_1": "two", "caption_0": "one", "note": "no"}
    data = tar_of(
        ("README", b"text"),
        (".DS_Store", jpeg("hidden")),
        ("__MACOSX/a.jpg", jpeg("hidden")),
        ("a.seg.png", jpeg("the mask")),
        ("a.bin", jpeg("nameless")),
        ("a.jpg", jpeg("a")),
        ("a.json", json.dumps(fields).encode()),
        ("b.cls", b"3"),
        ("b.webp", b"<html>not found</html>"),
        ("b.caption", "\ufeff a web page \n".encode()),
        ("b.cap", b"a web page"),
        ("b.json", b"{half"),
        ("c.mp3", b"ID3"),
        ("c.txt", b"a song"),
        ("d.png", b""),
    )
    path = str(write(tmp_path / "x.tar", data))
    found = {row["key"]: row for row in rows(WebDataset(path))}
    assert {key: (row["bytes"], row["references"]) for key, row in found.items()} == {
        "x/a": (jpeg("a"), ["one", "two"]),
        "x/b": (b"<html>not found</html>", ["a web page"]),
        "x/d": (b"", []),
    }
    assert found["x/d"]["error"] == "an empty file"
    notes = noted(WebDataset(path))
    assert (notes.count(UNPICTURED), notes.count(UNUSABLE_CAPTION)) == (2, 1)  # README and c
    assert notes.left_out() == []
    assert rows(WebDataset(path, picture=".SEG.png"))[0]["bytes"] == jpeg("the mask")
    assert rows(WebDataset(path, captions=("note", "caption_0")))[0]["references"] == ["no", "one"]


def test_members_of_a_sample_that_do_not_follow_each_other(tmp_path: Path) -> None:
    data = tar_of(
        ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("a.txt", b"late"), ("a.png", jpeg(3)),
        ("b.jpg", jpeg(4)), ("b.jpg", jpeg(5)),
    )  # fmt: skip
    source = WebDataset(str(write(tmp_path / "x.tar", data)))
    assert [(row["key"], row["bytes"], row["references"]) for row in rows(source)] == [
        ("x/a", jpeg(1), []),
        ("x/b", jpeg(2), []),
        ("x/a#2", jpeg(3), ["late"]),
        ("x/b#2", jpeg(4), []),
        ("x/b#3", jpeg(5), []),
    ]
    [remark] = noted(source).remarks()
    assert remark.startswith("3 rows repeat an earlier sample of its tar")


def test_links_and_large_pictures_fail_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        about = tarfile.TarInfo("a.jpg")
        about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(about)
        about = tarfile.TarInfo("b.jpg")
        about.size = len(jpeg("b" * 2000))
        tar.addfile(about, io.BytesIO(jpeg("b" * 2000)))
    monkeypatch.setattr("raycap.sources.webdataset.LARGEST_PICTURE", 2000)
    found = rows(WebDataset(str(write(tmp_path / "x.tar", out.getvalue()))))
    assert [row["bytes"] for row in found] == [None, None]
    assert found[0]["error"].startswith("a link in a tar") and "larger" in found[1]["error"]


def test_a_tar_that_is_cut_anywhere_keeps_the_rows_before(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(5)]
    files = [member for name in names for member in sample(name, "a dog" * 200)]
    whole = tar_of(*files)
    ends = {each.name: each.offset + each.size for each in members(io.BytesIO(whole))}
    path = tmp_path / "cut" / "a.tar"
    write(tmp_path / "cut" / "b.tar", tar_of(*sample("last")))
    end_mark = max(ends.values()) // BLOCK * BLOCK + BLOCK
    for cut in range(0, end_mark + 2 * BLOCK, BLOCK):
        for size in (cut, cut + 7):
            write(path, whole[:size])
            source = WebDataset(str(tmp_path / "cut"))
            wanted = [f"a/{name}" for name in names if ends[f"{name}.jpg"] <= size]
            assert keys(source) == [*wanted, "b/last"]
            notes = noted(source)
            assert notes.count(DAMAGED_TAR) == (size < end_mark + BLOCK)
            assert bool(notes.left_out()) == (size < end_mark + BLOCK)
            if not wanted:
                with pytest.raises(UserError, match="ends too early"):
                    list(WebDataset(str(path)).tables())


def test_tars_that_cannot_be_read_cost_their_own_rows(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", b"this is no tar at all" * 100)
    write(tmp_path / "1.tar", tar_of(*sample("a")))
    write(tmp_path / "2.tar", gzip.compress(tar_of(*sample("b"))))
    write(tmp_path / "4.tar", tar_of())
    source = WebDataset(str(tmp_path / "{0..4}.tar"))
    assert keys(source) == ["1/a"]
    notes = noted(source)
    assert (notes.count(DAMAGED_TAR), notes.count(UNUSABLE_FILE)) == (2, 1)
    text = " ".join(notes.lines())
    assert "it is no tar" in text and "compressed (gzip)" in text and "3.tar" in text
    with pytest.raises(UserError, match=r"no picture in .*4\.tar"):
        list(WebDataset(str(tmp_path / "4.tar")).tables())
    with pytest.raises(UserError, match="is no tar that can be read"):
        WebDataset(str(tmp_path / "0.tar")).check()


def test_a_picture_that_is_not_there_any_more_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_of(*sample("a"), *sample("b")))
    source = WebDataset(str(path))
    [table] = source.tables()
    write(path, tar_of(*sample("a"), *sample("c")))
    assert source.embedded_pictures(table) == [jpeg("a"), None]
    write(path, b"")
    assert source.embedded_pictures(table) == [None, None]
    path.unlink()
    assert source.embedded_pictures(table) == [None, None]


def test_large_pictures_come_few_at_a_time(tmp_path: Path) -> None:
    data = tar_of(*((f"{number}.jpg", jpeg(number) + bytes(12 << 20)) for number in range(4)))
    source = WebDataset(str(write(tmp_path / "x.tar", data)))
    assert [len(table) for table in source.tables()] == [3, 1]


def test_listing_takes_memory_for_a_few_pictures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycap.sources.manifest.MOST_BYTES", 1 << 20)
    large = bytes(100_000)
    data = tar_of(*((f"{number}.jpg", jpeg(number) + large) for number in range(200)))
    source = WebDataset(str(write(tmp_path / "x.tar", data)))
    del data
    assert len(next(source.tables()))  # which loads what it needs
    tracemalloc.start()
    try:
        assert sum(map(len, source.tables())) == 200
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


# Paths


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{x}{a,b}{", ["{x}a{", "{x}b{"]),
        ("{{a,b}}", ["{a}", "{b}"]),
        ("{..}", ["{..}"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert expanded(text) == names


def test_too_many_names() -> None:
    for text in ("{0..9999999}", "{0..999999}{a,b}", "{1..1}" * 1000):
        with pytest.raises(UserError, match="more than"):
            expanded(text)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for name in ("train-0.tar", "train-1.tar", "deep/validation-0.tar", "test/0.tar"):
        write(folder / name, tar_of(*sample(f"of {name.removesuffix('.tar')}")))
    return folder


def test_which_tars_a_path_means(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tars(path: str, **options: Any) -> list[str]:
        assert options or detect(path) == "webdataset"
        found = keys(WebDataset(path, **options))
        return [key.partition("/of ")[0] for key in found]

    everything = ["deep/validation-0", "test/0", "train-0", "train-1"]
    assert tars(str(shards)) == everything
    assert [row["split"] for row in rows(WebDataset(str(shards)))] == [
        "dev",
        "test",
        "train",
        "train",
    ]
    drawn = rows(WebDataset(str(shards), fractions=(0.0, 0.0, 1.0)))
    assert {row["split"] for row in drawn} == {"test"}
    assert tars(f"{shards}/train-0.tar") == ["train-0"]
    assert tars(f"{shards}/*.tar") == ["train-0", "train-1"]
    assert tars(f"{shards}/**/*.tar") == everything
    assert tars(f"{shards}/*/*.tar") == everything[:2]
    assert tars(f"{shards}/train-{{1,0}}.tar") == ["train-1", "train-0"]
    assert tars(f"{shards}/{{deep/validation,train}}-*.tar") == [everything[0], *everything[2:]]
    monkeypatch.chdir(shards)
    assert tars("*.tar") == ["train-0", "train-1"]
    assert tars("train-{0..1}.tar") == ["train-0", "train-1"]
    source = with_absolute_paths(WebDataset("train-{0..1}.tar"))
    monkeypatch.chdir("/")
    assert [row["key"][:7] for row in rows(source)] == ["train-0", "train-1"]
    with pytest.raises(UserError, match="no tar matches"):
        WebDataset(f"{shards}/x*.tar").check()
    with pytest.raises(UserError, match="no such file"):
        WebDataset(f"{shards}/x.tar").check()


def test_the_parts_of_the_tars_are_the_whole(shards: Path, tmp_path: Path) -> None:
    def parts(source: WebDataset) -> list[dict[str, Any]]:
        tables = [
            table for unit in source.units() for table in source.tables_of_unit(unit, Notes())
        ]
        return [row for table in tables for row in table.to_pylist()]

    source = WebDataset(str(shards))
    assert len(source.units()) == 5 and parts(source) == rows(source)
    assert WebDataset(f"{shards}/train-0.tar").units() == ("",)
    # Samples of a.tar and of a/b.tar can have the same keys, which are then numbered.
    write(tmp_path / "a.tar", tar_of(*sample("b/c")))
    write(tmp_path / "a" / "b.tar", tar_of(*sample("c")))
    assert WebDataset(str(tmp_path)).units() == ("",)
    assert keys(WebDataset(str(tmp_path))) == ["a/b/c", "a/b/c#2"]


def test_lists_of_tars(shards: Path, tmp_path: Path) -> None:
    lines = f"# all\ntrain-1.tar\n\n{shards}/test/0.tar\n{tmp_path}/x.tar\n../y.tar\n"
    path = str(write(shards / "list.txt", lines))
    write(tmp_path / "x.tar", tar_of(*sample("x")))
    try:
        assert detect(path) == "webdataset"
        assert keys(WebDataset(path)) == ["train-1/of train-1", "test/0/of test/0"]
        notes = noted(WebDataset(path))
        assert notes.count(UNUSABLE_FILE) == 2 and "--source.trusted" in notes.lines()[0]
        also = WebDataset(path, trusted=(str(tmp_path),))
        assert keys(also)[-1] == f"{tmp_path}/x/x"
    finally:
        Path(path).unlink()
    assert detect(str(write(tmp_path / "urls.txt", "https://example.org/a.jpg\n"))) == "urls"


def test_no_string_in_a_list_or_a_tar_leads_out(tmp_path: Path, web: Server) -> None:
    root, secret = tmp_path / "root", write(tmp_path / "secret.tar", tar_of(*sample("secret")))
    write(root / "own.tar", tar_of(*sample("own")))
    (root / "link.tar").symlink_to(secret)
    names = [
        *(str(secret), f"file://{secret}", "../secret.tar", f"{root}/../secret.tar", "link.tar"),
        *(f"simplecache::{secret}", f"simplecache::{root}/own.tar", "memory://secret.tar"),
        *("s3://other/secret.tar", web.url("/s/01.tar"), f"simplecache::{web.url('/s/01.tar')}"),
        *(f"tar://secret.tar::{secret}", "data:application/x-tar;base64,AAAA", "/dev/stdin"),
    ]
    path = str(write(root / "list.txt", "\n".join(["own.tar", *names])))
    web.order.clear()
    assert keys(WebDataset(path)) == ["own/own"]
    assert noted(WebDataset(path)).count(UNUSABLE_FILE) == len(names)
    assert not web.order
    assert keys(WebDataset(f"{root}/")) == ["own/own"]

    members = [f"x::{secret}.jpg", f"secret.jpg::{secret}", f"/{secret}.jpg", "file:///secret.jpg"]
    source = WebDataset(str(write(root / "own.tar", tar_of(*((n, jpeg(n)) for n in members)))))
    found = read(source)
    with Fetcher(Fetch(), source.trust) as fetcher:
        for uri, picture in zip(found["uri"].to_pylist(), found["bytes"].to_pylist(), strict=True):
            assert fetcher.fetch(uri).data in (b"", picture)


def test_which_folders_hold_tars(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.jpg")
    write(tmp_path / "photos" / "backup.tar", tar_of(*sample("a")))
    assert detect(str(tmp_path / "photos")) == "folder"
    write(tmp_path / "tables" / "a.parquet", b"")
    pq.write_table(pa.table({"url": ["https://x"]}), tmp_path / "tables" / "a.parquet")
    write(tmp_path / "tables" / "deep" / "a.tar", tar_of(*sample("a")))
    assert detect(str(tmp_path / "tables")) == "table"


def test_compressed_tars_are_refused_with_what_to_do(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        path = str(write(tmp_path / name, gzip.compress(tar_of(*sample("a")))))
        assert detect(path) == "webdataset"
        with pytest.raises(UserError, match=r"compressed tar.*unpack it to a"):
            WebDataset(path).check()
    assert detect("https://example.org/{0..3}.tar.gz") == "webdataset"


def test_options_that_cannot_be(tmp_path: Path) -> None:
    for columns in (("caption",), ("member_size",), ("url", "url")):
        with pytest.raises(UserError):
            WebDataset(str(tmp_path), columns=columns)
    for kind in (WebDataset, Table):
        for name in ("format", "pixels", "embedded"):
            with pytest.raises(UserError, match=f"cannot carry {name}"):
                kind(str(tmp_path), columns=(name,))
    with pytest.raises(UserError, match=r"--source\.trusted"):
        WebDataset(str(tmp_path), trusted=("relative",))
    with pytest.raises(UserError, match=r"no \*\.tar"):
        WebDataset(str(tmp_path)).check()


# Elsewhere


def test_a_bucket(shards: Path, s3: Any) -> None:
    s3.mkdir("bucket")
    for file in sorted(shards.rglob("*.tar")):
        s3.put_file(str(file), f"bucket/shards/{file.relative_to(shards)}")
    root = "s3://bucket/shards"
    for path, below in [(root, shards), (f"{root}/*.tar", shards / "*.tar")]:
        assert detect(path) == "webdataset"
        here = [(row["key"], row["bytes"]) for row in rows(WebDataset(str(below)))]
        found = rows(WebDataset(path))
        assert [(row["key"], row["bytes"]) for row in found] == here
    source = WebDataset(f"{root}/{{train-0,train-7,train-1}}.tar")
    assert keys(source) == ["train-0/of train-0", "train-1/of train-1"]
    assert "train-7.tar: no such file" in noted(source).lines()[0]
    row = rows(source)[0]
    with Fetcher(Fetch(), source.trust) as fetcher:
        assert fetcher.fetch(row["uri"]).data == row["bytes"]
    s3.pipe("bucket/list.txt", b"s3://bucket/shards/train-0.tar\ns3://other/a.tar\n")
    listed = WebDataset("s3://bucket/list.txt")
    assert keys(listed) == ["shards/train-0/of train-0"]
    assert "other" in noted(listed).lines()[0]


@pytest.fixture
def web() -> Iterator[Server]:
    near = [member for number in range(20) for member in sample(f"{number:04}", "a dog")]
    gaps = [(f"gap{number}.mp3", bytes(600_000)) for number in range(3)]
    lonely = [(f"z{number}.jpg", jpeg(number)) for number in range(3)]
    far = itertools.chain.from_iterable(zip(gaps, lonely, strict=True))
    with serving(
        {
            "/s/00.tar": tar_of(*near, *far),
            "/s/01.tar": tar_of(*sample("b")),
            "/s/02.tar": tar_of(*sample("c"))[:700],
            "/films.tar": tar_of(
                ("a.mp4", bytes(9 << 20)), ("a.jpg", jpeg(0)), ("b.mp4", bytes(9 << 20))
            ),
            "/x.tar": b"",
        }
    ) as running:
        yield running


def test_a_web_server(web: Server) -> None:
    path = web.url("/s/{00..03}.tar?signature=secret")
    assert detect(path) == "webdataset"
    source = WebDataset(path, allow_private=True)
    [table] = source.tables()
    web.order.clear()
    assert source.embedded_pictures(table) == table["bytes"].to_pylist()
    # 20 pictures that lie near each other are one request, three far ones are three; and for
    # each tar its size is asked for.
    assert [path.partition("?")[0] for path in sorted(web.order)] == [
        *["/s/00.tar"] * 5,
        *["/s/01.tar"] * 2,
        *["/s/02.tar"] * 2,
    ]
    assert keys(source)[-5:] == ["00/z0", "00/z1", "00/z2", "01/b", "02/c"]
    text = " ".join(noted(source).lines())
    assert "02.tar: it ends too early" in text and "03.tar: HTTP 404" in text
    assert "secret" not in text


def test_what_is_not_needed_is_not_fetched(web: Server) -> None:
    source = WebDataset(web.url("/films.tar"), allow_private=True)
    assert sum(map(len, source.tables())) == 1
    assert len(web.order) == 4  # its size, the head of the film, the picture, the end mark


def test_web_servers_that_are_refused(web: Server) -> None:
    path = web.url("/s/01.tar")
    with pytest.raises(UserError, match=r"loopback address .--source\.allow-private"):
        WebDataset(path).check()
    with pytest.raises(UserError, match="loopback"):
        list(WebDataset(path).tables())
    with pytest.raises(UserError, match=r"does not give parts of files .*copy the file"):
        WebDataset(web.url("/good"), allow_private=True).check()
    with pytest.raises(UserError, match="HTTP 416"):
        WebDataset(web.url("/x.tar"), allow_private=True).check()
    with pytest.raises(UserError, match="name the tars with braces"):
        WebDataset(web.url("/s/{0,1}*.tar"), allow_private=True).check()
    moved = WebDataset(web.url(f"/redirect?to={path}"), allow_private=True)
    assert [row["bytes"] for row in rows(moved)] == [jpeg("b")]
    assert keys(WebDataset(f"{path}?fails=2", allow_private=True)) == ["01/b"]
    with pytest.raises(UserError, match="HTTP 503"):
        WebDataset(f"{path}?fails=9", allow_private=True).check()


# From end to end


def test_captions_of_tars_and_a_run_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_ray: None
) -> None:
    save_captioner(tmp_path / "model")
    pictures = sorted(photos(tmp_path / "photos", range(12)).iterdir())
    digests = {}
    for shard in range(3):
        files = []
        for picture in pictures[4 * shard : 4 * shard + 4]:
            data = picture.read_bytes()
            digests[f"{shard:02}/{picture.stem}"] = hashlib.sha256(data).hexdigest()
            fields = json.dumps({"url": f"https://x/{picture.stem}"}).encode()
            files += [(picture.name, data), (f"{picture.stem}.json", fields)]
        write(tmp_path / f"shards/{shard:02}.tar", tar_of(*files))
    out = tmp_path / "out"

    def run(path: str, *flags: str) -> int:
        command = ["caption", str(tmp_path / path), "--model", str(tmp_path / "model")]
        command += ["--out", str(out), "--columns", "url", "--batch", "4", *flags]
        return main(command)

    def table() -> list[dict[str, Any]]:
        return sorted(pq.read_table(out / "captions").to_pylist(), key=lambda row: row["key"])

    # The last tar is cut in its last picture.
    last = (tmp_path / "shards/02.tar").read_bytes()
    place = max(each.offset for each in members(io.BytesIO(last)) if each.name.endswith(".png"))
    write(tmp_path / "shards/02.tar", last[: place + 100])
    assert run("shards/{00..02}.tar") == 1
    assert "damaged or cut" in capsys.readouterr().out
    first = table()
    assert [row["key"] for row in first] == sorted(digests)[:-1]

    write(tmp_path / "shards/02.tar", last)
    assert run("shards/{00..02}.tar", "--also", "webdataset") == 0
    found = table()
    assert {row["key"]: row["sha256"] for row in found} == digests
    assert all(row["status"] == "success" and row["caption"] for row in found)
    assert [row["url"] for row in found] == [f"https://x/{row['key'][3:]}" for row in found]
    assert found[:-1] == first
    assert not set(PLACE) & set(found[0])
    # What was written is itself such a source.
    again = WebDataset(str(out / "webdataset"))
    assert {row["sha256"] for row in found} == {row["member_sha256"] for row in rows(again)}
    assert {text for row in rows(again) for text in row["references"]} == {
        row["caption"] for row in found
    }
