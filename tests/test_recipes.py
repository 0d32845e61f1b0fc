"""Every file in configs/ trains: on a few made pictures, with random weights in place of
downloaded ones."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycap import Captioner, device
from raycap.captioners.trained.folder import digest_of
from raycap.cli import main
from raycap.config import load
from raycap.encoders import MobileNetV2
from raycap.errors import UserError
from raycap.storage.training_log import read_epochs

pytestmark = pytest.mark.usefixtures("no_ray")

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (250, 250, 250),
}
PICTURES = 16
# The decoder of coco.yaml takes a gigabyte to train.
NARROW = [
    *["--decoder.hidden-width", "64", "--decoder.embedding-width", "64"],
    *["--decoder.projection-width", "64", "--decoder.attention-width", "64"],
]
HALVES = ["--source.fractions", "0.5", "0.5", "0"]
# Each file, the run in it, the form of data that it expects, and what else a small trial changes.
TRIALS = [
    ("smoke", "", "", ["--source.count", "40"]),
    ("flickr8k", "", "flickr", ["--self-critical.epochs", "1", "--augmentation.views", "1"]),
    ("compact", "", "flickr", ["--self-critical.epochs", "0", "--augmentation.views", "1"]),
    (
        "flickr30k",
        "",
        "flickr",
        ["--self-critical.epochs", "0", "--augmentation.views", "1", *HALVES],
    ),
    ("flickr30k", "", "flickr30k", ["--self-critical.epochs", "0", *HALVES]),
    ("flickr30k", "", "huggingface30k", ["--self-critical.epochs", "1"]),
    ("coco", "", "karpathy", ["--self-critical.epochs", "0", *NARROW]),
    ("coco", "", "karpathy2014", ["--self-critical.epochs", "1", *NARROW]),
    ("recipe-resnet50-gru-glove", "fine_tuned", "flickr", []),
    ("recipe-resnet50-gru-glove", "not_fine_tuned", "flickr", []),
    ("recipe-resnet50-bahdanau-gru-coco", "", "coco", []),
    ("recipe-resnet50-lstm-flickr8k", "", "flickr", ["--validation.samples-every", "2"]),
    ("recipe-resnet50-attention-lstm-flickr30k", "", "flickr", HALVES),
    ("recipe-resnet50-attention-lstm-flickr30k", "", "kaggle30k", HALVES),
    ("recipe-resnet101-attention-lstm-flickr8k", "", "flickr", []),
]
# Forms of data in which the recipes are tried once more.
REAL_LAYOUTS = ("flickr30k", "kaggle30k", "huggingface30k", "karpathy2014")
# One for each kind of encoder, decoder, data and training; the others are slow tests.
MARKS: dict[tuple[str, str], Any] = {
    ("smoke", ""): (),
    ("flickr8k", ""): pytest.mark.thorough,
    ("coco", ""): pytest.mark.thorough,
    ("recipe-resnet50-gru-glove", "fine_tuned"): pytest.mark.thorough,
    ("recipe-resnet50-bahdanau-gru-coco", ""): pytest.mark.thorough,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures and captions as Flickr8k, COCO and Karpathy's splits have them, and GloVe
    vectors."""
    root = tmp_path_factory.mktemp("data")
    captions: dict[str, list[str]] = {}
    for folder in ("flickr/Images", "coco/train2017", "coco/val2017", "karpathy/images"):
        (root / folder).mkdir(parents=True)
    for number in range(PICTURES):
        name, colour = f"{number:06}.jpg", list(COLOURS)[number % 4]
        captions[name] = [
            f"a {colour} wall .",
            f"The wall is painted in {colour} .",
            f"one {colour} wall",
        ] * 2
        split = "val2017" if number % 4 == number // 4 % 4 else "train2017"
        for folder in ("flickr/Images", f"coco/{split}", "karpathy/images"):
            Image.new("RGB", (80, 60), COLOURS[colour]).save(root / folder / name)
    lines = [
        f"{name}#{place}\t{text}\n"
        for name, texts in captions.items()
        for place, text in enumerate(texts)
    ]
    (root / "flickr/Flickr8k.token.txt").write_text("".join(lines))
    _write_coco(root / "coco", captions)
    _write_karpathy(root / "karpathy", captions)
    _write_flickr30k(root, captions)
    _write_karpathy(root / "karpathy2014", captions, "2014")
    words = {
        word for texts in captions.values() for text in texts for word in text.lower().split()
    }
    chance = np.random.default_rng(0)
    vectors = [
        f"{word} {' '.join(f'{value:.4f}' for value in chance.normal(size=100))}\n"
        for word in sorted(words)
    ]
    (root / "glove.txt").write_text("".join(vectors))
    return root


def _write_coco(root: Path, captions: dict[str, list[str]]) -> None:
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        names = sorted(path.name for path in (root / split).iterdir())
        data = {
            "images": [{"id": int(Path(name).stem), "file_name": name} for name in names],
            "annotations": [
                {
                    "id": 10 * int(Path(name).stem) + place,
                    "image_id": int(Path(name).stem),
                    "caption": text,
                }
                for name in names
                for place, text in enumerate(captions[name])
            ],
        }
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(data))


def _write_flickr30k(root: Path, captions: dict[str, list[str]]) -> None:
    """Flickr30k as its owners, Kaggle and Hugging Face ship it."""
    folders = {
        "flickr30k": "flickr30k-images",
        "kaggle30k": "flickr30k_images/flickr30k_images",
        "huggingface30k": "flickr30k-images",
    }
    for layout, folder in folders.items():
        shutil.copytree(root / "flickr/Images", root / layout / folder)
    lines = [
        (name, place, text) for name, texts in captions.items() for place, text in enumerate(texts)
    ]
    owners = "".join(f"{name}#{place}\t{text}\n" for name, place, text in lines)
    (root / "flickr30k/results_20130124.token").write_text(owners)
    bars = "".join(f"{name}| {place}| {text}\n" for name, place, text in lines)
    kaggle = root / "kaggle30k/flickr30k_images/results.csv"
    kaggle.write_text("image_name| comment_number| comment\n" + bars)
    with (root / "huggingface30k/flickr_annotations_30k.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for number, (name, texts) in enumerate(captions.items()):
            split = ["train", "train", "val", "test"][number % 4 if number > 3 else 0]
            writer.writerow([json.dumps(texts), "[]", split, name, number])


def _write_karpathy(root: Path, captions: dict[str, list[str]], year: str = "") -> None:
    """With a year, the photos lie in trainYEAR/ and valYEAR/, as COCO's do."""
    splits = ["train", "restval", "val", "test"]
    images: list[dict[str, Any]] = [
        {
            "filename": name,
            "imgid": number,
            "split": splits[number % 4] if number > 3 else "train",
            "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
        }
        for number, (name, texts) in enumerate(captions.items())
    ]
    for image in images if year else ():
        image["filepath"] = f"{'train' if image['split'] == 'train' else 'val'}{year}"
        folder = root / image["filepath"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(root.parent / "flickr/Images" / image["filename"], folder)
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))


@pytest.mark.parametrize(
    "name, run, form, changes",
    [
        pytest.param(
            *trial,
            id=" ".join((*trial[:2], trial[2] if trial[2] in REAL_LAYOUTS else "")).strip(),
            marks=pytest.mark.slow
            if trial[2] in REAL_LAYOUTS
            else MARKS.get(trial[:2], pytest.mark.slow),
        )
        for trial in TRIALS
    ],
)
def test_it_trains(
    name: str,
    run: str,
    form: str,
    changes: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Also on processors with bf16, in which so short a run may learn nothing.
    monkeypatch.setattr(device, "_fastest", lambda _: ("fp32", "as the test has it"))
    out = tmp_path / "run"
    arguments = ["train", "--config", str(CONFIGS / f"{name}.yaml"), "--out", str(out), *changes]
    arguments += [
        "--epochs",
        "2",
        "--batch",
        "8",
        "--trackers",
        "tensorboard",
        "--workers.count",
        "0",
        "--schedule.warmup",
        "0",
    ]
    # One folder for all: the recipes that look at the same pictures with the same encoder find
    # them made.
    arguments += ["--cache", str(data / "cache")]
    if run:
        arguments += ["--run", run]
    if form:
        where = data / form / "dataset_coco.json" if "karpathy" in form else data / form
        arguments[1:1] = [str(where)]
        arguments += [
            "--encoder.weights",
            "random",
            "--encoder.size",
            "32",
            "--vocabulary.min-count",
            "1",
        ]
    if "glove" in name:
        arguments += ["--vocabulary.glove", str(data / "glove.txt")]
    assert main(arguments) == 0
    curve = read_epochs(out / "metrics.jsonl")
    assert curve[1]["training_loss"] < curve[0]["training_loss"]
    assert {path.name for path in out.iterdir()} >= {
        "captioner",
        "facts.json",
        "learning_curve.png",
        "tensorboard",
    }
    captioner = Captioner.load(out / "captioner")
    [caption] = captioner.caption([Image.new("RGB", (80, 60), COLOURS["red"])])
    assert caption.succeeded
    trained = "encoder.trunk.layers.layer4.0.conv1.weight" in _names(out / "captioner")
    assert trained == (run == "fine_tuned")


def _names(captioner: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(captioner / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_each_config_is_tried() -> None:
    # Which is of sweeps, and tried there.
    configs = {path.stem for path in CONFIGS.glob("*.yaml")} - {"space"}
    assert configs == {name for name, *_ in TRIALS}


def test_a_file_with_several_runs_needs_one_named() -> None:
    path = str(CONFIGS / "recipe-resnet50-gru-glove.yaml")
    with pytest.raises(UserError, match=r"fine_tuned, not_fine_tuned.*--run"):
        load(path)
    with pytest.raises(UserError, match="did you mean 'fine_tuned'"):
        load(path, "fine_tune")
    with pytest.raises(UserError, match="only one run"):
        load(str(CONFIGS / "smoke.yaml"), "any")
    fine, frozen = load(path, "fine_tuned"), load(path, "not_fine_tuned")
    assert (fine.encoder.trainable, frozen.encoder.trainable) == ("last", "none")
    assert (fine.decoder.embedding_trainable, frozen.decoder.embedding_trainable) == (True, False)
    assert fine.vocabulary == frozen.vocabulary


def usual(data: Path) -> list[str]:
    flags = [
        "train",
        str(data / "flickr"),
        "--config",
        str(CONFIGS / "compact.yaml"),
        "--cache",
        str(data / "cache"),
    ]
    flags += [
        "--encoder.weights",
        "random",
        "--encoder.size",
        "32",
        "--vocabulary.min-count",
        "1",
        "--trackers",
    ]
    flags += [
        "--batch",
        "8",
        "--workers.count",
        "0",
        "--augmentation.views",
        "0",
        "--augmentation.crop",
        "0",
    ]
    return [*flags, "--augmentation.no-flip", "--self-critical.epochs", "1"]


@pytest.mark.thorough
def test_a_run_looks_with_the_encoder_of_the_captioner_that_it_starts_from(
    data: Path, tmp_path: Path
) -> None:
    """Fine-tuned first, then frozen as it has become: features are made again, and the captioner
    stands alone."""
    tuned, frozen = tmp_path / "tuned", tmp_path / "frozen"
    learning = ["--encoder.trainable", "last", "--encoder-lr", "0.01", "--epochs", "1"]
    learning += ["--self-critical.epochs", "0"]
    assert main([*usual(data), *learning, "--out", str(tuned)]) == 0
    start = ["--start-from", str(tuned / "captioner"), "--epochs", "0"]
    assert main([*usual(data), *start, "--out", str(frozen)]) == 0
    first, second = (
        digest_of(Captioner.load(run / "captioner").encoder) for run in (tuned, frozen)
    )
    untouched = digest_of(MobileNetV2(weights="random", size=32).build())
    assert first == second != untouched


@pytest.mark.thorough
def test_a_run_starts_from_a_captioner_of_the_same_make_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision  # it takes seconds, and each test worker collects this file

    first, others = tmp_path / "first", tmp_path / "others.pt"
    assert (
        main([*usual(data), "--epochs", "1", "--self-critical.epochs", "0", "--out", str(first)])
        == 0
    )
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), others)
    start = ["--start-from", str(first / "captioner"), "--encoder.weights", str(others)]
    assert main([*usual(data), *start, "--out", str(tmp_path / "second")]) == 2
    assert "trained on other weights of its encoder" in capsys.readouterr().err
    start = [
        "--start-from",
        "shipped",
        "--decoder.hidden-width",
        "64",
        "--out",
        str(tmp_path / "third"),
    ]
    assert main([*usual(data), *start]) == 2
    errors = capsys.readouterr().err
    assert (
        "encoder.size was 224, now 32" in errors
        and "decoder.hidden_width was 320, now 64" in errors
    )
