"""Captioners are replaceable: a kind that raycap does not know goes through the table job and
through Python."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy_captioner
from PIL import Image
from small_captioner import photos
from toy_captioner import SizeCaptioner, SizeOptions

from raycap.bulk.captions import captions_job
from raycap.bulk.job import TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.captioners import Caption as Row
from raycap.captioners.protocol import Placement, Prediction, caption_row
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.schema import CAPTIONS
from raycap.sources import Folder


@pytest.fixture
def ray_with_toy(one_ray: None) -> Iterator[None]:
    """A Ray whose workers know the toy captioner, as they would know one that is installed."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(toy_captioner)
    yield
    cloudpickle.unregister_pickle_by_value(toy_captioner)


def job(folder: Path, out: Path, **options: Any) -> TableJob:
    asked = CaptionOptions(out=str(out), batch=4, part_rows=4, actors=1, **options)
    how = (Fetch(), Reading(), Cluster())
    return captions_job(SizeOptions(), Folder(str(folder)), asked, *how)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "captions").to_pylist()
    found = {row["key"]: row for row in table}
    assert len(found) == len(table), "each key once"
    return found


@pytest.mark.usefixtures("no_ray")
def test_another_kind_of_captioner_goes_through_the_table_job(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(10)), tmp_path / "out"
    (folder / "bad.png").write_bytes(b"<html>")
    assert run_job(job(folder, out), {}) == 1
    first = {path: path.read_bytes() for path in (out / "captions").glob("*.parquet")}
    found = rows(out)
    assert found["00000.png"]["caption"] == "PICTURE 60X48"
    assert found["bad.png"]["status"] == "failed_to_decode" and found["bad.png"]["caption"] == ""
    assert found["00000.png"]["score"] is None and found["00000.png"]["alternatives"] == []
    assert pq.read_schema(next(iter(first))).names == CAPTIONS.names

    # Resume: only what is new is captioned.
    photos(folder, range(10, 15))
    assert run_job(job(folder, out), {}) == 1
    assert len(rows(out)) == 16
    assert {path: path.read_bytes() for path in first} == first

    # Retry: the failed row is made again.
    Image.new("RGB", (7, 5)).save(folder / "bad.png")
    assert run_job(job(folder, out, retry="failed"), {}) == 0
    assert rows(out)["bad.png"]["caption"] == "PICTURE 7X5"

    # Another captioner is another run.
    other = job(folder, out)
    other = replace(other, identity={**other.identity, **SizeOptions("photo").identity()})
    with pytest.raises(UserError, match="captioner was 'size, picture', now 'size, photo'"):
        run_job(other, {})


def test_a_captioner_names_what_it_needs_and_the_command_may_change_it(tmp_path: Path) -> None:
    class OnProcessors(SizeOptions):
        def placement(self) -> Placement:
            return Placement(gpus=0)

    how = (Folder(str(photos(tmp_path / "photos", range(1)))),)
    others = (Fetch(), Reading(), Cluster())
    asked = [CaptionOptions(out="out"), CaptionOptions(out="out", gpus=0.5)]
    found = [captions_job(OnProcessors(), *how, options, *others) for options in asked]
    assert [job.options.gpus for job in found] == [0, 0.5]
    assert not any(job.runs_model for job in found), "it has no precision to choose"


def test_another_kind_of_captioner_captions_in_python(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", range(2))
    captioner = SizeCaptioner(SizeOptions("photo"))
    good, bad = captioner.caption([folder / "00000.png", b"nonsense"])
    assert isinstance(good, Row) and good.caption == "PHOTO 60X48" and good.succeeded
    assert bad.status == "failed_to_decode" and str(bad).startswith("(failed_to_decode: ")
    assert "raycap.captioners.trained" not in sys.modules or good.words == ()


def test_a_prediction_that_failed_costs_its_own_row() -> None:
    row = caption_row("success", "", Prediction(error="refused: too dark"))
    assert (row["status"], row["error_message"]) == ("failed_to_caption", "refused: too dark")
    assert row["caption"] == "" and row["score"] is None
    assert caption_row("failed_to_fetch", "gone", None)["status"] == "failed_to_fetch"
    assert caption_row("success", "", Prediction("a dog", extras={"tags": ["dog"]}))["tags"] == [
        "dog"
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_with_toy")
def test_another_kind_of_captioner_runs_in_actors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(10)), tmp_path / "out"
    assert run_job(job(folder, out), {}) == 0
    assert "1 model actor(s)" in capsys.readouterr().err
    assert len(rows(out)) == 10 and rows(out)["00000.png"]["caption"] == "PICTURE 60X48"
