"""`raycap caption`: a row for every picture, once, the same as the captioner writes for it alone.

The last tests run on Ray, the others in this process.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hostile import hostile, write
from PIL import Image
from server import HTML, serving
from sessions import stop_ray
from small_captioner import photos, save_captioner

from raycap import Captioner
from raycap.bulk.table import OutputTable
from raycap.cli import main
from raycap.schema import CAPTIONS
from raycap.storage import Lease, RunFolder

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


@pytest.fixture(scope="session")
def made_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a captioner and the table that this process makes of them, without Ray."""
    stop_ray()
    root, errors = tmp_path_factory.mktemp("here"), io.StringIO()
    save_captioner(root / "model")
    with contextlib.redirect_stderr(errors):
        assert caption(photos(root / "photos", range(30)), root / "out", root / "model") == 0
    assert "the model runs in this process" in errors.getvalue()
    return root


def caption(path: object, out: Path, model: Path, *flags: str) -> int:
    small = ["--model", str(model), "--batch", "8", "--actors", "1"]
    return main(["caption", str(path), "--out", str(out), *small, *flags])


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "captions")
    assert table.schema.names[: len(CAPTIONS.names)] == CAPTIONS.names
    assert table.select(CAPTIONS.names).schema.remove_metadata() == CAPTIONS
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys), "no key twice"
    assert sorted(keys) == delta_keys(out), "plain readers see what readers of Delta tables see"
    assert [path.name for path in sorted(out.glob("_*"))] == ["_lease.lock", "_plan"]
    return {row["key"]: row for row in table.to_pylist()}


def delta_keys(out: Path) -> list[str]:
    """The keys of a table, whether its run is complete or was interrupted."""
    found: list[str] = (
        DeltaTable(str(out / "captions")).to_pyarrow_table(columns=["key"])["key"].to_pylist()
    )
    return sorted(found)


def parts(out: Path) -> list[Path]:
    return sorted((out / "captions").glob("*.parquet"))


def captions(out: Path) -> dict[str, str]:
    return {key: row["caption"] for key, row in rows(out).items()}


def json_captions(out: Path) -> list[tuple[str, str]]:
    """Keys and captions of --also jsonl."""
    lines = [
        json.loads(line)
        for path in (out / "jsonl").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sorted((line["key"], line["caption"]) for line in lines)


def facts(out: Path) -> dict[str, Any]:
    return json.loads((out / "facts.json").read_text())


def test_every_picture_has_the_caption_that_it_has_alone(made_here: Path) -> None:
    folder, out = made_here / "photos", made_here / "out"
    found = rows(out)
    assert sorted(found) == sorted(path.name for path in folder.iterdir())
    assert len({row["caption"] for row in found.values()}) > 10, (
        "captions differ, else this shows nothing"
    )
    captioner = Captioner.load(made_here / "model")
    for path in list(folder.iterdir())[::7]:
        alone = captioner.caption([path])[0]
        row = found[path.name]
        assert (row["caption"], row["width"], row["height"]) == (
            alone.caption,
            alone.width,
            alone.height,
        )
        assert row["score"] == pytest.approx(alone.score, abs=1e-4)
        assert row["uri"] == str(path) and len(row["sha256"]) == 64
    [part] = (out / "captions").glob("*.parquet")
    metadata = pq.read_schema(part).metadata
    assert metadata[b"captioner"].decode() == facts(out)["identity"]["captioner"]


def test_again_does_nothing_and_new_pictures_are_added(tmp_path: Path, model: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(9)), tmp_path / "out"
    assert caption(folder, out, model) == 0
    before, written = rows(out), (out / "facts.json").stat().st_mtime_ns
    assert caption(folder, out, model) == 0
    assert (out / "facts.json").stat().st_mtime_ns == written, "a finished run is left as it is"
    photos(folder, range(9, 12))
    assert caption(folder, out, model) == 0
    after = rows(out)
    assert len(after) == 12 and facts(out)["made_in_this_run"] == 3
    assert {key: after[key] for key in before} == before


@pytest.mark.thorough
def test_the_hostile_corpus_has_a_row_and_a_reason_for_each(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "corpus", mutants=60)
    here = ["--cluster.local-rows", "1000"]
    assert caption(tmp_path / "corpus", tmp_path / "out", model, "--source.glob", "*", *here) == 1
    found = rows(tmp_path / "out")
    shown = capsys.readouterr().out
    assert (
        len(found) == files
        and "--retry failed" in shown
        and "failed_to_decode: not a picture" in shown
    )
    for row in found.values():
        assert (row["status"] == "success") == bool(row["caption"]) == (not row["error_message"])
        assert (row["score"] is None) == (row["status"] != "success")
    for file in hostile():
        if file.data and not file.options:
            assert found[file.name]["error_message"].startswith(file.error), file.name
            assert bool(file.error) == (found[file.name]["status"] != "success"), file.name


def test_urls_that_misbehave_and_then_behave(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = (photos(tmp_path / "photos", range(1)) / "00000.png").read_bytes()
    with serving({"/a.png": photo}) as server:
        asked = ["/a.png", "/status?code=404", "/html", "/closes", "/b.png", "/empty"]
        listed = tmp_path / "urls.txt"
        listed.write_text("\n".join(server.url(path) for path in asked) + "\n")
        quick = ["--fetch.allow-private", "--fetch.retries", "1", "--fetch.backoff", "0.01"]
        assert caption(listed, tmp_path / "out", model, *quick) == 1
        first = rows(tmp_path / "out")
        assert sorted(row["status"] for row in first.values()).count("success") == 1
        assert len(first) == 6 and first[server.url("/b.png")]["status"] == "failed_to_fetch"
        assert (
            first[server.url("/html")]["status"] == "failed_to_decode"
            or "picture" in first[server.url("/html")]["error_message"]
        )
        [host] = facts(tmp_path / "out")["hosts_in_this_run"]
        assert (host["host"], host["rows"], host["failed"]) == ("127.0.0.1", 6, 5)
        assert (
            host["bytes"] == len(photo) + len(HTML) and host["reasons"]["HTTP 404 Not Found"] == 2
        )
        assert "127.0.0.1: 6 rows, 5 failed" in capsys.readouterr().out
        server.pictures["/b.png"] = photo
        assert caption(listed, tmp_path / "out", model, *quick) == 1
        assert rows(tmp_path / "out") == first, "failed rows are left until --retry"
        assert caption(listed, tmp_path / "out", model, *quick, "--retry", "failed") == 1
    second = rows(tmp_path / "out")
    changed = [key for key in first if first[key] != second[key]]
    assert changed == [server.url("/b.png")] and second[changed[0]]["caption"]
    assert facts(tmp_path / "out")["failed"] == 4 and facts(tmp_path / "out")["rows"] == 6
    [host] = facts(tmp_path / "out")["hosts_in_this_run"]
    assert (host["rows"], host["failed"]) == (5, 4)


def test_retry_of_one_status_leaves_the_others(tmp_path: Path, model: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(20)), tmp_path / "out"
    whole = (folder / "00003.png").read_bytes()
    for number in (3, 11):
        (folder / f"{number:05d}.png").write_bytes(b"not a picture")
    assert caption(folder, out, model, "--part-rows", "8") == 1
    before = [pq.read_table(part)["key"].to_pylist() for part in parts(out)]
    untouched = parts(out)[2].read_bytes()
    (folder / "00003.png").write_bytes(whole)
    assert caption(folder, out, model, "--part-rows", "8", "--retry", "failed_to_fetch") == 1
    assert rows(out)["00003.png"]["status"] == "failed_to_decode"
    assert caption(folder, out, model, "--part-rows", "8", "--retry", "failed_to_decode") == 1
    assert rows(out)["00003.png"]["status"] == "success"
    assert rows(out)["00011.png"]["status"] == "failed_to_decode"
    after = [pq.read_table(part)["key"].to_pylist() for part in parts(out)]
    assert sorted(after) == sorted(before), "rows are replaced where they stand"
    assert untouched in [part.read_bytes() for part in parts(out)]


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_retry_that_was_cut_off_is_finished_by_the_next_run(
    is_committed: bool, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends right before or right after the commit that replaces the rows."""
    folder, out = photos(tmp_path / "photos", range(24)), tmp_path / "out"
    broken = [folder / f"{number:05d}.png" for number in (2, 9, 20)]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"broken")
    assert caption(folder, out, model, "--part-rows", "8") == 1
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    replace = OutputTable.replace

    def cut_off(self: OutputTable, *how: Any) -> None:
        if is_committed:
            replace(self, *how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputTable, "replace", cut_off)
        assert caption(folder, out, model, "--retry", "failed") == 130
    keys = delta_keys(out)
    assert len(keys) == len(set(keys)) == 24, "no key twice and none lost, right after the end"
    assert caption(folder, out, model) == 0, "the retried rows are put in place by any next run"
    assert {row["status"] for row in rows(out).values()} == {"success"}


def test_another_captioner_or_source_is_refused_until_overwrite(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, other = (
        photos(tmp_path / "photos", range(6)),
        tmp_path / "out",
        tmp_path / "other",
    )
    save_captioner(other, seed=1)
    assert caption(folder, out, model) == 0
    before = rows(out)
    assert caption(folder, out, other) == 2
    assert "captioner was" in capsys.readouterr().err
    assert caption(folder, out, model, "--beam", "2") == 2
    assert "search.width was 3, now 2" in capsys.readouterr().err
    assert rows(out) == before
    assert caption(folder, out, other, "--overwrite") == 0
    after = rows(out)
    assert after.keys() == before.keys() and after != before
    assert caption(folder, out, other) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "_lease.lock",
        "_plan",
        "captions",
        "facts.json",
        "gallery.html",
        "run.json",
    ]


def test_the_second_of_two_runs_into_one_folder_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(2)), tmp_path / "out"
    with Lease(RunFolder(str(out))):
        assert caption(folder, out, model) == 2
    assert "another run writes to" in capsys.readouterr().err
    assert caption(folder, out, model) == 0


def test_the_options_of_a_caption(tmp_path: Path, model: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    (folder / "broken.png").write_bytes(b"broken")
    assert (
        caption(
            folder,
            out,
            model,
            "--beam",
            "5",
            "--num-captions",
            "3",
            "--attention",
            "--min-score",
            "-1.5",
        )
        == 1
    )
    found = rows(out)
    assert {len(row["alternatives"]) for key, row in found.items() if key != "broken.png"} == {2}
    for row in found.values():
        found_captions = [row["caption"], *(one["caption"] for one in row["alternatives"])]
        assert len(set(found_captions)) == len(found_captions) and all(
            one["score"] < 0 for one in row["alternatives"]
        )
        is_low = row["score"] is not None and row["score"] < -1.5
        assert ("low_score" in row["flags"]) == is_low
        assert len(row["attention"]) == len(row["words"]) and all(
            len(look) == 4 for look in row["attention"]
        )
        assert all(sum(look) == pytest.approx(1, abs=0.01) for look in row["attention"])
    assert len({"low_score" in row["flags"] for row in found.values()}) == 2


def test_columns_of_the_users_own_table_travel_along(tmp_path: Path, model: Path) -> None:
    photos(tmp_path / "photos", range(3))
    table = tmp_path / "pairs.csv"
    table.write_text(
        "path,shop\nphotos/00000.png,north\nphotos/00001.png,south\nphotos/gone.png,west\n"
    )
    assert caption(table, tmp_path / "out", model, "--columns", "shop") == 1
    assert {row["shop"]: row["status"] for row in rows(tmp_path / "out").values()} == {
        "north": "success",
        "south": "success",
        "west": "failed_to_fetch",
    }


def test_other_forms_are_made_of_the_whole_table_and_made_again_after_a_retry(
    tmp_path: Path, model: Path
) -> None:
    folder, out = photos(tmp_path / "photos", range(12)), tmp_path / "out"
    whole = (folder / "00003.png").read_bytes()
    (folder / "00003.png").write_bytes(b"broken")
    flags = ["--also", "txt", "jsonl", "imagefolder", "webdataset", "--part-rows", "8"]
    assert caption(folder, out, model, *flags) == 1
    assert json_captions(out) == sorted(captions(out).items())
    assert not (out / "txt" / "00003.png.txt").exists()
    (folder / "00003.png").write_bytes(whole)
    assert caption(folder, out, model, *flags, "--retry", "failed") == 0
    found = rows(out)
    assert (
        (out / "txt" / "00003.png.txt").read_text().strip() == found["00003.png"]["caption"] != ""
    )
    listed = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {line["file_name"]: line["text"] for line in listed} == {
        key: row["caption"] for key, row in found.items()
    }
    assert json_captions(out) == sorted(captions(out).items())


def test_copies_are_captioned_once_and_all_have_rows(tmp_path: Path, model: Path) -> None:
    folder = photos(tmp_path / "photos", range(4))
    for number in range(40):
        (folder / f"copy{number}.png").write_bytes((folder / f"{number % 4:05d}.png").read_bytes())
    assert caption(folder, tmp_path / "with", model, "--dedup") == 0
    assert caption(folder, tmp_path / "without", model) == 0
    assert captions(tmp_path / "with") == captions(tmp_path / "without")


def test_sample_takes_the_same_rows_each_time(tmp_path: Path, model: Path) -> None:
    folder = photos(tmp_path / "photos", range(60))
    assert caption(folder, tmp_path / "out", model, "--sample", "0.3") == 0
    drawn = set(rows(tmp_path / "out"))
    assert 5 < len(drawn) < 35
    assert caption(folder, tmp_path / "out", model, "--sample", "0.3") == 0
    assert set(rows(tmp_path / "out")) == drawn
    assert caption(folder, tmp_path / "out", model, "--sample", "0.6") == 0
    assert drawn < set(rows(tmp_path / "out"))


def test_a_dry_run_counts_and_leaves_nothing(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(7)), tmp_path / "out"
    assert caption(folder, out, model, "--dry-run") == 0
    assert "7 rows would be made" in capsys.readouterr().out and not out.exists()
    assert caption(folder, out, model, "--limit", "3") == 0
    capsys.readouterr()
    assert caption(folder, out, model, "--dry-run") == 0
    assert "4 rows would be made" in capsys.readouterr().out


def test_a_source_that_mostly_fails_ends_the_run_early(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(10)), tmp_path / "out"
    for number in range(10, 60):
        (folder / f"{number:05d}.png").write_bytes(b"rotten")
    assert caption(folder, out, model, "--max-failed", "10%", "--part-rows", "8") == 2
    shown = capsys.readouterr().err
    assert "--max-failed 10%" in shown and "not a picture" in shown
    assert delta_keys(out) and not (out / "facts.json").exists()
    assert caption(folder, out, model, "--max-failed", "50") == 1
    assert len(rows(out)) == 60


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", ""], "which captioner? Give --model DIR"),
        (["--model", "/no/such/model"], "/no/such/model is no captioner folder"),
        (["--max-failed", "some"], "--max-failed is 'some'"),
        (["--sample", "0"], "--sample is 0"),
        (["--columns", "shop"], "--columns carries columns of a table"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_bad_options_are_refused(
    flags: list[str], words: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "photos", range(1))
    try:
        code = caption(folder, tmp_path / "out", model, *flags)
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "captions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_one_or_two_processors_are_enough(cpus: int, tmp_path: Path, model: Path) -> None:
    """In a process of its own with a Ray of its own; the deadline only ends what hangs."""
    folder = photos(tmp_path / "photos", range(20))
    (folder / "x.png").write_bytes(b"no picture")
    command = [
        sys.executable,
        "jobs/caption.py",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
    ]
    answer = subprocess.run(
        [*command, "--batch", "8", "--cluster.cpus", str(cpus), "--cluster.local-rows", "0"],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=Path(__file__).parent.parent,
    )
    assert answer.returncode == 1, answer.stderr
    assert len(rows(tmp_path / "out")) == 21
    assert "model actor" in answer.stderr


def test_a_model_that_cannot_start_ends_the_run_in_words(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_cannot_start(tmp_path, model, capsys)


def test_an_unreadable_picture_size_is_zero(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (10, 20)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    assert caption(folder, tmp_path / "out", model) == 1
    found = rows(tmp_path / "out")
    assert [(row["width"], row["height"]) for row in (found["a.png"], found["b.png"])] == [
        (10, 20),
        (0, 0),
    ]


@pytest.mark.usefixtures("one_ray")
def test_the_same_table_in_this_process_and_in_actors_on_ray(
    made_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--actors", "2", "--part-rows", "8"]
    assert caption(made_here / "photos", tmp_path / "out", made_here / "model", *flags) == 0
    assert "2 model actor(s)" in capsys.readouterr().err
    assert len(parts(tmp_path / "out")) == 4
    tables = [rows(out) for out in (made_here / "out", tmp_path / "out")]
    for row in (row for table in tables for row in table.values()):
        row["score"] = round(row["score"], 4)  # the last bits depend on what else is in a batch
    assert tables[0] == tables[1]


@pytest.mark.thorough
@pytest.mark.usefixtures("one_ray")
def test_a_model_that_cannot_start_in_an_actor_ends_the_run_in_words(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_cannot_start(tmp_path, model, capsys)


def check_cannot_start(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = photos(tmp_path / "photos", range(4)), tmp_path / "out"
    assert caption(folder, out, model, "--device", "cuda:7", "--precision", "fp32") == 2
    shown = capsys.readouterr().err
    assert "device cuda:7 was asked for" in shown and "Traceback" not in shown
    assert caption(folder, out, model) == 0, "the same command continues the run"
    assert len(rows(out)) == 4


@pytest.mark.usefixtures("one_ray")
def test_more_gpus_than_there_are_are_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "photos", range(1))
    assert caption(folder, tmp_path / "out", model, "--gpus", "64") == 2
    assert "--gpus 64 asks for more" in capsys.readouterr().err
    assert not (tmp_path / "out" / "captions").exists()
