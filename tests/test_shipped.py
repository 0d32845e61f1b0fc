"""The captioner that comes with raycap: small, whole by itself, and sensible of the samples."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from raycap import Captioner, device
from raycap.captioners import Caption
from raycap.cli import main
from raycap.flags import flags_in_words
from raycap.shipped import NAME, place_of

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
FOLDER = Path(place_of(NAME))
# A sensible caption contains one of these; the captioner may miss a few.
EXPECTED = {
    "baseball.jpg": ("baseball", "ball", "player", "game"),
    "beach.jpg": ("beach", "sand", "ocean", "water"),
    "bear.jpg": ("bear", "dog", "animal"),
    "children.jpg": ("girl", "child", "children", "boy", "kids"),
    "food.jpg": ("food", "plate", "table"),
    "horses.jpg": ("horse", "horses", "beach", "water"),
    "motorcycle.jpg": ("motorcycle", "bike", "motorbike", "bicycle"),
    "mountains.jpg": ("snow", "snowy", "mountain", "skis", "ski"),
    "portrait.jpg": ("man", "person"),
    "snowboard.jpg": ("air", "jump", "jumping", "jumps", "snow", "snowboarder", "skier"),
    "street.jpg": ("street", "people", "man", "city"),
    "tennis.jpg": ("tennis", "player", "racket", "ball"),
}


def test_it_is_small_and_contains_no_path_of_whoever_trained_it() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["encoder_included"] and config["encoder"]["weights"] == "torchvision"
    card = (FOLDER / "README.md").read_text()
    assert "not recorded" not in card and "Flickr8k" in card
    for private in (str(Path.home()), "/home/", "/tmp/", "/work"):
        assert private not in card + json.dumps(config)


@pytest.fixture(scope="module")
def answers() -> dict[str, Caption]:
    """To the samples, in this process, without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were to be downloaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "load_state_dict_from_url", refuse)
        photos = sorted(SAMPLES.glob("*.jpg"))
        found = Captioner.load(device="cpu", precision="fp32").caption(photos)
        return {path.name: one for path, one in zip(photos, found, strict=True)}


@pytest.fixture(scope="module")
def captions(answers: dict[str, Caption]) -> dict[str, str]:
    return {name: found.caption for name, found in answers.items()}


def test_captions_name_what_is_there(captions: dict[str, str]) -> None:
    assert sorted(captions) == sorted(EXPECTED)
    sensible = [
        name for name, found in captions.items() if set(found.split()) & set(EXPECTED[name])
    ]
    assert len(sensible) >= 9, captions
    assert len(set(captions.values())) >= 11


def test_it_is_not_sure_of_what_it_misreads(answers: dict[str, Caption]) -> None:
    unsure = {name for name, found in answers.items() if "not_sure" in found.flags}
    assert {"bear.jpg", "food.jpg"} <= unsure and len(unsure) <= 4, unsure
    right = {"tennis.jpg", "mountains.jpg", "horses.jpg"}
    assert not unsure & right, unsure


def test_one_photo_needs_nothing_but_its_name(
    captions: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(SAMPLES / "beach.jpg")]) == 0
    assert capsys.readouterr().out.strip() == captions["beach.jpg"]


def test_a_folder_needs_nothing_but_its_name(
    captions: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_ray: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    # In bf16, which some processors have, other captions would come.
    monkeypatch.setattr(device, "_fastest", lambda _: ("fp32", "as the test has it"))
    assert main(["caption", str(SAMPLES)]) == 0
    run = capsys.readouterr()
    assert "raycap: the model runs in this process" in run.err, "for so few, Ray is not started"
    table = pq.read_table(tmp_path / "captions" / "samples" / "captions").sort_by("key")
    # Arithmetic may round another way in a batch of another size.
    keys = table["key"].to_pylist()
    found = dict(zip(keys, table["caption"].to_pylist(), strict=True))
    assert sum(found[name] == captions[name] for name in captions) >= len(captions) - 1
    page = (tmp_path / "captions" / "samples" / "gallery.html").read_text()
    for name, caption in found.items():
        flags = flags_in_words(dict(zip(keys, table["flags"].to_pylist(), strict=True))[name])
        assert f"{name}: {caption}{flags}\n" in run.out
        assert caption in page


START = """
import sys
from raycap import device
from raycap.cli import main
assert main(["caption", sys.argv[1]]) == 0
print(sorted({"torchvision", "torch._dynamo", "sympy", "matplotlib", "tyro", "urllib3", "ray"}
             & set(sys.modules)))
"""


def test_one_photo_loads_neither_torchs_compiler_nor_what_else_it_does_not_need() -> None:
    command = [sys.executable, "-c", START, str(SAMPLES / "beach.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
