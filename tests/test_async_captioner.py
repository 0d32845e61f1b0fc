"""Captioners that have many pictures under way at once, alone and in the table job."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image
from small_captioner import photos

from raycap.bulk.captions import captions_job
from raycap.bulk.job import ANSWERS, TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.picture_column import PictureColumn, pictures_of
from raycap.bulk.run import run_job
from raycap.bulk.work import CHUNK
from raycap.captioners import AsyncCaptioner, CaptionerOptions, Placement, Prediction
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Encoded, Fit, Intake, Reading, Square
from raycap.sources import Folder


@dataclass(frozen=True)
class SlowOptions(CaptionerOptions):
    """Answers with the size of what it is shown, the last picture first."""

    form: Intake = field(default_factory=lambda: Square(16))
    in_flight: int = 8
    broken: str = ""  # the key at which the server breaks
    folder: str = ""

    def identity(self) -> dict[str, Any]:
        return {"captioner": "slow"}

    def intake(self) -> Intake:
        return self.form

    def in_run(self, folder: str) -> "SlowOptions":
        return SlowOptions(self.form, self.in_flight, self.broken, folder)

    def placement(self) -> Placement:
        return Placement(gpus=0, workers=1)

    def open(self, device: str, threads: int | None) -> "SlowCaptioner":
        return SlowCaptioner(self)


class SlowCaptioner(AsyncCaptioner):
    def __init__(self, options: SlowOptions) -> None:
        super().__init__(options.intake(), options.in_flight)
        self.options = options
        self.asked, self.under_way, self.most = 0, 0, 0
        self.ended = False

    async def predict_one(self, picture: np.ndarray, row: Any) -> Prediction:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.02 if row["width"] % 2 else 0.001)
        self.under_way -= 1
        if self.options.folder and CHUNK in row:
            note = Path(self.options.folder, row[CHUNK], row["key"])
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        if row.get("key", "-") == self.options.broken:
            raise UserError("the server is broken")
        if row["width"] == 13:
            return Prediction(error="refused: unlucky")
        return Prediction(f"{row['width']} {'x'.join(map(str, picture.shape))}")

    async def end(self) -> None:
        self.ended = True


@pytest.fixture
def opened() -> Iterator[SlowCaptioner]:
    with SlowOptions(in_flight=3).open("auto", None) as captioner:
        yield captioner
    assert captioner.ended and not captioner._thread.is_alive()


def pictures(widths: Any) -> list[np.ndarray]:
    return [np.full((5, width, 3), width, np.uint8) for width in widths]


def test_answers_are_in_order_and_limited(opened: SlowCaptioner) -> None:
    found = opened.caption(pictures([21, 22, 13, 24, 25, 26, 27]))
    starts = [each.caption.split(" ")[0] for each in found]
    assert starts == ["21", "22", "", "24", "25", "26", "27"]
    assert found[2].error_message == "refused: unlucky"
    assert opened.most == 3, "as many as allowed, and no more"


def test_threads_share_the_limit(opened: SlowCaptioner) -> None:
    answers: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        widths = range(20 + number, 60, 3)
        answers[number] = [each.caption.split(" ")[0] for each in opened.caption(pictures(widths))]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in answers.items():
        assert found == [str(width) for width in range(20 + number, 60, 3)]
    assert opened.most == 3


def job(folder: Path, out: Path, captioner: SlowOptions, **options: Any) -> TableJob:
    asked = CaptionOptions(out=str(out), batch=4, part_rows=100, **options)
    return captions_job(captioner, Folder(str(folder)), asked, Fetch(), Reading(), Cluster())


FORMS = {
    "square": (Square(16), lambda width, height: (16, 16, 3)),
    "fit": (Fit(max_pixels=10**6), lambda width, height: (height, width, 3)),
}


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("form", FORMS)
def test_each_row_has_the_answer_for_its_own_picture(tmp_path: Path, form: str) -> None:
    intake, shape = FORMS[form]
    folder = tmp_path / "photos"
    folder.mkdir()
    for width in range(10, 40):
        Image.new("RGB", (width, 50 - width)).save(folder / f"{width}.png")
    (folder / "bad.png").write_bytes(b"<html>")
    out = tmp_path / "out"
    assert run_job(job(folder, out, SlowOptions(intake)), {}) == 1
    rows = pq.read_table(out / "captions").to_pylist()
    assert len(rows) == 31 and CHUNK not in rows[0]
    for row in rows:
        if row["key"] == "bad.png":
            assert row["status"] == "failed_to_decode"
        elif row["width"] == 13:
            assert (row["status"], row["error_message"]) == (
                "failed_to_caption",
                "refused: unlucky",
            )
        else:
            expected = "x".join(map(str, shape(row["width"], row["height"])))
            assert row["caption"] == f"{row['width']} {expected}", row["key"]


@pytest.mark.usefixtures("no_ray")
def test_encoded_pictures_are_files(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    assert run_job(job(folder, out, SlowOptions(Encoded(max_side=20))), {}) == 0
    captions = pq.read_table(out / "captions")["caption"].to_pylist()
    assert all(int(caption.split(" ")[1]) > 300 for caption in captions), "one number: bytes"


@pytest.mark.usefixtures("no_ray")
def test_equal_pictures_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos", range(3))
    for number in range(20):
        (folder / f"copy{number}.png").write_bytes((folder / "00000.png").read_bytes())
    made: list[SlowCaptioner] = []

    def open_noted(options: SlowOptions, device: str, threads: int | None) -> SlowCaptioner:
        made.append(SlowCaptioner(options))
        return made[-1]

    monkeypatch.setattr(SlowOptions, "open", open_noted)
    assert run_job(job(folder, tmp_path / "out", SlowOptions(), dedup=True), {}) == 0
    assert sum(captioner.asked for captioner in made) == 3
    assert len(pq.read_table(tmp_path / "out" / "captions")) == 23


@pytest.mark.usefixtures("no_ray")
def test_a_broken_server_ends_the_run_and_the_rest_is_made_later(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(40)), tmp_path / "out"
    with pytest.raises(UserError, match="the server is broken"):
        run_job(job(folder, out, SlowOptions(broken="00030.png")), {})
    # What the captioner keeps stays for the chunks that are not in the table.
    kept = {note.name for note in (out / ANSWERS).glob("*/*")}
    committed = set(DeltaTable(out / "captions").to_pyarrow_table()["key"].to_pylist())
    assert kept and not kept & committed
    assert run_job(job(folder, out, SlowOptions()), {}) == 0
    assert not (out / ANSWERS).exists()
    keys = pq.read_table(out / "captions")["key"].to_pylist()
    assert sorted(keys) == [f"{number:05}.png" for number in range(40)]


@pytest.mark.parametrize("intake", [Square(4), Fit(max_pixels=99), Encoded()], ids=repr)
def test_a_column_of_pictures_gives_back_what_was_put_in(intake: Intake) -> None:
    def picture(number: int) -> np.ndarray:
        shape: tuple[int, ...] = (4, 4, 3) if isinstance(intake, Square) else (number + 1, 7, 3)
        shape = (number + 9,) if isinstance(intake, Encoded) else shape
        return np.random.default_rng(number).integers(0, 256, shape, np.uint8)

    column = PictureColumn(intake, 6)
    for number in (4, 0, 3):
        column.put(number, picture(number))
    table = pa.table({"pixels": column.to_arrow()})
    for chosen in (table["pixels"].take([0, 3, 4]), table.slice(3, 2)["pixels"]):
        numbers = [0, 3, 4] if len(chosen) == 3 else [3, 4]
        for number, found in zip(numbers, pictures_of(chosen, range(len(chosen))), strict=True):
            np.testing.assert_array_equal(found, picture(number))
    pieces = pa.chunked_array(
        [*table["pixels"].slice(0, 2).chunks, *table["pixels"].slice(2).chunks]
    )
    for number, found in zip((4, 0), pictures_of(pieces, (4, 0)), strict=True):
        np.testing.assert_array_equal(found, picture(number))
    assert pictures_of(table["pixels"].take(pa.array([], pa.int64())), ()) == []
