"""Encoders in int8: close to those in fp32, the same in every batch, refused where they cannot
be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_captioner import photos, save_captioner
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from raycap import device
from raycap.bulk.features import features_job
from raycap.bulk.options import ExtractOptions
from raycap.captioners.huggingface.options import HuggingFaceModel
from raycap.captioners.trained import TrainedCaptioner, TrainedOptions
from raycap.captioners.trained.captioner import ROUND_ALIKE
from raycap.captioners.trained.folder import encoder_of
from raycap.cli import main
from raycap.cluster import Cluster
from raycap.device import INT8_UNITS, Precision, check_supported, choose_precision
from raycap.encoders import Pixels
from raycap.encoders.encoder import CACHED_PICTURES, Encoder
from raycap.encoders.int8 import (
    DEVIATIONS,
    Convolution,
    Maps,
    Residual,
    _built,
    supports_int8,
)
from raycap.encoders.int8_layers import Limits, Steps
from raycap.encoders.networks import BasicBlock, Bottleneck, ResNet
from raycap.encoders.preprocessing import Preprocessing
from raycap.encoders.torchvision_models import ConvolutionalTrunk
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.shipped import NAME, place_of
from raycap.sources import Folder

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
vnni = pytest.mark.skipif(
    not INT8_UNITS & device._processor_flags(),
    reason=f"the processor has none of {', '.join(sorted(INT8_UNITS))}",
)


@pytest.fixture(scope="module")
def shipped() -> TrainedCaptioner:
    return TrainedCaptioner.read(device="cpu", precision="fp32")


def pictures(size: int, number: int) -> Tensor:
    """Coarse noise, with more low frequencies than high ones, as photos have."""
    chance = torch.Generator().manual_seed(3)
    parts = [
        nn.functional.interpolate(torch.randn(number, 3, side, side, generator=chance), size)
        for side in (2, 4, 8, 16)
    ]
    return (128 + 40 * torch.stack(parts).sum(0)).clamp(0, 255).to(torch.uint8)


def settled(encoder: Encoder) -> Encoder:
    """With the statistics of these pictures in its batch norms, as trained ones have them."""
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    with torch.no_grad():
        encoder(pictures(encoder.size, 32))
    for norm in norms:
        norm.eval()
    return encoder


def features(encoder: Encoder, pixels: Tensor, precision: device.PrecisionName) -> Tensor:
    """The grids and the vectors [B, P + 1, D]."""
    opened = encoder.for_inference(choose_precision("cpu", precision))
    with torch.inference_mode():
        grid, vector = opened(pixels)
    return torch.cat([grid, vector[:, None]], 1)


def photos_as_pixels(captioner: TrainedCaptioner, number: int) -> Tensor:
    """Samples as the captioner takes them [number, 3, S, S]."""
    loaded = captioner.load_pictures(sorted(SAMPLES.glob("*.jpg"))[:number])
    squares = [found.pixels for found in loaded if found.pixels is not None]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


def check_close(encoder: Encoder, pixels: Tensor, least: float) -> None:
    exact, stored = features(encoder, pixels, "fp32"), features(encoder, pixels, "int8")
    assert stored.dtype == torch.float32 and stored.shape == exact.shape
    assert not torch.equal(stored, exact)
    assert cosine_similarity(stored.flatten(1), exact.flatten(1)).min() > least
    assert 0.95 < float(stored.norm() / exact.norm()) < 1.05


@vnni
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_features_of_a_resnet_are_close_to_those_in_fp32(
    block: type[BasicBlock] | type[Bottleneck],
) -> None:
    layers = list(ResNet(block, (1, 2, 1, 1)).children())[:-2]
    encoder = settled(Encoder(ConvolutionalTrunk(nn.Sequential(*layers)), Preprocessing(64)))
    check_close(encoder, pictures(64, 4), 0.98)


@vnni
def test_a_sum_has_room_for_both_of_its_parts() -> None:
    two = torch.ones(2)
    maps = Maps(mean=1 * two, deviation=3 * two, steps=Steps(1.0, 0), side=4)
    convolution = Convolution(nn.Conv2d(2, 2, 1), mean=2 * two, deviation=4 * two, limits=Limits())
    _, summed = _built(Residual([convolution], None, Limits()), maps, is_last=False)
    assert torch.allclose(summed.mean, 3 * two, rtol=0.02)
    assert torch.allclose(summed.deviation, 5 * two, rtol=0.02)
    size, zero = summed.steps
    assert abs(size * (255 - zero) - (3 + 5 * DEVIATIONS)) < size
    assert abs(-size * zero - (3 - 5 * DEVIATIONS)) < size


@vnni
def test_features_of_mobilenet_are_close_to_those_in_fp32(shipped: TrainedCaptioner) -> None:
    pixels = photos_as_pixels(shipped, 3)
    check_close(shipped.encoder, pixels, 0.97)
    options = replace(shipped.plan.encoder, trainable="last")
    stem = encoder_of(NAME, options).stem()  # its last layer is a block with a shortcut
    assert stem is not None
    check_close(stem, pixels, 0.95)


@vnni
def test_a_picture_alone_has_the_features_that_it_has_in_a_batch(
    shipped: TrainedCaptioner,
) -> None:
    pixels = photos_as_pixels(shipped, 2)
    pixels = torch.cat([pixels[:1].repeat(CACHED_PICTURES - 1, 1, 1, 1), pixels, pixels[:1]])
    together = features(shipped.encoder, pixels, "int8")
    for row in (0, len(pixels) - 2, len(pixels) - 1):
        alone = features(shipped.encoder, pixels[row : row + 1], "int8")
        assert torch.equal(alone[0], together[row])


@vnni
def test_a_photo_alone_has_the_caption_that_it_has_in_a_batch() -> None:
    options = TrainedOptions.read(place_of(NAME), "", None, batch=32, precision="int8")
    captioner = options.open("cpu", 1)
    assert captioner._padded(1) == ROUND_ALIKE, "a last batch of one takes no longer"
    files = sorted(SAMPLES.glob("*.jpg"))[:4]
    together, [alone] = captioner.caption(files * 5), captioner.caption(files[3:])
    assert alone.caption
    for place in (3, 19):
        found = together[place]
        assert (alone.caption, alone.score) == (found.caption, found.score)


@vnni
@pytest.mark.usefixtures("no_ray")
def test_it_is_another_run_and_the_batch_is_no_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    run = ["caption", str(folder), "--out", str(out), "--actors", "1", "--device", "cpu"]
    assert main([*run, "--precision", "int8", "--batch", "16"]) == 0
    identity = json.loads((out / "run.json").read_text())["identity"]
    assert identity["precision"] == "int8" and "batch" not in identity
    assert main([*run, "--precision", "fp32"]) == 2
    assert "precision was 'int8', now 'fp32'" in " ".join(capsys.readouterr().err.split())


def test_encoders_without_it_say_so_before_any_work(tmp_path: Path) -> None:
    assert supports_int8(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()))
    assert not supports_int8(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU()))
    with pytest.raises(UserError, match="only the ResNet and MobileNetV2"):
        Pixels(size=64).build().check_precision("int8")
    save_captioner(tmp_path / "captioner")
    with pytest.raises(UserError, match="only the ResNet and MobileNetV2"):
        TrainedOptions.read(str(tmp_path / "captioner"), "", None, batch=8, precision="int8")
    with pytest.raises(UserError, match="only the ResNet and MobileNetV2"):
        features_job(
            Pixels(size=64),
            Pixels(size=64).build(),
            Folder("photos"),
            ExtractOptions(out="features", precision="int8"),
            Fetch(),
            Reading(),
            Cluster(),
        )


def test_other_models_have_none() -> None:
    with pytest.raises(UserError, match="only captioners that raycap trained"):
        HuggingFaceModel().captioner("smolvlm", None, "int8")


def test_devices_without_it_say_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--device cpu"):
        check_supported(Precision(torch.device("cuda"), torch.int8, "as asked for"))
    monkeypatch.setattr(device, "_processor_flags", lambda: {"avx2", "avx512_bf16"})
    with pytest.raises(UserError, match="neither avx512_vnni nor avx_vnni"):
        choose_precision("cpu", "int8")
    assert choose_precision("cpu").name == "bf16", "auto never takes it"
