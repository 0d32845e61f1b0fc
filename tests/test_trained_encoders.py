"""Training with an encoder that learns too: what its batch norms do, what of it is run once."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from raycap import Captioner
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.device import choose_precision
from raycap.encoders import MobileNetV2, ResNet18, ViTB16
from raycap.storage.training_log import read_epochs
from raycap.training import Augmentation, Train
from raycap.training.setup import caches_stem

pytestmark = pytest.mark.usefixtures("no_ray")
CPU = choose_precision("cpu", "fp32")


@pytest.mark.parametrize(
    "trainable, batch_norm, trained",
    [
        ("all", "auto", "all"),
        ("all", "frozen", "none"),
        ("all", "trained", "all"),
        ("last", "auto", "none"),
        ("last", "trained", "last"),
        ("last", "synchronised", "last"),
    ],
)
def test_batch_norms_do_as_they_are_told(trainable: Any, batch_norm: Any, trained: str) -> None:
    encoder = ResNet18(weights="random", size=32, trainable=trainable).build()
    names = set(encoder.state_dict())
    encoder.for_training(CPU, batch_norm).train()
    assert set(encoder.state_dict()) == names  # those in a captioner's folder
    norms = {
        name: part.training
        for name, part in encoder.named_modules()
        if isinstance(part, nn.BatchNorm2d)
    }
    learning = {name for name, is_training in norms.items() if is_training}
    last = {name for name in norms if ".layer4." in name}
    assert learning == {"all": set(norms), "last": last, "none": set()}[trained]
    encoder.eval()
    assert not any(part.training for part in encoder.modules())


def test_the_stem_is_cached_where_nothing_changes_before_the_last_stage() -> None:
    last = ResNet18(weights="random", trainable="last")
    assert caches_stem(last, Train())
    assert caches_stem(last, Train(augmentation=Augmentation(flip=True, views=2)))
    assert not caches_stem(last, Train(augmentation=Augmentation(flip=True)))
    assert not caches_stem(last, Train(cache_frozen_stages=False))
    assert not caches_stem(ViTB16(weights="random", trainable="last"), Train())
    for trainable in ("none", "all"):
        assert not caches_stem(ResNet18(weights="random", trainable=trainable), Train())


@pytest.mark.parametrize("kind", [ResNet18, pytest.param(MobileNetV2, marks=pytest.mark.thorough)])
def test_the_stem_and_the_last_stage_are_the_encoder(kind: Any) -> None:
    import torch

    encoder = kind(weights="random", size=64, trainable="last", grid=1).build()
    stem = encoder.stem()
    assert stem is not None and not stem.is_trained
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    whole = encoder(pixels)
    torch.testing.assert_close(encoder.from_stem(stem(pixels).grid), whole)
    assert kind(weights="random", size=64, trainable="none").build().stem() is None
    assert kind(weights="random", size=64, trainable="all").build().stem() is None


@pytest.mark.thorough
def test_cached_stages_teach_what_pixels_teach(tmp_path: Path) -> None:
    """Up to the half precision of the cached grids; and the captioner is whole."""
    config = tmp_path / "run.yaml"
    config.write_text(
        """
source: {kind: shapes, count: 40}
encoder: {kind: resnet18, size: 32, weights: random, trainable: last}
decoder: {kind: recurrent, hidden_width: 24, embedding_width: 16, attention_width: 16,
          output_dropout: 0.0}
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 1}
extract: {precision: fp32}
train: {epochs: 2, batch: 8, lr: 0.01, encoder_lr: 0.001, precision: fp32, neighbours: 20}
"""
    )
    run = ["train", "--config", str(config), "--cache", str(tmp_path / "cache"), "--trackers"]
    run += ["--workers.count", "0", "--train.optimiser.averaging", "0.5"]
    curves = []
    for name, flag in (
        ("stages", "--cache-frozen-stages"),
        ("pixels", "--no-cache-frozen-stages"),
    ):
        assert main([*run, flag, "--out", str(tmp_path / name)]) == 0
        lines = read_epochs(tmp_path / name / "metrics.jsonl")
        curves.append([line[each] for line in lines for each in ("training_loss", "accuracy")])
    assert curves[0] == pytest.approx(curves[1], rel=0.02)
    assert {path.name for path in (tmp_path / "cache").iterdir()} >= {"features", "pixels"}
    first, second = (
        Captioner.load(tmp_path / name / "captioner") for name in ("stages", "pixels")
    )
    assert isinstance(first, TrainedCaptioner) and isinstance(second, TrainedCaptioner)
    assert set(first.encoder.state_dict()) == set(second.encoder.state_dict())
    assert first.neighbours is not None and second.neighbours is not None
    assert first.neighbours.vectors.shape == second.neighbours.vectors.shape
