"""Lists as lines: packed in every way, damaged, with lines of any length, in bounded memory."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_rows import column, noted

from raycap.errors import UserError
from raycap.sources import SOURCES, Table, Urls, delimited, detect, records
from raycap.sources.lines import (
    LONGEST_LINE,
    LONGEST_URL,
    Lines,
    LongLine,
    first_line,
    head,
    name_unpacked,
)
from raycap.storage.location import locate


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
COMPRESSED = [name for name in PACKERS if name != "plain"]
TEXT = "first\nsecond, wïth ünïcode\r\nthird\rfourth"


def lines_of(path: Path, data: bytes, longest: int = LONGEST_LINE) -> list[str | LongLine]:
    path.write_bytes(data)
    return list(Lines(locate(str(path)), longest).or_faults())


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_packing_and_encoding_gives_the_same_lines(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    expected = TEXT.splitlines(keepends=True)
    path = tmp_path / "list"  # the bytes decide, not the name
    assert lines_of(path, PACKERS[kind](TEXT.encode(encoding))) == expected
    assert first_line(locate(str(path))) == "first"
    assert head(locate(str(path)), 5) == TEXT.encode(encoding)[:5]


@pytest.mark.parametrize("kind", COMPRESSED)
def test_several_streams_in_one_file_are_one_text(tmp_path: Path, kind: str) -> None:
    """As `cat a.gz b.gz`, pbzip2 and pixz make them."""
    pack = PACKERS[kind]
    assert lines_of(tmp_path / "list", pack(b"one\ntw") + pack(b"") + pack(b"o\nthree\n")) == [
        "one\n",
        "two\n",
        "three\n",
    ]


def test_zeros_between_streams_of_xz_are_padding(tmp_path: Path) -> None:
    data = lzma.compress(b"one\n") + bytes(8) + lzma.compress(b"two\n") + bytes(1 << 17)
    assert lines_of(tmp_path / "list.xz", data) == ["one\n", "two\n"]


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize(
    "how", ["cut", "second stream cut", "flipped", "followed by something else"]
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kind: str, how: str) -> None:
    if (kind, how) == ("zstd", "flipped"):
        pytest.skip("pyarrow writes zstd without checksums")
    text = b"".join(b"http://example.org/%d.jpg\n" % (number * 7919) for number in range(5000))
    packed = PACKERS[kind](text)
    half = len(packed) // 2
    damaged = {
        "cut": packed[:half],
        "second stream cut": packed + packed[:half],
        "flipped": packed[:half]
        + bytes(255 - byte for byte in packed[half : half + 40])
        + packed[half + 40 :],
        "followed by something else": packed + b"something else",
    }[how]
    path = tmp_path / "urls.txt.packed"
    with pytest.raises(
        UserError, match=rf"urls\.txt\.packed is a damaged {kind} file \(.+\): fetch it again"
    ):
        lines_of(path, damaged)


def test_an_xz_file_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    chain = [
        {
            "id": lzma.FILTER_LZMA2,
            "dict_size": 400 << 20,
            "mode": lzma.MODE_FAST,
            "mf": lzma.MF_HC3,
        }
    ]
    header = lzma.compress(b"", filters=[{**chain[0], "dict_size": 4096}])
    data = lzma.compress(b"x\n", filters=[{**chain[0], "dict_size": 4096}])
    assert header and lines_of(tmp_path / "small.xz", data) == ["x\n"]
    # The dictionary's size is one byte of the block header, behind which stands a checksum.
    with pytest.raises(
        UserError, match=r"large\.xz is a damaged xz file \(Memory usage limit exceeded\)"
    ):
        lines_of(tmp_path / "large.xz", _with_dictionary(data, 37))  # 1.5 GB


def _with_dictionary(data: bytes, size_code: int) -> bytes:
    import zlib

    size = (
        data[12] + 1
    ) * 4  # of the block header, which begins behind the 12 bytes of the stream header
    block = bytearray(data[12 : 12 + size])
    filter_id = block.index(0x21)
    block[filter_id + 2] = size_code
    block[-4:] = zlib.crc32(bytes(block[:-4])).to_bytes(4, "little")
    return data[:12] + bytes(block) + data[12 + size :]


# Around the limit, and around the sizes of the pieces in which the rest is skipped.
LENGTHS = [99, 100, 101, 65_535, 65_536, 65_537, 65_636, 131_171, 131_172, 131_173, 200_000]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_long_line_is_passed_over_and_the_next_one_is_read(
    tmp_path: Path, end: str, length: int
) -> None:
    text = f"before{end}{'x' * length}{end}{end}behind{end}"
    before, line, blank, behind = lines_of(tmp_path / "list", text.encode(), longest=100)
    assert (before, blank, behind) == (f"before{end}", end, f"behind{end}")
    if length < 100:  # the end may be cut in the middle
        assert isinstance(line, str) and line.rstrip() == "x" * length
    else:
        assert isinstance(line, LongLine) and line.number == 2
        assert str(line) == f"{tmp_path}/list line 2 is longer than 100 characters"


def test_iteration_raises_at_a_long_line_and_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(f"a\n{'x' * 50}\nb\n")
    lines = Lines(locate(str(path)), longest=10)
    assert next(lines) == "a\n"
    with pytest.raises(LongLine, match="line 2 is longer than 10 characters"):
        next(lines)
    assert (next(lines), lines.number) == ("b\n", 3)
    with pytest.raises(StopIteration):
        next(lines)


@given(st.text(st.sampled_from("ab\r\n"), max_size=60), st.integers(3, 12))
@settings(deadline=None, max_examples=300)
def test_no_line_is_lost_or_changed(
    tmp_path_factory: pytest.TempPathFactory, text: str, longest: int
) -> None:
    found = lines_of(tmp_path_factory.getbasetemp() / "any", text.encode(), longest)
    true_lines = list(io.TextIOWrapper(io.BytesIO(text.encode()), newline=""))
    assert len(found) == len(true_lines)
    for number, (item, line) in enumerate(zip(found, true_lines, strict=True), 1):
        if isinstance(item, LongLine):
            assert len(line) >= longest and item.number == number
        else:
            assert item.rstrip("\r\n") == line.rstrip("\r\n") and len(item) <= longest


@pytest.mark.parametrize("kind", PACKERS)
def test_a_line_without_end_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """30 MB of one letter, which is a small file when compressed. (xz decompresses with 8 MB.)"""
    path = tmp_path / "list"
    path.write_bytes(PACKERS[kind](b"x" * 30_000_000 + b"\nbehind\n"))
    tracemalloc.start()
    try:
        items = list(Lines(locate(str(path)), longest=100_000).or_faults())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [type(item) for item in items] == [LongLine, str] and items[1] == "behind\n"
    assert peak < 12_000_000


def test_one_line_of_50_mb_takes_no_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"x" * 50_000_000)
    tracemalloc.start()
    try:
        assert [type(item) for item in Lines(locate(str(path))).or_faults()] == [LongLine]
        assert len(first_line(locate(str(path)))) == LONGEST_LINE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LONGEST_LINE


def test_a_text_that_begins_like_bzip2_is_a_text(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "list", b"BZh9 is a name\n") == ["BZh9 is a name\n"]


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst", ".zstd", ".GZ"])
def test_the_ending_of_a_compression_is_not_a_format(ending: str) -> None:
    assert name_unpacked("Pictures.CSV" + ending) == "pictures.csv"


# Sources


def table(kind: str, urls: list[str], long: str = "") -> str:
    """A table of addresses, with a column that is `long` in the row behind the first."""
    rows = [(url, long if number == 1 else "note") for number, url in enumerate(urls)]
    if kind == "jsonl":
        return "".join(json.dumps({"url": url, "note": note}) + "\n" for url, note in rows)
    delimiter = "\t" if kind == "tsv" else ","
    return "".join(f"{url}{delimiter}{note}\n" for url, note in [("url", "note"), *rows])


URLS = ["http://h/1.jpg", "http://h/2.jpg", "http://h/3.jpg"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "urls.txt"])
def test_packed_lists_and_tables_are_found_and_read(
    tmp_path: Path, name: str, ending: str
) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}[ending]
    kind = name.rpartition(".")[2].replace("json", "jsonl").replace("jsonll", "jsonl")
    path = tmp_path / (name + ending)
    path.write_bytes(pack(("\n".join(URLS) if kind == "txt" else table(kind, URLS)).encode()))
    assert detect(str(path)) == ("urls" if kind == "txt" else "table")
    source = SOURCES[detect(str(path))](str(path))
    source.check()
    assert column(source, "uri") == URLS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{name}{ending} is a damaged"):
        source.check()
        column(source, "uri")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_row_of_20_mb_is_left_out_in_bounded_memory_and_counted(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"t.{kind}"
    path.write_text(table(kind, URLS, "x" * 20_000_000))
    source = Table(str(path))
    tracemalloc.start()
    try:
        source.check()
        assert column(source, "uri") == [URLS[0], URLS[2]]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * LONGEST_LINE
    [left_out] = noted(source).left_out()
    line = 2 if kind == "jsonl" else 3
    assert left_out["examples"] == [f"t.{kind} line {line}: longer than 16,000,000 characters"]


def test_a_long_line_in_a_list_of_urls_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_text(f"{URLS[0]}\nhttp://h/{'x' * LONGEST_URL}\n{URLS[2]}\n")
    source = Urls(str(path))
    source.check()
    assert column(source, "uri") == [URLS[0], URLS[2]]
    [left_out] = noted(source).left_out()
    assert left_out["examples"] == ["urls.txt line 2: longer than 65,536 characters"]


def test_a_list_of_nothing_but_long_lines_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_bytes(b"x" * 1_000_000 + b"\n" + b"y" * 1_000_000)
    expected = (
        r"no URL in .*; 2 malformed lines left out "
        r"\(urls\.txt line 1: longer than 65,536 characters, "
    )
    with pytest.raises(UserError, match=expected):
        Urls(str(path)).check()
    with pytest.raises(UserError, match=expected):
        list(Urls(str(path)).tables())


def test_a_row_of_csv_over_many_lines_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line and no field is long, but each line ends within quotes, so the row never ends."""
    monkeypatch.setattr(delimited, "LONGEST_LINE", 100_000)
    path = tmp_path / "t.csv"
    path.write_text("url,note\nhttp://h/1.jpg,a\n" + '"a\n",' * 500_000)
    tracemalloc.start()
    try:
        with pytest.raises(
            UserError, match="the row that begins in line 3 is longer than 100,000 characters"
        ):
            column(Table(str(path)), "uri")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_large_values_of_json_come_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are no strings, which would take many times the memory of their text."""
    monkeypatch.setattr(records, "MOST_BYTES", 10_000)
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps({"url": url, "x": [{"a": [1]}] * 500}) + "\n" for url in URLS)
    )
    pieces = [len(piece) for piece in Table(str(path), columns=("x",)).tables()]
    assert pieces == [2, 1]
    pieces = [len(piece) for piece in Table(str(path), references=("x",)).tables()]
    assert pieces == [2, 1]


def test_the_limit_is_for_each_row_of_csv_and_not_for_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 50)
    path = tmp_path / "t.csv"
    path.write_text(table("csv", URLS * 30))
    assert column(Table(str(path)), "uri") == URLS * 30
