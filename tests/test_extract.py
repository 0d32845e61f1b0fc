"""`raycap extract`: a row for every picture, once, equal to what the encoder makes of it alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hostile import write
from PIL import Image

from raycap.cli import main
from raycap.device import choose_precision
from raycap.encoders import Pixels
from raycap.errors import UserError
from raycap.images import Reading, Square, read_picture
from raycap.schema import features_schema, tensor_shape, tensors_of
from raycap.training.setup import given_features
from raycap.training.store import unpack_table

pytestmark = pytest.mark.usefixtures("no_ray")


def extract(path: Path, out: Path, *flags: str) -> int:
    small = ["--encoder", "pixels", "--encoder.size", "64", "--batch", "8", "--actors", "1"]
    return main(["extract", str(path), "--out", str(out), *small, *flags])


def features(out: Path) -> dict[str, dict[str, object]]:
    table = pq.read_table(out / "features")
    assert table.schema.remove_metadata() == features_schema(4, 192)
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys), "no key twice"
    assert not {"_staged", "_side"} & {path.name for path in out.iterdir()}
    arrays = {name: tensors_of(table, name) for name in ("grid", "vector")}
    return {
        row["key"]: {**row, **{name: column[place] for name, column in arrays.items()}}
        for place, row in enumerate(table.to_pylist())
    }


def parts(out: Path) -> list[Path]:
    """The files that readers of plain Parquet folders see."""
    return sorted((out / "features").glob("*.parquet"))


def facts(out: Path) -> dict[str, object]:
    return json.loads((out / "facts.json").read_text())


def photos(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 255, (48, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def test_each_picture_is_encoded_as_if_it_were_alone(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", range(37))  # no multiple of the batch
    assert extract(folder, tmp_path / "out") == 0
    rows = features(tmp_path / "out")
    assert sorted(rows) == [f"{number:03d}.png" for number in range(37)]
    encoder = Pixels(size=64).build().for_inference(choose_precision())
    for key in ("000.png", "020.png", "036.png"):
        picture = read_picture(
            (folder / key).read_bytes(), Reading(), Square(64, "squash", "bilinear")
        )
        alone = np.zeros((8, 64, 64, 3), np.uint8)  # a batch has always the same size
        alone[0] = picture.pixels
        with torch.inference_mode():
            grid, vector = encoder(torch.from_numpy(alone).permute(0, 3, 1, 2))
        assert np.array_equal(rows[key]["grid"], grid[0].half().numpy())
        assert np.array_equal(rows[key]["vector"], vector[0].half().numpy())


def test_in_8_bits_a_grid_is_nearly_the_same_and_read_back_for_training(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", range(12))
    assert extract(folder, tmp_path / "full") == 0
    assert extract(folder, tmp_path / "small", "--int8") == 0
    table = pq.read_table(tmp_path / "small" / "features")
    assert table.schema.remove_metadata() == features_schema(4, 192, int8=True)
    (full, full_keys), (small, small_keys) = (
        unpack_table(str(tmp_path / name / "features"), tmp_path / "cache")
        for name in ("full", "small")
    )
    assert full_keys.equals(small_keys) and small.dtype == np.float16
    assert np.array_equal(full[:, -1], small[:, -1]), "the vector stays as it is"
    largest = np.abs(full[:, :-1]).max(1, keepdims=True)
    assert (np.abs(full[:, :-1] - small[:, :-1]) <= largest / 127 * 0.6 + 1e-3).all()
    assert not np.array_equal(full, small)
    assert extract(folder, tmp_path / "full", "--int8") == 2, "not into a table of the other kind"


def test_again_does_nothing_and_new_pictures_are_added(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(10)), tmp_path / "out"
    assert extract(folder, out) == 0
    before = parts(out)
    assert extract(folder, out) == 0
    assert facts(out)["made_in_this_run"] == 10, "a finished run is left as it is"
    assert parts(out) == before
    photos(folder, range(10, 15))
    assert extract(folder, out) == 0
    assert (facts(out)["made_in_this_run"], facts(out)["rows"]) == (5, 15)
    assert set(before) < set(parts(out))
    assert len(features(out)) == 15


def test_parts_hold_about_the_rows_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert extract(photos(tmp_path / "photos", range(40)), out, "--part-rows", "16") == 0
    assert [pq.read_metadata(path).num_rows for path in parts(out)] == [16, 16, 8]
    metadata = pq.read_schema(parts(out)[0]).metadata
    assert (
        metadata[b"raycap"]
        and metadata[b"encoder_sha256"].decode() == facts(out)["identity"]["encoder_sha256"]
    )


def test_the_hostile_corpus_has_a_row_for_each(tmp_path: Path) -> None:
    files = write(tmp_path / "corpus", mutants=60)
    flags = ["--source.glob", "*", "--cluster.local-rows", str(files)]
    assert extract(tmp_path / "corpus", tmp_path / "out", *flags) == 1
    rows = features(tmp_path / "out")
    assert len(rows) == files == facts(tmp_path / "out")["rows"]
    for row in rows.values():
        assert (row["status"] == "success") == (not row["error_message"]), row["key"]
        assert row["status"] == "success" or not np.any(row["grid"]), row["key"]


def test_unfinished_features_are_not_learned_from(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(9)), tmp_path / "out"
    (folder / "broken.png").write_bytes(b"broken")
    encoder = Pixels(size=64).build()
    assert extract(folder, out, "--max-failed", "0") == 2
    with pytest.raises(UserError, match="are not finished: run the same `raycap extract` again"):
        given_features(str(out), "listing", encoder)
    assert extract(folder, out) == 1
    tables = given_features(str(out), "listing", encoder)
    rows, keys = unpack_table(*tables.tables, tmp_path / "cache")
    assert keys.to_pylist() == [f"{number:03d}.png" for number in range(9)]
    assert len(rows) == 9
    (folder / "new.png").write_bytes(b"broken")
    assert extract(folder, out, "--max-failed", "0") == 2
    with pytest.raises(UserError, match="are not finished"):
        given_features(str(out), "listing", encoder)


def test_captions_stay_with_the_source(tmp_path: Path) -> None:
    """They may be corrected later, and a table of features is kept."""
    assert extract(photos(tmp_path / "photos", range(2)), tmp_path / "out") == 0
    [row, _] = features(tmp_path / "out").values()
    assert set(row) == {"key", "grid", "vector", "status", "error_message"}


def test_a_table_of_an_older_format_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(2)), tmp_path / "out"
    assert extract(folder, out) == 0
    for path in (out / "run.json", *out.glob("_plan/*/plan.json")):
        record = json.loads(path.read_text())
        del record["identity"]["format"]  # as in format 1
        path.write_text(json.dumps(record))
    assert extract(folder, out) == 2
    assert "format was None, now 3" in capsys.readouterr().err


def test_other_rows_are_refused_with_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    assert extract(folder, out) == 0
    assert extract(folder, out, "--encoder.frequencies", "4") == 2
    assert "encoder.frequencies was 8, now 4" in capsys.readouterr().err
    assert extract(photos(tmp_path / "others", range(3)), out) == 2
    assert "source.path was" in capsys.readouterr().err
    assert len(features(out)) == 3


def test_limit_takes_the_first_rows_and_can_grow(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(12)), tmp_path / "out"
    assert extract(folder, out, "--limit", "5") == 0
    assert sorted(features(out)) == [f"{number:03d}.png" for number in range(5)]
    assert extract(folder, out, "--limit", "9") == 0
    assert facts(out)["made_in_this_run"] == 4
    assert len(features(out)) == 9


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--out", ""], "--out"),
        (["--out", "memory://x"], "memory of one process"),
        (["--out", "/proc/nowhere"], "cannot write"),
        (["--encoder.weights", "/no/such", "--encoder", "resnet18"], "/no/such"),
    ],
)
def test_bad_options_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "photos", range(1))
    assert (
        main(
            ["extract", str(folder), "--out", str(tmp_path / "out"), "--encoder", "pixels", *flags]
        )
        == 2
    )
    assert words in capsys.readouterr().err


def test_an_empty_source_is_refused_and_leaves_no_table(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert extract(tmp_path / "empty", tmp_path / "out", "--source", "folder") == 2
    assert not (tmp_path / "out" / "features").exists()


def test_a_column_describes_how_its_arrays_are_read(tmp_path: Path) -> None:
    assert extract(photos(tmp_path / "photos", range(2)), tmp_path / "out") == 0
    schema = pq.read_schema(parts(tmp_path / "out")[0])
    assert tensor_shape(schema.field("grid")) == (4, 192)
    assert schema.field("grid").metadata[b"dtype"] == b"float16"
