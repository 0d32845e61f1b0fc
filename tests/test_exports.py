"""The other forms of a table: complete after a kill at any step, true to the table after every
change of it, and made of the pictures that were captioned."""

import functools
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from table_jobs import captions_job

from raycap.bulk.exports import write_exports
from raycap.bulk.options import BulkOptions
from raycap.bulk.run import run_job
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.schema import CAPTIONS, SUCCESS
from raycap.sinks import SINKS, SinkSettings
from raycap.sources import Folder, HuggingFace, Source, WebDataset
from raycap.storage import RunFolder

pytestmark = pytest.mark.usefixtures("no_ray")

ALL = tuple(SINKS)
PHOTOS = 5


def open_model(model: str, options: BulkOptions, threads: int) -> Callable[[pa.Table], pa.Table]:
    """Says its name and the picture's key."""

    def caption(table: pa.Table) -> pa.Table:
        rows = []
        for row in table.drop_columns(["pixels"]).to_pylist():
            text = f"{model} {row['key']}" if row["status"] == SUCCESS else ""
            rows.append({**row, "caption": text, "score": None, "alternatives": []})
        return pa.Table.from_pylist(rows, CAPTIONS)

    return caption


@dataclass(frozen=True)
class Command:
    """`raycap caption SOURCE --out OUT --also ...`, with a captioner that needs no torch."""

    source: Source
    out: Any  # a path or a URI
    also: tuple[str, ...] = ()
    model: str = "A"
    retry: bool = False
    overwrite: bool = False
    beside: bool = False
    mode: str = "skip"

    @property
    def settings(self) -> SinkSettings:
        return SinkSettings(
            RunFolder(str(self.out)),
            self.mode,  # type: ignore[arg-type]
            self.beside,
            Fetch(),
            self.source.trust,
            self.source,
        )

    def run(self, exports: bool = True) -> int:
        """Without exports it is a run that ended before them."""
        options = BulkOptions(
            out=str(self.out),
            batch=2,
            part_rows=2,
            retry="failed" if self.retry else "",
            overwrite=self.overwrite,
        )
        opens = functools.partial(open_model, self.model)
        export = functools.partial(
            write_exports, table="captions", names=self.also, settings=self.settings
        )
        job = captions_job(self.source, options, self.model, opens)
        return run_job(replace(job, export=export) if exports else job, {})

    def export(self) -> None:
        """What the run does after its last commit."""
        run = lambda function, arguments: (function(*some) for some in arguments)  # noqa: E731
        write_exports(self.settings.folder, run, "captions", self.also, self.settings)


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(file, "png")
    return file.getvalue()


def photos(folder: Path, numbers: range = range(PHOTOS)) -> Folder:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(number))
    return Folder(str(folder))


def forms(folder: Path) -> dict[str, bytes]:
    """All files of the other forms in OUT and beside the photos, without marks and journals."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        own = ("captions", "facts.json", "run.json")
        is_form = path.suffix != ".png" and not any(step in own for step in name.parts)
        if path.is_file() and is_form and not any(step[0] in "_." for step in name.parts):
            found[str(name)] = path.read_bytes()
    return found


def captions(out: Path) -> dict[str, str]:
    rows = [
        row
        for path in sorted((out / "captions").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    return {row["key"]: row["caption"] for row in rows if row["status"] == SUCCESS}


def check(folder: Path) -> None:
    """Every form holds what the table holds."""
    out, expected = folder / "out", captions(folder / "out")
    assert expected
    texts = {path.name: path.read_text() for path in (out / "txt").glob("*.txt")}
    assert texts == {f"{key}.txt": f"{text}\n" for key, text in expected.items()}
    beside = {path.stem: path.read_text().strip() for path in (folder / "photos").glob("*.txt")}
    assert beside == {key.removesuffix(".png"): text for key, text in expected.items()}
    lines = lines_of(*sorted((out / "jsonl").glob("*.jsonl")))
    assert {line["key"]: line["caption"] for line in lines if line["caption"]} == expected
    listed = lines_of(out / "metadata.jsonl")
    assert {line["file_name"]: line["text"] for line in listed} == expected
    samples = samples_of(out)
    assert {row["key"]: row["caption"] for row, _ in samples} == expected
    for row, data in samples:
        assert data == (folder / "photos" / row["key"]).read_bytes()


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def samples_of(out: Path) -> list[tuple[dict[str, Any], bytes]]:
    """The row and the picture of each sample of all tars."""
    found = []
    for path in sorted((out / "webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert len(set(names)) == len(names)
            content = {name: tar.extractfile(name).read() for name in names}
        for stem in dict.fromkeys(name.partition(".")[0] for name in names):
            [image] = {f"{stem}.json", f"{stem}.txt"} ^ {
                name for name in names if name.startswith(f"{stem}.")
            }
            found.append((json.loads(content[f"{stem}.json"]), content[image]))
    return found


def export_both(command: Command) -> None:
    """All forms in OUT, and texts beside the photos."""
    command.export()
    replace(command, also=("txt",), beside=True).export()


def killed_everywhere(act: Callable[[], None], folder: Path, copies: Path) -> list[Path]:
    """The folder as a kill would leave it, at each step that changes a file."""
    steps: list[Path] = []
    one_at_a_time = threading.RLock()  # nothing is written while the folder is copied

    def recorded(name: str) -> Callable[..., Any]:
        method = getattr(RunFolder, name)

        def step(self: RunFolder, *arguments: Any) -> Any:
            with one_at_a_time:
                steps.append(copies / f"{len(steps):03d} {name}")
                shutil.copytree(folder, steps[-1])
                return method(self, *arguments)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stage", "rename", "put", "remove"):
            patch.setattr(RunFolder, name, recorded(name))
        act()
    return steps


def exports_after(change: str, folder: Path) -> Command:
    """A table that has changed since its forms were made; the command of its last run."""
    source = photos(folder / "photos")
    (folder / "photos" / "3.png").write_bytes(b"broken")
    command = Command(source, folder / "out", ALL)
    command.run(exports=False)
    if change == "first":
        return command
    export_both(command)
    check(folder)
    if change == "append":
        photos(folder / "photos", range(PHOTOS, PHOTOS + 2))
    else:
        (folder / "photos" / "3.png").write_bytes(picture(3))
    if change == "overwrite":  # captions change, one is new, and one is not there any more
        (folder / "photos" / "1.png").write_bytes(b"broken")
        command = replace(command, model="B")
    again = replace(command, retry=change == "retry", overwrite=change == "overwrite")
    again.run(exports=False)
    return command


def check_kills(change: str, tmp_path: Path, first: int, stride: int) -> None:
    folder = tmp_path / "all"
    command = exports_after(change, folder)
    steps = killed_everywhere(lambda: export_both(command), folder, tmp_path / "copies")
    assert len(steps) > 20
    check(folder)
    undisturbed = forms(folder)
    for number, step in enumerate(steps[first::stride]):
        shutil.rmtree(folder)
        shutil.copytree(step, folder)
        if number % 8 == 0:
            command.run()
        export_both(command)  # a whole run takes longer, and does the same after its last commit
        assert forms(folder) == undisturbed, step.name
        assert not (folder / "out" / "_staged").exists()
    for name in undisturbed:
        (folder / name).unlink()
    shutil.rmtree(folder / "out" / "txt")
    export_both(command)
    assert forms(folder) == undisturbed, "a table that never changed has the same forms"


CHANGES = ("first", "append", "retry", "overwrite")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=[pytest.mark.thorough] if change == "overwrite" else [])
        for change in CHANGES
    ],
)
def test_exports_killed_at_some_steps_are_completed_by_the_next_run(
    change: str, tmp_path: Path
) -> None:
    check_kills(change, tmp_path, first=CHANGES.index(change), stride=20)


def test_a_file_that_was_joined_from_fewer_parts_is_made_again(tmp_path: Path) -> None:
    """A kill came after the last part of a longer table, before the join."""
    command = Command(photos(tmp_path / "photos", range(2)), tmp_path / "out", ("imagefolder",))
    command.run()
    names = ("metadata.jsonl", "imagefolder/_written/_complete.json")
    shorter = {name: (command.out / name).read_bytes() for name in names}
    photos(tmp_path / "photos", range(2, 4))
    command.run()
    whole = (command.out / "metadata.jsonl").read_bytes()
    assert len(whole.splitlines()) == 4
    for name, content in shorter.items():
        (command.out / name).write_bytes(content)
    command.export()
    assert (command.out / "metadata.jsonl").read_bytes() == whole


def test_texts_of_an_export_that_was_killed_are_known_as_its_own(tmp_path: Path) -> None:
    """They do not stay beside the pictures when these get other captions."""
    folder = tmp_path / "all"
    command = Command(photos(folder / "photos", range(2)), folder / "out", ("txt",), beside=True)
    command.run(exports=False)
    steps = killed_everywhere(command.export, folder, tmp_path / "copies")
    half_done = [step for step in steps if len(list(step.glob("photos/*.txt"))) == 1]
    shutil.rmtree(folder)
    shutil.copytree(half_done[0], folder)
    replace(command, model="B", overwrite=True).run()
    assert [(folder / f"photos/{n}.txt").read_text() for n in (0, 1)] == ["B 0.png\n", "B 1.png\n"]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_exports_killed_at_any_step_are_completed_by_the_next_run(
    change: str, tmp_path: Path
) -> None:
    check_kills(change, tmp_path, first=0, stride=1)


@pytest.fixture
def made(tmp_path: Path) -> Command:
    """A run with all forms."""
    command = Command(photos(tmp_path / "photos"), tmp_path / "out", ALL)
    assert command.run() == 0
    return command


@pytest.mark.parametrize(
    "lost", ["metadata.jsonl", "jsonl", "webdataset", "imagefolder", "txt", "txt/_written"]
)
def test_what_is_removed_is_made_again(lost: str, made: Command, tmp_path: Path) -> None:
    before = forms(tmp_path)
    path = made.out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert made.run() == 0
    assert forms(tmp_path) == before


def test_a_part_that_is_lost_is_made_again_and_the_others_stay(made: Command) -> None:
    first, second, *_ = sorted((made.out / "jsonl").glob("*.jsonl"))
    first.unlink()
    before = second.stat().st_ino
    made.run()
    assert first.exists() and second.stat().st_ino == before


def test_forms_of_an_earlier_run_follow_the_table_until_they_are_removed(
    made: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", range(PHOTOS, PHOTOS + 1))
    replace(made, also=()).run()
    assert len(lines_of(made.out / "metadata.jsonl")) == PHOTOS + 1
    warnings = capsys.readouterr().err
    assert f"remove {made.out}/jsonl/_written if it should not" in warnings
    shutil.rmtree(made.out / "jsonl" / "_written")
    photos(tmp_path / "photos", range(PHOTOS + 1, PHOTOS + 2))
    replace(made, also=()).run()
    assert len(lines_of(made.out / "metadata.jsonl")) == PHOTOS + 2
    assert len(lines_of(*(made.out / "jsonl").glob("*.jsonl"))) == PHOTOS + 1
    assert "jsonl, which" not in capsys.readouterr().err


def test_nothing_is_written_where_nothing_is_asked(tmp_path: Path) -> None:
    Command(photos(tmp_path / "photos"), tmp_path / "out").run()
    assert forms(tmp_path) == {}
    assert not {"_staged", *ALL} & {path.name for path in (tmp_path / "out").iterdir()}


def test_an_export_that_was_killed_leaves_nothing_of_rows_that_are_gone(
    tmp_path: Path,
) -> None:
    """Also if the run that makes the table again does not ask for the form."""
    command = Command(photos(tmp_path / "photos"), tmp_path / "out", ("jsonl", "imagefolder"))
    command.run()
    for name in command.also:
        (command.out / name / "_written" / "_complete.json").unlink()
    assert replace(command, also=(), overwrite=True).run() == 0
    assert forms(tmp_path) == {}


# --- text files


def test_texts_of_the_user_stay_until_the_remedy_replaces_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    command = Command(photos(folder), tmp_path / "out", ("txt",), beside=True)
    (folder / "1.txt").write_text("mine\n")
    command.run()
    (folder / "2.txt").write_text("changed\n")
    capsys.readouterr()
    replace(command, model="B", overwrite=True).run()
    warnings = capsys.readouterr().err
    assert "2 text file(s) existed already with another text" in warnings
    assert (folder / "1.txt").read_text() == "mine\n"
    assert (folder / "2.txt").read_text() == "changed\n"
    assert (folder / "3.txt").read_text() == "B 3.png\n"
    assert "(--txt-mode overwrite replaces them)" in warnings
    replace(command, model="B", mode="overwrite").run()
    assert [(folder / f"{n}.txt").read_text() for n in (1, 2)] == ["B 1.png\n", "B 2.png\n"]
    assert "existed already" not in capsys.readouterr().err


def test_texts_beside_pictures_of_one_stem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    source = photos(folder, range(2))
    (folder / "1.JPG").write_bytes(picture(8))
    command = Command(source, tmp_path / "out", ("txt",), beside=True)
    command.run()
    texts = {path.name: path.read_text().strip() for path in folder.glob("*.txt")}
    assert texts == {"0.txt": "A 0.png", "1.JPG.txt": "A 1.JPG", "1.png.txt": "A 1.png"}
    assert "2 picture(s) lie beside another one" in capsys.readouterr().err
    (folder / "0.webp").write_bytes(picture(9))
    command.run()
    texts |= {"0.webp.txt": "A 0.webp"}
    found = {path.name: path.read_text().strip() for path in folder.glob("*.txt")}
    assert found == texts, "rows that are added rename nothing"


def test_a_picture_that_has_the_name_of_a_text_file_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    photos(folder, range(1))
    (folder / "0.txt").write_bytes(picture(5))
    source = Folder(str(folder), glob="*")
    command = Command(source, tmp_path / "out", ("txt",), beside=True, mode="overwrite")
    assert command.run() == 0
    assert (folder / "0.txt").read_bytes() == picture(5)
    assert "1 picture(s) have no text file" in capsys.readouterr().err
    assert [path.read_text() for path in folder.glob("0.txt-*.txt")] == ["A 0.txt\n"]


def test_without_a_folder_for_texts_the_message_names_what_works(tmp_path: Path) -> None:
    source = embedded(tmp_path / "data.parquet")
    command = Command(source, tmp_path / "out", ("txt",), beside=True)
    with pytest.raises(UserError, match="omit --txt-beside, and texts go to") as error:
        command.run()
    assert replace(command, beside=False).run() == 0
    where = Path(str(error.value).rpartition("texts go to ")[2])
    assert (where / "c.png.txt").read_text() == "A c.png\n"


# --- tars


def embedded(file: Path) -> HuggingFace:
    rows = [
        {"image": {"bytes": picture(number), "path": f"{name}.png"}}
        for number, name in enumerate("abc")
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return HuggingFace(str(file))


def packed(file: Path) -> WebDataset:
    with tarfile.open(file, "w") as tar:
        for number, name in enumerate("abc"):
            about = tarfile.TarInfo(f"{name}.png")
            about.size = len(picture(number))
            tar.addfile(about, io.BytesIO(picture(number)))
    return WebDataset(str(file))


@pytest.mark.parametrize("source, name", [(embedded, "data.parquet"), (packed, "data.tar")])
def test_a_tar_has_pictures_that_the_source_holds_itself(
    source: Callable[[Path], Source], name: str, tmp_path: Path
) -> None:
    command = Command(source(tmp_path / name), tmp_path / "out", ("webdataset",))
    assert command.run() == 0
    assert [data for _, data in samples_of(command.out)] == [
        picture(number) for number in range(3)
    ]


def test_pictures_in_a_file_that_is_gone_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("1.parquet", "2.parquet"):
        embedded(folder / name)
    command = Command(HuggingFace(str(folder)), tmp_path / "out", ("webdataset",))
    command.run(exports=False)
    (folder / "1.parquet").unlink()
    command.export()
    assert "3 captioned picture(s) are not in" in capsys.readouterr().err
    assert [data for _, data in samples_of(command.out)] == [
        picture(number) for number in range(3)
    ]


def test_a_tar_has_the_captioned_pictures_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    command = Command(photos(folder), tmp_path / "out", ("webdataset",))
    command.run(exports=False)
    (folder / "1.png").write_bytes(picture(99))
    (folder / "2.png").unlink()
    command.run()
    warnings = capsys.readouterr().err
    tars = command.out / "webdataset"
    assert f"2 captioned picture(s) are not in {tars}: 1 cannot be fetched any more" in warnings
    assert "1 changed since they were captioned" in warnings
    assert {row["key"] for row, _ in samples_of(command.out)} == {"0.png", "3.png", "4.png"}
    command.run()
    assert "2 captioned picture(s)" in capsys.readouterr().err, "also when nothing is made"

    # The remedies, as the message gives them.
    assert f"remove {tars} and give the same command again" in warnings
    (folder / "2.png").write_bytes(picture(2))
    shutil.rmtree(tars)
    command.run()
    assert "1 captioned picture(s)" in capsys.readouterr().err
    assert len(samples_of(command.out)) == PHOTOS - 1
    assert "--overwrite makes new captions" in warnings
    replace(command, overwrite=True).run()
    assert "captioned picture(s)" not in capsys.readouterr().err
    assert [data for _, data in samples_of(command.out)][1] == picture(99)


def test_a_tar_has_pictures_of_odd_names(tmp_path: Path) -> None:
    """One would be taken for the sample's text, others have no ending."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.txt", "b.json", "c", "d.php")):
        (folder / name).write_bytes(picture(number))
    source = Folder(str(folder), glob="*")
    command = Command(source, tmp_path / "out", ("webdataset",))
    assert command.run() == 0
    assert [data for _, data in samples_of(command.out)] == [picture(n) for n in range(4)]
    with tarfile.open(next((command.out / "webdataset").glob("*.tar"))) as tar:
        assert tar.getnames()[:3] == ["000000.json", "000000.txt", "000000.png"]


# --- in a store


def test_forms_in_a_bucket_and_texts_beside_its_pictures(tmp_path: Path, s3: Any) -> None:
    s3.mkdir("exports")
    for name in ("0.png", "1.png", "1.jpg"):
        s3.pipe_file(f"exports/all/photos/{name}", picture(int(name[0])))

    source = Folder("s3://exports/all/photos")
    command = Command(source, "s3://exports/all/out", ("jsonl", "webdataset", "imagefolder"))
    assert command.run() == 0
    texts = replace(command, also=("txt",), beside=True)
    texts.export()
    s3.invalidate_cache()
    s3.get("exports/all", str(tmp_path), recursive=True)
    beside = {path.name: path.read_text() for path in (tmp_path / "all" / "photos").glob("*.txt")}
    names = {"0.txt": "0.png", "1.jpg.txt": "1.jpg", "1.png.txt": "1.png"}
    assert beside == {name: f"A {key}\n" for name, key in names.items()}
    out = tmp_path / "all" / "out"
    assert len(lines_of(out / "metadata.jsonl")) == len(samples_of(out)) == 3

    [first, _] = sorted(name for name in s3.ls("exports/all/out/captions") if "part-" in name)
    s3.rm_file(first)  # as if it was replaced
    texts.export()
    s3.invalidate_cache()
    assert len(s3.glob("exports/all/out/jsonl/*.jsonl")) == 1
    assert len(s3.cat("exports/all/out/metadata.jsonl").splitlines()) == 1
    assert [Path(name).name for name in s3.glob("exports/all/photos/*.txt")] == ["1.png.txt"]
