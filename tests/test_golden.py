"""Golden tests: what raycap writes for fixed inputs is what it wrote when these files were
recorded.

They make a change of behaviour visible in code that is only to be moved or renamed. When a change
is expected, record the files again and say so in the commit:

    RAYCAP_RECORD_GOLDEN=1 pytest tests/test_golden.py -k identities

Floating-point results differ in their last digits between processors and versions of torch. On the
kind of machine that recorded them they must be equal; elsewhere they must be close.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_captioner import save_captioner

from raycap import Captioner
from raycap.bulk.features import pixels_schema
from raycap.captioners.trained import folder
from raycap.captioners.trained.weights import Numbers
from raycap.cli import main
from raycap.commands import COMMANDS
from raycap.schema import CAPTIONS, MANIFEST, TRUE_WORDS, features_schema, tensor_shape
from raycap.tuning.trials import SCHEMA as TRIALS

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).resolve().parent.parent / "samples"
RECORD = bool(os.environ.get("RAYCAP_RECORD_GOLDEN"))
# Written into captioner folders in place of raycap's own, which changes with each release.
VERSION = "golden"
DEV_PHOTOS = 80


def recorded(name: str, found: Any) -> Any:
    """The recorded value of that name; when recording, `found` becomes it."""
    file = GOLDEN / f"{name}.json"
    if RECORD:
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def machine() -> str:
    """Equal where floating-point results should be equal to the last digit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = sorted({line for line in lines if line.startswith("model name")}) or [
        platform.processor()
    ]
    parts = [*models, torch.__version__, np.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())
    }


# -------------------------------------------------------------------------------- configuration


def test_the_printed_config_of_every_command() -> None:
    found = {}
    for command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([command, "--print-config"]) == 0
        found[command] = printed.getvalue().splitlines()
    assert found == recorded("print_config", found)


def test_table_schemas() -> None:
    schemas = {
        "manifest": MANIFEST,
        "captions": CAPTIONS,
        "true_words": TRUE_WORDS,
        "features": features_schema(49, 1280),
        "features_int8": features_schema(49, 1280, int8=True),
        "pixels": pixels_schema(224),
        "trials": TRIALS,
    }
    found = {name: _described(schema) for name, schema in schemas.items()}
    assert found == recorded("schemas", found)


def _described(schema: pa.Schema) -> list[str]:
    lines = []
    for field in schema:
        shape = tensor_shape(field)
        kind = f"{field.type}" if shape is None else f"{field.metadata[b'dtype'].decode()} {shape}"
        lines.append(f"{field.name}: {kind}{'' if field.nullable else ' not null'}")
    return lines


# -------------------------------------------------------------------------------- captioners


def test_the_files_of_a_saved_captioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come from a formula, so that they do not depend on torch's generator."""
    monkeypatch.setattr(folder, "__version__", VERSION)
    captioner = save_captioner(tmp_path / "first")
    with torch.no_grad():
        for number, weight in enumerate(captioner.decoder.parameters()):
            values = torch.arange(weight.numel(), dtype=torch.float32).remainder(97) / 97 - 0.5
            weight.copy_(values.view(weight.shape) / (number + 1))
    found = {}
    for numbers in get_args(Numbers):
        captioner.save(tmp_path / numbers, numbers=numbers)
        found[numbers] = digests(tmp_path / numbers)
    assert found == recorded("captioner_folder", found)


def _captions(name: str, photos: list[Path]) -> None:
    captioner = Captioner.load(device="cpu", precision="fp32")
    answers = captioner.caption(photos)
    captions = {photo.name: answer.caption for photo, answer in zip(photos, answers, strict=True)}
    expected = recorded(name, {"machine": machine(), "captions": captions})
    differing = {
        key: (expected["captions"].get(key), caption) for key, caption in captions.items()
    }
    differing = {key: pair for key, pair in differing.items() if pair[0] != pair[1]}
    assert captions.keys() == expected["captions"].keys()
    allowed = 0 if machine() == expected["machine"] else len(photos) // 50
    assert len(differing) <= allowed, differing


def test_the_shipped_captioners_captions_of_the_samples() -> None:
    _captions("captions_of_samples", sorted(SAMPLES.glob("*.jpg")))


def test_the_shipped_captioners_captions_of_real_photos(shared_data: Path) -> None:
    names = (shared_data / "flickr8k" / "Flickr_8k.devImages.txt").read_text().split()
    photos = [shared_data / "flickr8k" / "Images" / name for name in sorted(names)[:DEV_PHOTOS]]
    _captions("captions_of_photos", photos)


# -------------------------------------------------------------------------------- runs

TRAIN = """
source: {kind: shapes, count: 60}
encoder: {kind: pixels, size: 96, patch: 16, frequencies: 4}
decoder:
  kind: top_down
  hidden_width: 48
  embedding_width: 32
  projection_width: 48
  attention_width: 32
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 1}
extract: {precision: fp32}
train:
  epochs: 3
  batch: 16
  lr: 1e-2
  precision: fp32
  log_steps: 1
  trackers: []
  schedule: {warmup: 2}
  validation: {samples_every: 2}
  workers: {count: 0, threads: 1, gpu: false}
"""
# Every part of training once: on features (with views, and self-critical training), and on pixels.
FEATURES = """
  objective: {scheduled_sampling: 0.3, attention_penalty: 0.1}
  optimiser: {averaging: 0.9, accumulate: 2}
  augmentation: {crop: 0.1, views: 1}
  self_critical: {epochs: 1, samples: 2, max_length: 12, bleu_4: 0.5}
"""
PIXELS = """
  optimiser: {kind: adam}
  augmentation: {crop: 0.2, flip: true}
"""


def _trained(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The log of a short run without its times, and the digest of the captioner that it kept."""
    monkeypatch.setattr(folder, "__version__", VERSION)
    (tmp_path / "run.yaml").write_text(TRAIN + text)
    out = tmp_path / "run"
    flags = ["--out", str(out), "--cache", str(tmp_path / "cache")]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *flags]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in line.items() if "second" not in key} for line in lines
    ]
    return {"machine": machine(), "log": timeless, "captioner": digests(out / "captioner")}


def _check_run(name: str, found: dict[str, Any]) -> None:
    expected = recorded(name, found)
    if expected["machine"] == found["machine"]:
        assert found == expected
        return
    assert [line["kind"] for line in found["log"]] == [line["kind"] for line in expected["log"]]
    for ours, theirs in zip(found["log"], expected["log"], strict=True):
        for key in ("training_loss", "validation_loss", "lr", "step", "epoch"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-2), (key, ours, theirs)


@pytest.mark.usefixtures("no_ray")
def test_a_training_run_on_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_run("training_on_features", _trained(FEATURES, tmp_path, monkeypatch))
    # Its feature tables were made by the same code as `raycap extract`'s, and their runs are named
    # alike.
    runs = sorted((tmp_path / "cache" / "features").glob("*/run.json"))
    extracts = [json.loads(run.read_text())["identity"] for run in runs]
    extracts.sort(key=lambda identity: "view" in identity)
    train = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    found = {"extract": extracts, "train": train}
    assert found == recorded("identities_of_training", found)


@pytest.mark.usefixtures("no_ray")
def test_a_training_run_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_run("training_on_pixels", _trained(PIXELS, tmp_path, monkeypatch))


@pytest.mark.usefixtures("no_ray")
def test_run_identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "__version__", VERSION)
    save_captioner(tmp_path / "captioner")
    pixels = ["--encoder", "pixels", "--encoder.size", "32", "--encoder.patch", "16"]
    commands = {
        "caption": ["--model", str(tmp_path / "captioner"), "--precision", "fp32", "--beam", "2"],
        "extract": ["--precision", "fp32", *pixels],
    }
    found = {}
    for command, flags in commands.items():
        out = tmp_path / command
        usual = ["--source.count", "4", "--split", "train", "--out", str(out), "--device", "cpu"]
        assert main([command, "shapes", "--source", "shapes", *usual, *flags]) == 0
        found[command] = json.loads((out / "run.json").read_text())["identity"]
    found["caption"]["captioner"] = "(differs with the weights)"
    assert found == recorded("identities", found)
