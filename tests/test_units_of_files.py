"""Lists and tables that are cut into units: planned in parts, they give what a serial listing
gives, row for row, however they are cut and wherever the planning is killed."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycap.bulk import listing as listing_module
from raycap.bulk import plan as plan_module
from raycap.bulk import repeated_keys
from raycap.bulk.listing import NamedUnitLister, Part, lister
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Kind, Plan, Shard, read_shard, write_plan
from raycap.errors import UserError
from raycap.sources import HuggingFace, Notes, Source, Table, Urls, pieces
from raycap.sources.lines import Lines, Span
from raycap.storage import RunFolder
from raycap.storage.location import locate

pytestmark = pytest.mark.usefixtures("no_ray")

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units, partitions, files and shards for a few rows."""
    monkeypatch.setattr(pieces, "UNIT_BYTES", 64)
    monkeypatch.setattr("os.fsync", lambda file: None)  # there is no power cut
    monkeypatch.setattr(plan_module, "SHARD_ROWS", 3)
    monkeypatch.setattr(listing_module, "ROWS_IN_FILE", 3)
    monkeypatch.setattr(listing_module, "SHARDS_IN_BLOCK", 2)
    monkeypatch.setattr(repeated_keys, "UNITS_PER_PARTITION", 2)


def new_plan(
    source: Source, out: RunFolder, number: int = 1, kind: Kind = "first", whole: bool = False
) -> Plan:
    units = ("",) if whole else source.units()
    plan = Plan(number, kind, {}, batch=4, chunk_rows=16, units=units, keys=source.unit_keys)
    write_plan(out, plan)
    return plan


def run(parts: Iterator[list[Part]]) -> list[Shard]:
    return [shard for round in parts for part in round for shard in part()]


@dataclass
class Planned:
    """What is written down."""

    rows: Rows
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def planned(
    source: Source,
    out: RunFolder,
    plan: Plan,
    earlier: tuple[Plan, ...] = (),
    tasks: int = 3,
    options: BulkOptions | None = None,
) -> Planned:
    lists = lister(source, options or BulkOptions(), out, plan, earlier)
    shards = run(lists.rounds(range(len(plan.units)), tasks))
    return read_plan_rows(out, plan, shards)


def read_plan_rows(out: RunFolder, plan: Plan, shards: list[Shard]) -> Planned:
    assert list(plan.shards(out)) == sorted(set(shards), key=lambda shard: shard[:2])
    found = Planned([])
    for shard in plan.shards(out):
        found.rows += read_shard(out, plan.operation, shard.unit, shard.number).to_pylist()
        if shard.is_last:
            notes = shard.parsed_notes()
            found.remarks += notes["notes"]
            for item in notes["left_out"]:
                what = item["what"].split(" left out")[0].replace("lines", "line")
                found.left_out[what] = found.left_out.get(what, 0) + item["count"]
                found.examples.setdefault(what, []).extend(item["examples"])
    return found


def check_same(source: Source, folder: Path, is_cut: bool = True) -> Planned:
    """Planned in units, a source gives the rows and notes that it gives as a whole."""
    out = RunFolder(str(folder / "whole"))
    whole = planned(source, out, new_plan(source, out, whole=True))
    out = RunFolder(str(folder / "units"))
    plan = new_plan(source, out)
    assert (len(plan.units) > 1) == is_cut
    found = planned(source, out, plan)
    assert found.rows == whole.rows
    assert found.left_out == whole.left_out and sorted(found.remarks) == sorted(whole.remarks)
    for what, examples in whole.examples.items():  # each unit has examples of its own
        assert found.examples[what][: len(examples)] == examples
    keys = [row["key"] for row in found.rows]
    assert len(set(keys)) == len(keys)
    return found


NASTY_LINES = {
    "lf": b"\n".join(b"http://a/%d.jpg" % (number % 17) for number in range(40)) + b"\n",
    "crlf": b"\r\n".join(b"http://a/%d.jpg" % number for number in range(40)) + b"\r\n",
    "cr": b"\r".join(b"http://a/%d.jpg" % (number % 23) for number in range(40)),
    "mixed": b"".join(
        b"http://a/%d.jpg" % (number % 7) + end
        for number, end in zip(
            range(60),
            itertools.cycle((b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\n\r")),
            strict=False,
        )
    ),
    "bom": b"\xef\xbb\xbf" + b"\n".join(b"http://a/%d.jpg" % number for number in range(30)),
    "no end": b"\n".join(b"http://a/%d.jpg" % number for number in range(30)),
    "empty lines": b"http://a/1.jpg\n" + b"\n" * 200 + b"http://a/1.jpg\n" + b"  \n" * 90,
    "comments": b"".join(b"# http://a/\nhttp://a/%d\n#\n" % (number % 3) for number in range(30)),
    "long lines": b"http://a/1\n" + (b"http://b/" + b"x" * 70_000 + b"\nhttp://a/1\n") * 4,
    "units in a line": b"http://a/" + b"y" * 1000 + b"\n" + b"http://a/1\n" * 9,
    "multi-byte": "\n".join(
        f"http://ä/{'é€😀' * (number % 5)}.jpg" for number in range(40)
    ).encode(),
    "no utf-8": b"\n".join(b"http://a/\xff\xe4\xc3" * (number % 4) for number in range(60)),
    "numbers in names": b"".join(
        b"http://a#%d\nhttp://a\nhttp://a#2#1\n" % (number % 4) for number in range(20)
    ),
    "nul and others": b"http://a/\0\nhttp://a/\x0b\x0c\x1c\x85\n" * 20,
}


@pytest.mark.parametrize("name", NASTY_LINES)
def test_a_list_in_units_is_the_list(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "long lines":
        monkeypatch.setattr(pieces, "UNIT_BYTES", 20_000)
    path = tmp_path / "urls.txt"
    path.write_bytes(NASTY_LINES[name])
    found = check_same(Urls(str(path)), tmp_path)
    if name == "long lines":
        assert [line.split(":")[0] for line in found.examples["malformed line"][:3]] == [
            f"urls.txt line {number}" for number in (2, 4, 6)
        ]


TEXT = st.text(st.sampled_from("ab#1ä😀\n\r\t ,"), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=40), st.integers(20, 200))
def test_any_list_in_units_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    unit: int,
) -> None:
    monkeypatch.setattr(pieces, "UNIT_BYTES", unit)
    folder = tmp_path_factory.mktemp("list")
    data = "".join(texts).encode() + b"\nx\n"
    (folder / "urls.txt").write_bytes(data)
    source = Urls(str(folder / "urls.txt"), local=True)
    check_same(source, folder, len(data) >= 2 * unit)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.lists(st.integers(0, 220), max_size=6))
def test_each_line_is_in_one_span(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("spans") / "list"
    data = b"a" + data.replace(b"\xff\xfe", b"").replace(b"\xfe\xff", b"")
    path.write_bytes(data)
    file = locate(str(path))
    edges = [0, *sorted(cuts), len(data)]
    found = [
        line
        for start, stop in itertools.pairwise(edges)
        for line in Lines(file, span=Span(start, max(start, stop)))
    ]
    assert found[: len(list(Lines(file)))] == list(Lines(file)) and len(found) == len(
        list(Lines(file))
    )


def jsonl(rows: list[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_json_lines_in_units_are_the_table(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"url": f"http://a/{number % 9}", "caption": ["é", "b"], "more": {"n": number}}
        for number in range(30)
    ]
    rows[5:5] = ["no json", "", '{"url": ']
    rows[20:20] = ["[1]", {"caption": "without a url"}, {"url": None}]
    (tmp_path / "a.jsonl").write_text(jsonl(rows))
    source = Table(str(tmp_path / "a.jsonl"), references=("auto",), columns=("more",))
    found = check_same(source, tmp_path)
    assert found.left_out == {"malformed line": 3}
    assert found.examples["malformed line"][0].startswith("a.jsonl line 6:")
    assert "a.jsonl line 21:" in " ".join(found.examples["malformed line"])


CSV = "url,words\n" + "".join(f"http://a/{number % 9},word ä {number}\n" for number in range(40))


def test_csv_in_units_is_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace("word ä 11\n", "word, too many\n\n"))
    source = Table(str(tmp_path / "a.csv"), columns=("words",), fractions=(0.5, 0.3, 0.2))
    found = check_same(source, tmp_path)
    assert found.examples["malformed line"] == ["a.csv line 13: 3 fields instead of 2"]


def test_csv_without_a_header_in_units(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(CSV.partition("\n")[2].replace(",", "\t"))
    check_same(Table(str(tmp_path / "a.tsv"), column="1"), tmp_path)


@pytest.mark.parametrize("where", ["first", "last"])
def test_csv_with_quotes_is_not_cut(tmp_path: Path, where: str) -> None:
    row = 'http://a/q,"two\nlines"\n'
    head, _, rest = CSV.partition("\n")
    (tmp_path / "a.csv").write_text(
        f"{head}\n{row}{rest}" if where == "first" else f"{head}\n{rest}{row}"
    )
    found = check_same(Table(str(tmp_path / "a.csv"), columns=("words",)), tmp_path, False)
    assert len(found.rows) == 41


@pytest.mark.parametrize("how", ["utf-16", "gzip"])
def test_text_that_cannot_be_cut_is_one_unit(tmp_path: Path, how: str) -> None:
    import gzip

    text = "".join(f"http://a/{number * 7919 % 10007}\n" for number in range(200))
    data = text.encode("utf-16") if how == "utf-16" else gzip.compress(text.encode())
    (tmp_path / "urls.txt").write_bytes(data)
    check_same(Urls(str(tmp_path / "urls.txt")), tmp_path, False)


def parquet_table(rows: int, repeat: int = 7) -> pa.Table:
    return pa.table(
        {
            "url": [f"http://a/{number % repeat}" for number in range(rows)],
            "words": [f"é {number}" for number in range(rows)],
            "nothing": pa.nulls(rows),
        }
    )


def test_row_groups_are_units(tmp_path: Path) -> None:
    pq.write_table(parquet_table(60), tmp_path / "a.parquet", row_group_size=5)
    check_same(Table(str(tmp_path / "a.parquet"), columns=("words", "nothing")), tmp_path)


def test_several_files_and_small_ones_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for number in range(6):
        rows = 80 if number == 2 else 3
        table = parquet_table(rows).slice(number % 2)
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=20)
    monkeypatch.setattr(pieces, "UNIT_BYTES", (folder / "0.parquet").stat().st_size * 5 // 2)
    source = Table(str(folder))
    files = [
        [Path(piece.uri).name for piece in pieces.Unit.parse(unit).pieces]
        for unit in source.units()
    ]
    assert files[0] == ["0.parquet", "1.parquet"] and ["2.parquet"] not in files[:1]
    check_same(source, tmp_path)


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(parquet_table(60, 60), path, row_group_size=10, compression="none")
    group = pq.read_metadata(path).row_group(3).column(0)
    data = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(bytes(data))
    found = check_same(Table(str(path)), tmp_path)
    assert len(found.rows) == 50 and "rows 30 to 39" in str(found.examples)


def test_pictures_inside_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        pictures = [{"bytes": b"%d" % number, "path": None} for number in range(30)]
        pictures[3] = {"bytes": b"x", "path": "same.jpg"}
        pictures[29] = {"bytes": b"x", "path": "same.jpg"}
        table = pa.table({"image": pictures, "text": ["é"] * 30})
        pq.write_table(table, folder / f"{split}-00000.parquet", row_group_size=4)
    source = HuggingFace(str(folder))
    found = check_same(source, tmp_path)
    keys = [row["key"] for row in found.rows]
    assert keys[:4] == [*(f"train-00000.parquet/{number}" for number in range(3)), "same.jpg"]
    assert keys[-1] == "same.jpg#4" and all(row["embedded"] for row in found.rows)
    some = pa.Table.from_pylist(found.rows[25:35])
    assert source.embedded_pictures(some)[:4] == [b"25", b"26", b"27", b"28"]


def test_imagefolder_metadata(tmp_path: Path) -> None:
    rows = [{"file_name": f"{number % 20}.jpg", "text": f"é {number}"} for number in range(40)]
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    (folder / "metadata.jsonl").write_text(jsonl([*rows, "no json", {"file_name": "../x.jpg"}]))
    found = check_same(HuggingFace(str(tmp_path / "folder")), tmp_path)
    assert found.rows[0]["split"] == "train" and "below the file" in found.rows[-1]["error"]
    assert found.examples["malformed line"][0].startswith("metadata.jsonl line 41:")


# Keys of the user's own.


def with_keys(path: Path, keys: list[str]) -> Source:
    path.write_text("id,url\n" + "".join(f"{key},http://a/1\n" for key in keys))
    return Table(str(path), key_column="id")


def test_keys_of_a_column(tmp_path: Path) -> None:
    keys = [f"k#{number}" for number in range(40)]
    found = check_same(with_keys(tmp_path / "a.csv", keys), tmp_path)
    assert [row["key"] for row in found.rows] == keys


@pytest.mark.parametrize("second", [1, 39], ids=["in one unit", "in two units"])
def test_a_key_that_occurs_twice_is_refused_with_both_places(tmp_path: Path, second: int) -> None:
    keys = [f"key{number}" for number in range(40)]
    keys[second] = "key0"
    source = with_keys(tmp_path / "a.csv", keys)
    out = RunFolder(str(tmp_path / "out"))
    plan = new_plan(source, out)
    for _ in range(2):  # also when it is run again
        with pytest.raises(UserError, match=rf"'key0' .*csv line 2 and .*csv line {second + 2};"):
            planned(source, out, plan)


def test_an_empty_key_is_refused_with_its_place(tmp_path: Path) -> None:
    source = with_keys(tmp_path / "a.csv", [*(f"key{number}" for number in range(39)), ""])
    out = RunFolder(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"a\.csv line 41 has an empty id"):
        planned(source, out, new_plan(source, out))


# Append, sample, changes.


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 6), min_size=10, max_size=25),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_only_new_rows_are_appended(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[int],
    more: list[int],
    was_whole: bool,
    chance: Any,
) -> None:
    """As a listing of the whole does it; also if the list has another order and other cuts."""
    folder = tmp_path_factory.mktemp("append")
    path = folder / "urls.txt"
    plans = {}
    for whole in (True, False):
        path.write_text("".join(f"http://a/{name}\n" for name in first))
        out = RunFolder(str(folder / f"{whole}"))
        source = Urls(str(path))
        plan = new_plan(source, out, whole=whole or was_whole)
        keys = [row["key"] for row in planned(source, out, plan).rows]
        again = [*first, *more]
        chance.seed(5)
        chance.shuffle(again)
        path.write_text("".join(f"http://a/{name}\n" for name in again))
        appended = new_plan(source, out, 2, "append", whole)
        new = [row["key"] for row in planned(source, out, appended, (plan,)).rows]
        assert not set(keys) & set(new) and len(set(new)) == len(new)
        assert len(keys) + len(new) == len(first) + len(more)
        plans[whole] = (keys, new)
    assert plans[True] == plans[False]


def test_keys_of_a_column_are_appended(tmp_path: Path) -> None:
    keys = [f"key{number}" for number in range(40)]
    out = RunFolder(str(tmp_path / "out"))
    source = with_keys(tmp_path / "a.csv", keys)
    plan = new_plan(source, out)
    planned(source, out, plan)
    source = with_keys(tmp_path / "a.csv", ["new", *keys, "newer"])
    found = planned(source, out, new_plan(source, out, 2, "append"), (plan,))
    assert [row["key"] for row in found.rows] == ["new", "newer"]


def test_a_sample_is_that_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_text("".join(f"http://a/{number % 80}\n" for number in range(200)))
    source, options = Urls(str(path)), BulkOptions(sample=0.3)
    found = []
    for whole in (True, False):
        out = RunFolder(str(tmp_path / f"{whole}"))
        plan = new_plan(source, out, whole=whole)
        found.append([row["key"] for row in planned(source, out, plan, options=options).rows])
    assert found[0] == found[1] and 20 < len(found[0]) < 120


def test_a_file_that_changes_while_it_is_listed(tmp_path: Path) -> None:
    """What is not listed yet is left out and said; the next run appends it."""
    path = tmp_path / "urls.txt"
    names = [f"http://a/{number}\n" for number in range(60)]
    path.write_text("".join(names))
    source, out = Urls(str(path)), RunFolder(str(tmp_path / "out"))
    plan = new_plan(source, out)
    lists = lister(source, BulkOptions(), out, plan, ())
    rounds = lists.rounds(range(len(plan.units)), 1)
    [list_units, *_] = next(rounds)
    list(itertools.islice(list_units(), 1))  # killed after the first shard
    path.write_text("".join(["http://b/\n", *names]))
    found = planned(source, out, plan)
    assert "part of a file" in found.left_out or "parts of files" in " ".join(found.left_out)
    new = planned(source, out, new_plan(source, out, 2, "append"), (plan,))
    keys = [row["key"] for row in [*found.rows, *new.rows]]
    assert sorted(keys) == sorted(line.strip() for line in ["http://b/", *names])


# Kills.


class Killed(BaseException):
    """Ends the listing as kill -9 does: nothing is done afterwards."""


@pytest.mark.parametrize(
    "append", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["first", "append"]
)
def test_planning_that_is_killed_at_any_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, append: bool
) -> None:
    """The same plan comes out, and units whose names are there are not listed again."""
    monkeypatch.setattr(pieces, "UNIT_BYTES", 80)
    path = tmp_path / "urls.txt"
    source, out = Urls(str(path)), RunFolder(str(tmp_path / "begun"))
    names = [f"http://a/{number % 8}\n" for number in range(24)]
    path.write_text("".join(names))
    earlier: tuple[Plan, ...] = ()
    if append:
        earlier = (new_plan(source, out),)
        planned(source, out, *earlier)
        path.write_text("".join([*names[5:], *names[:14], "http://new/\n"]))
    kind: Kind = "append" if append else "first"
    plan = new_plan(source, out, 2, kind)
    begun = Path(out.path())
    whole = RunFolder(str(shutil.copytree(begun, tmp_path / "whole")))
    wanted = planned(source, whole, plan, earlier)

    listed_units: list[str] = []
    tables_of_unit = Urls.tables_of_unit

    def noted(self: Urls, unit: str, notes: Notes) -> Any:
        listed_units.append(unit)
        return tables_of_unit(self, unit, notes)

    monkeypatch.setattr(Urls, "tables_of_unit", noted)

    def kill_at(patch: pytest.MonkeyPatch, last_step: int, is_done: bool) -> None:
        """Kill the planner before or after a step is done."""
        steps = itertools.count(1)

        def stopping(method: Callable[..., Any]) -> Callable[..., Any]:
            def step(self: RunFolder, name: str, content: Any) -> Any:
                number = next(steps)
                if number == last_step and not is_done:
                    raise Killed
                answer = method(self, name, content)
                if number == last_step:
                    raise Killed
                return answer

            return step

        for name in ("create", "stage"):
            patch.setattr(RunFolder, name, stopping(getattr(RunFolder, name)))

    for at in itertools.count(1):
        out = RunFolder(str(shutil.copytree(begun, tmp_path / f"{at}")))
        is_killed = False
        with monkeypatch.context() as patch:
            kill_at(patch, at, is_done=at % 3 == 0)
            try:
                planned(source, out, plan, earlier, tasks=1)
            except Killed:
                is_killed = True
        files = {path.name for path in Path(out.path(f"{plan.folder}/_listed")).glob("*.names")}
        listed = {unit for number, unit in enumerate(plan.units) if f"{number:05}.names" in files}
        listed_units.clear()
        assert planned(source, out, plan, earlier) == wanted
        assert not listed & set(listed_units), "a unit was listed again"
        shutil.rmtree(out.path())
        if not is_killed:
            break
    assert at > 12 and len(plan.units) > 2


def test_two_planners_at_the_same_time_make_one_plan(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_text("".join(f"http://a/{number % 11}\n" for number in range(50)))
    source, out = Urls(str(path)), RunFolder(str(tmp_path / "out"))
    plan = new_plan(source, out)
    lists = lister(source, BulkOptions(), out, plan, ())
    assert isinstance(lists, NamedUnitLister)
    shards: list[set[Shard]] = [set(), set()]
    for rounds in zip(*(lists.rounds(range(len(plan.units)), 2) for _ in range(2)), strict=True):
        running = [[part() for part in parts] for parts in rounds]
        for mine, theirs in zip(*running, strict=True):
            for one, other in itertools.zip_longest(mine, theirs):
                shards[0] |= {one} - {None}
                shards[1] |= {other} - {None}
    assert shards[0] == shards[1]
    found = read_plan_rows(out, plan, sorted(shards[0]))
    whole = [key for table in source.tables() for key in table["key"].to_pylist()]
    assert [row["key"] for row in found.rows] == whole
