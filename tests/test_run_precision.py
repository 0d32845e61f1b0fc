"""One precision for a run: what it began with is what it goes on with, whatever a worker would
choose."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from small_captioner import photos, save_captioner

from raycap import device
from raycap.bulk.captions import captions_job
from raycap.bulk.features import features_job, pixels_job
from raycap.bulk.job import in_cache
from raycap.bulk.options import BulkOptions, CaptionOptions, ExtractOptions
from raycap.bulk.precision import choose_run_precision, with_precision
from raycap.captioners.trained import TrainedOptions
from raycap.cli import main
from raycap.cluster import Cluster
from raycap.device import Precision, PrecisionName, choose_precision
from raycap.encoders import Pixels
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.sources import Folder

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda: " ".join(capsys.readouterr().err.split())


def caption(path: Path, out: Path, model: Path, *flags: str) -> int:
    small = ["--model", str(model), "--batch", "8", "--actors", "1"]
    return main(["caption", str(path), "--out", str(out), *small, *flags])


def recorded(out: Path) -> dict[str, Any]:
    """The identity in run.json, which is the one in facts.json too."""
    run, facts = (json.loads((out / name).read_text()) for name in ("run.json", "facts.json"))
    assert run["identity"] == facts["identity"]
    return dict(run["identity"])


def scores(out: Path) -> dict[str, float]:
    table = pq.read_table(out / "captions")
    return dict(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tmp_path: Path,
    model: Path,
    errors: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = photos(tmp_path / "photos", range(4)), tmp_path / "out"
    # The device has bf16 for the first run, and no longer for the others.
    monkeypatch.setattr(device, "_fastest", lambda _: ("fp32", "as the test has it"))
    with monkeypatch.context() as patch:
        patch.setattr(device, "_fastest", lambda _: ("bf16", "as the test has it"))
        assert caption(folder, out, model) == 0
    assert "precision bf16: as the test has it" in errors()
    assert (recorded(out)["precision"], recorded(out)["batch"]) == ("bf16", 8)
    assert {
        pq.read_schema(part).metadata[b"precision"]
        for part in (out / "captions").glob("*.parquet")
    } == {b"bf16"}

    photos(folder, range(4, 8))
    assert caption(folder, out, model, "--precision", "fp32") == 2
    assert "precision was 'bf16', now 'fp32'; batch was 8, now None" in errors()
    assert caption(folder, out, model, "--batch", "4") == 2
    assert "batch was 8, now 4" in errors()
    assert caption(folder, out, model) == 0, "auto is what it was, on this machine of fp32 too"
    assert recorded(out)["precision"] == "bf16"

    assert caption(folder, tmp_path / "fp32", model) == 0
    others = scores(tmp_path / "fp32")
    assert len(others) == 8 and all(score != others[key] for key, score in scores(out).items())
    assert recorded(tmp_path / "fp32")["precision"] == "fp32" and "batch" not in recorded(
        tmp_path / "fp32"
    )
    capsys.readouterr()
    assert caption(folder, tmp_path / "fp32", model, "--batch", "4", "--dry-run") == 0
    assert "holds 8 rows, 0 failed" in capsys.readouterr().out, "in fp32 the batch decides nothing"


def test_a_run_of_a_version_that_recorded_no_precision_is_left_as_it_is_until_overwrite(
    tmp_path: Path, model: Path, errors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_fastest", lambda _: ("fp32", "as the test has it"))
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    assert caption(folder, out, model) == 0
    for name in ("run.json", "facts.json"):  # as raycap 0.1.0 wrote them
        record = json.loads((out / name).read_text())
        del record["identity"]["precision"]
        (out / name).write_text(json.dumps(record))
    for name in ("_plan", "captions/_delta_log"):
        shutil.rmtree(out / name)
    before = {
        path: path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "_lease.lock"
    }
    for flags in ([], ["--precision", "fp32"], ["--retry", "failed"]):
        assert caption(folder, out, model, *flags) == 2
        assert "was written by raycap 0.1.0" in errors()
    assert {path: path.read_bytes() for path in before} == before
    assert caption(folder, out, model, "--overwrite") == 0
    assert len(scores(out)) == 3 and recorded(out)["precision"] == "fp32"
    assert caption(folder, out, model) == 0, "from now on it is recorded"


def test_caches_of_different_precision_are_different_folders(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Folder(str(photos(tmp_path / "photos", range(1))))
    captioner = TrainedOptions.read(str(model), "", None, batch=64)
    how = (Fetch(), Reading(), Cluster())
    encoder = Pixels(size=64).build()
    features = features_job(Pixels(size=64), encoder, source, ExtractOptions(), *how)
    for work in (captions_job(captioner, source, CaptionOptions(), *how), features):
        folders = []
        names: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")
        for name in names:
            found = with_precision(work, name)
            assert found.layout.metadata["precision"] == found.identity["precision"] == name
            folders.append(in_cache(found, str(tmp_path), "cache").options.out)
        other = replace(work, options=replace(work.options, batch=7))
        folders += [
            in_cache(with_precision(other, name), str(tmp_path), "cache").options.out
            for name in names[1:]
        ]
        assert len(set(folders)) == 5
        assert (
            in_cache(with_precision(other, "fp32"), str(tmp_path), "cache").options.out
            == folders[0]
        )
    assert "precision" not in pixels_job(encoder, source, ExtractOptions(), *how).identity, (
        "pixels have none"
    )


def test_a_device_that_cannot_compute_so_is_refused() -> None:
    names: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")
    assert [choose_precision("cpu", name).name for name in names] == list(names)
    with pytest.raises(
        UserError, match=r"of .* cannot compute in float8_e4m3fn \(.*give --precision fp32"
    ):
        device.check_supported(Precision(torch.device("cpu"), torch.float8_e4m3fn, ""))


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_node_is_asked_where_the_model_does_not_run_here(
    monkeypatch: pytest.MonkeyPatch, errors: Any
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")  # this driver, to itself
    monkeypatch.setattr(device, "_fastest", lambda _: ("fp16", "of the driver"))
    found = choose_run_precision(BulkOptions(), Cluster())
    monkeypatch.undo()
    assert (
        found == choose_precision().name
        and f"precision {found}: {choose_precision().reason}" in errors()
    )
    with pytest.raises(UserError, match="--gpus 64 asks for more"):
        choose_run_precision(BulkOptions(gpus=64), Cluster())
    assert choose_run_precision(BulkOptions(precision="fp16", gpus=64), Cluster()) == "fp16", (
        "what is given is not asked for"
    )
