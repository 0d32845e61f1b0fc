"""--only in runs: which rows of a source are captioned, which are made again, and what a second
run with another expression does. What an expression chooses is in test_expressions.py."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from small_captioner import photos
from toy_captioner import SizeOptions

from raycap.bulk.captions import captions_job
from raycap.bulk.exports import write_exports
from raycap.bulk.job import TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.selection import chosen_rows
from raycap.bulk.table import OutputTable
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.evaluation import Evaluate
from raycap.evaluation.alignment import align
from raycap.evaluation.captions import read_captions
from raycap.evaluation.references import References
from raycap.fetch import Fetch
from raycap.fetch.trust import ANYTHING
from raycap.images import Reading
from raycap.sinks import SINKS, SinkSettings
from raycap.sources import Folder, Notes, Source, Table
from raycap.storage import output_folder

pytestmark = pytest.mark.usefixtures("no_ray")


def job_of(source: Source, out: Path, **options: Any) -> TableJob:
    chosen = CaptionOptions(out=str(out), batch=4, **options)
    return captions_job(SizeOptions(), source, chosen, Fetch(), Reading(), Cluster())


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    table = OutputTable(output_folder(str(out)) / "captions")
    files = [pq.read_table(table.folder.path(file.path)) for file in table.files()]
    rows = pa.concat_tables(files).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {Path(row["key"]).name: row for row in rows}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return photos(tmp_path / "pictures", range(6))


def write_table(path: Path, pictures: Path) -> Table:
    """Six pictures with a width, a title and tags of their own; some values are missing."""
    columns = {
        "file_name": [f"pictures/{number:05}.png" for number in range(6)],
        "width": [100, 200, 300, 400, 500, None],
        "title": ["a dog", None, "", "two, dogs", 'a "cat"', "7"],
        "tags": [["x"], ["x", "y"], [], None, ["y"], ["z"]],
    }
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    else:
        text = table.drop_columns(["tags"])
        pyarrow.csv.write_csv(text, path)
    return Table(str(path))


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ("width > 250", [2, 3, 4]),
        ("not (width > 250)", [0, 1, 5]),
        ('title contains "dog" and width <= 400', [0, 3]),
        ("title is empty or key contains 00005", [1, 2, 5]),
        ("title == 7", [5]),
        ("tags has x", [0, 1]),
        ("tags is empty", [2, 3]),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_rows_of_a_table_are_chosen_by_its_columns(
    only: str, chosen: list[int], ending: str, pictures: Path, tmp_path: Path
) -> None:
    if ending != "parquet" and "tags is" in only:
        pytest.skip("a format without types has lists only where `has` asks for one")
    if ending == "csv" and "tags" in only:
        pytest.skip("CSV has no lists")
    source = write_table(tmp_path / f"table.{ending}", pictures)
    options = CaptionOptions(only=only)
    tables = list(chosen_rows(source, options, Notes()))
    keys = [Path(key).stem for table in tables for key in table["key"].to_pylist()]
    assert keys == [f"{number:05}" for number in chosen]
    plain = next(iter(source.tables()))
    assert tables[0].schema == plain.schema  # what was read for it is gone


def test_a_run_makes_the_chosen_rows_and_another_expression_adds_its_own(
    pictures: Path, tmp_path: Path
) -> None:
    source, out = write_table(tmp_path / "table.parquet", pictures), tmp_path / "out"
    assert run_job(job_of(source, out, only="width > 250"), {}) == 0
    assert sorted(rows_of(out)) == ["00002.png", "00003.png", "00004.png"]
    facts = json.loads((out / "facts.json").read_text())
    assert facts["options"]["only"] == "width > 250"

    assert run_job(job_of(source, out, only="width > 250"), {}) == 0  # nothing to do
    assert json.loads((out / "facts.json").read_text()) == facts
    assert run_job(job_of(source, out, only="width < 250"), {}) == 0
    assert len(rows_of(out)) == 5
    assert run_job(job_of(source, out), {}) == 0
    assert len(rows_of(out)) == 6
    assert run_job(job_of(source, out, only="width == 300", overwrite=True), {}) == 0
    assert sorted(rows_of(out)) == ["00002.png"]
    with pytest.raises(UserError, match=r"no row of .* fits --only width > 9000"):
        run_job(job_of(source, tmp_path / "none", only="width > 9000"), {})


def test_keys_of_repeated_names_do_not_depend_on_the_expression(
    pictures: Path, tmp_path: Path
) -> None:
    """The second row of a URL stays URL#2 if the first one is left out, in any number of units."""
    names = [f"pictures/{number % 3:05}.png" for number in range(6)]
    pq.write_table(pa.table({"file_name": names, "n": range(6)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"file_name": names, "n": range(6, 12)}), tmp_path / "b.parquet")
    source = Table(f"{tmp_path}/*.parquet")
    assert len(source.units()) > 1 or source.units() == ("",)
    assert run_job(job_of(source, tmp_path / "whole"), {}) == 0
    assert run_job(job_of(source, tmp_path / "out", only="n in (4, 7)"), {}) == 0
    whole, some = rows_of(tmp_path / "whole"), rows_of(tmp_path / "out")
    assert sorted(some) == ["00001.png#2", "00001.png#3"]
    assert run_job(job_of(source, tmp_path / "out", only="n >= 0"), {}) == 0
    assert rows_of(tmp_path / "out").keys() == whole.keys()


def test_sources_without_columns_are_narrowed_by_key_and_split(
    pictures: Path, tmp_path: Path
) -> None:
    source, out = Folder(str(pictures)), tmp_path / "out"
    only = "key in (00001.png, 00002.png) or key contains 5"
    assert run_job(job_of(source, out, only=only, limit=2), {}) == 0
    assert sorted(rows_of(out)) == ["00001.png", "00002.png"]
    with pytest.raises(
        UserError, match=r"there is no column 'width'; .*--only is about the source"
    ):
        run_job(job_of(source, out, only="width > 5"), {})


def test_retry_makes_chosen_rows_again_and_adds_none(pictures: Path, tmp_path: Path) -> None:
    broken = {number: (pictures / f"{number:05}.png").read_bytes() for number in (1, 3)}
    for number in broken:
        (pictures / f"{number:05}.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert run_job(job_of(Folder(str(pictures)), out), {}) == 1
    for number, data in broken.items():
        (pictures / f"{number:05}.png").write_bytes(data)
    photos(pictures, range(6, 8))  # came later
    options: dict[str, Any] = {"retry": "failed", "only": "key contains 00003"}
    assert run_job(job_of(Folder(str(pictures)), out, **options), {}) == 1
    rows = rows_of(out)
    assert len(rows) == 6
    assert rows["00003.png"]["status"] == "success"
    assert rows["00001.png"]["status"] == "failed_to_decode"
    # It never retries by itself, and refuses columns that the table does not have.
    assert run_job(job_of(Folder(str(pictures)), out, only="key contains 00001"), {}) == 1
    assert rows_of(out)["00001.png"]["status"] == "failed_to_decode"
    with pytest.raises(UserError, match="no column 'flag'"):
        run_job(job_of(Folder(str(pictures)), out, retry="failed", only="flag has a"), {})
    with pytest.raises(UserError, match="there are none yet"):
        run_job(job_of(Folder(str(pictures)), tmp_path / "new", **options), {})


def test_an_interrupted_run_is_completed_with_its_own_expression(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_table(tmp_path / "table.parquet", pictures), tmp_path / "out"

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("raycap.bulk.run.replace_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_job(job_of(source, out, only="width > 250"), {})
    with pytest.raises(UserError, match=r"it had .*--only 'width > 250'"):
        run_job(job_of(source, out, only="width > 300"), {})
    assert run_job(job_of(source, out, only=" width  >250"), {}) == 0  # the same in other words
    assert len(rows_of(out)) == 3

    with monkeypatch.context() as patched:
        patched.setattr("raycap.bulk.run.replace_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_job(job_of(source, out, only="width < 250"), {})
    assert run_job(job_of(source, out), {}) == 0  # the whole source holds these rows too
    assert len(rows_of(out)) == 6


def export(out: Path, also: tuple[str, ...], only: str = "") -> None:
    folder = output_folder(str(out))
    settings = SinkSettings(folder, "skip", False, Fetch(), ANYTHING, only=only)
    write_exports(folder, Machines(Cluster()).run, "captions", also, settings)


def exported_keys(out: Path) -> dict[str, list[str]]:
    lines = [json.loads(line) for file in (out / "jsonl").glob("*.jsonl") for line in file.open()]
    metadata = [json.loads(line) for line in (out / "metadata.jsonl").open()]
    with tarfile.open(next((out / "webdataset").glob("*.tar"))) as tar:
        rows = [tar.extractfile(each) for each in tar if each.name.endswith(".json")]
        samples = [json.load(row) for row in rows if row is not None]
    return {
        "jsonl": sorted(line["key"] for line in lines),
        "imagefolder": sorted(line["file_name"] for line in metadata),
        "webdataset": sorted(sample["key"] for sample in samples),
        "txt": sorted(path.name.removesuffix(".txt") for path in (out / "txt").glob("*.txt")),
    }


def test_other_forms_of_the_chosen_rows(pictures: Path, tmp_path: Path) -> None:
    """A narrowed form stays narrowed when the table grows, until another one is asked for."""
    source, out = Folder(str(pictures)), tmp_path / "out"
    (pictures / "00000.png").write_bytes(b"no picture")
    assert run_job(job_of(source, out), {}) == 1
    also = tuple(SINKS)
    export(out, also, "width > 61 or key contains 00000")
    wide = [f"{number:05}.png" for number in (2, 3, 4, 5)]
    expected = dict.fromkeys(also, wide)
    assert exported_keys(out) == expected | {"jsonl": ["00000.png", *wide]}

    photos(pictures, range(6, 11))  # of which three are wide
    assert run_job(job_of(source, out), {}) == 1
    export(out, ())
    wide += ["00006.png", "00009.png", "00010.png"]
    grown = exported_keys(out)
    assert grown["txt"] == grown["imagefolder"] == wide
    export(out, also, "key == 00001.png")
    assert exported_keys(out)["txt"] == exported_keys(out)["imagefolder"] == ["00001.png"]
    export(out, ("jsonl", "txt"))
    assert len(exported_keys(out)["jsonl"]) == 11
    assert len(exported_keys(out)["txt"]) == 10


def test_tables_are_evaluated_and_reported_by_chosen_rows(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(4)]
    captions = ["a dog", "a cat", "two dogs", ""]
    table = pa.table(
        {
            "key": keys,
            "caption": captions,
            "status": ["success"] * 3 + ["failed_to_fetch"],
            "width": [100, 200, 300, 0],
            "flags": [["cut_off"], [], ["cut_off", "echo"], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    rows = [{"image_id": key, "caption": text} for key, text in zip(keys, captions, strict=True)]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def chosen(name: str, only: str) -> list[str]:
        found = read_captions(str(tmp_path / name), "t", only=only)
        assert found.is_narrowed == bool(only)
        return list(found.rows["key"].to_pylist())

    assert chosen("a.parquet", "") == keys
    assert chosen("a.parquet", "flags has cut_off and width > 100") == ["2.jpg"]
    assert chosen("a.parquet", "status != success or width < 150") == ["0.jpg", "3.jpg"]
    for name in ("b.json", "c.jsonl"):
        assert chosen(name, "caption contains dog") == ["0.jpg", "2.jpg"]
        assert chosen(name, "not (caption is empty)") == keys[:3]
    with pytest.raises(UserError, match="there is no column 'flag'; did you mean 'flags'"):
        chosen("a.parquet", "flag has cut_off")
    with pytest.raises(UserError, match=r"no row of .* fits --only width > 999"):
        chosen("a.parquet", "width > 999")

    references = {key: [f"a picture of {number}"] for number, key in enumerate(keys)}
    known = References(
        references, dict.fromkeys(keys, ""), dict.fromkeys(keys, ""), {}, frozenset()
    )
    tables = [
        read_captions(str(tmp_path / name), name, only="caption contains dog")
        for name in ("a.parquet", "b.json")
    ]
    alignment = align(tables, known, Evaluate())
    assert alignment.keys == ("0.jpg", "2.jpg")
    assert alignment.complete  # what --only leaves out is not missing
