"""Encoders: shape and order of the grid, real weights, trainable layers, folding and errors."""

import dataclasses
import importlib
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from raycap import device
from raycap.encoders import (
    ENCODERS,
    MobileNetV2,
    MobileNetV3Small,
    Pixels,
    ResNet18,
    ResNet50,
    Timm,
    ViTB16,
)
from raycap.encoders.encoder import CACHED_PICTURES, Encoder
from raycap.encoders.preprocessing import Preprocessing
from raycap.errors import UserError

TORCHVISION = [kind for kind in ENCODERS if kind not in ("timm", "pixels")]
WIDTHS = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "mobilenet_v2": 1280,
}
WIDTHS |= {
    "mobilenet_v3_large": 960,
    "mobilenet_v3_small": 576,
    "efficientnet_b0": 1280,
    "vit_b_16": 768,
}
# Others of the same make are smaller: ResNets, and timm's vision transformers.
LARGE = ("resnet101", "vit_b_16")
# ImageNet's classes of photos that leave no doubt
EVIDENT = {
    285: 294,
    885: 752,
    2153: 981,
    6012: 954,
    8844: 954,
    10092: 669,
    12062: 348,
    58636: 919,
    117425: 470,
}
EVIDENT |= {121647: 963, 226111: 919, 252332: 919, 331352: 861, 361919: 970}


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """It takes seconds to load, and each test worker collects this file."""
    return importlib.import_module("torchvision")


def pictures(size: int, number: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (number, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(1)
    )


def features(encoder: Encoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return encoder(pixels)


def worn(encoder: Encoder) -> Encoder:
    """Batch norms as training leaves them: a fold that forgets one of their four vectors shows."""
    generator = torch.manual_seed(2)
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return encoder


def test_options_need_no_torch() -> None:
    program = "import sys, raycap.encoders, raycap.device\n"
    program += "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", ENCODERS)
def test_defaults_are_usable_and_frozen(kind: str) -> None:
    options = ENCODERS[kind]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.size = 1  # type: ignore[misc]
    assert len(set(ENCODERS.values())) == len(ENCODERS)


def test_resnet50_at_224_is_49_cells_of_2048() -> None:
    encoder = ResNet50(weights="random").build()
    grid, vector = features(encoder, pictures(224, 1))
    assert grid.shape == (1, 49, 2048) and vector.shape == (1, 2048)
    assert (encoder.positions, encoder.width, encoder.side) == (49, 2048, 7)
    assert (encoder.size, encoder.resize, encoder.interpolation) == (224, "squash", "bilinear")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.thorough if kind in LARGE else ())
        for kind in TORCHVISION
    ],
)
def test_the_cut_network_is_torchvisions(kind: str, torchvision: ModuleType) -> None:
    """The vector is what torchvision's own network hands to its classifier."""
    from raycap.encoders.weights import fixed_seed

    size = 64
    encoder = ENCODERS[kind](weights="random", size=size).build()
    with fixed_seed():
        network = torchvision.models.get_model(
            kind, **({"image_size": size} if kind == "vit_b_16" else {})
        ).eval()
    for head in {"fc", "classifier", "heads"} & {name for name, _ in network.named_children()}:
        setattr(network, head, nn.Identity())
    pixels = pictures(size, 2)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = network(normalise(pixels / 255))
    grid, vector = features(encoder, pixels)
    scale = expected.abs().max()
    assert torch.allclose(vector / scale, expected / scale, atol=1e-5)
    assert (
        grid.shape == (2, encoder.side**2, WIDTHS[kind]) and encoder.positions == encoder.side**2
    )
    if kind != "vit_b_16":
        assert torch.allclose(grid.mean(1), vector, atol=1e-5 * float(scale))


@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2"])
def test_the_size_of_the_grid_is_known_without_a_pass(kind: str) -> None:
    for size in (32, 33, 65, 224):
        encoder = ENCODERS[kind](size=size).build(pretrained=False)
        with torch.no_grad():
            grid = encoder.trunk(torch.zeros(1, 3, size, size))[0]
        assert grid.shape[1:] == (encoder.width, encoder.side, encoder.side)


def test_pictures_pass_a_processor_in_parts_with_the_same_features() -> None:
    encoder = ENCODERS["mobilenet_v2"](size=64, weights="random").build()
    encode = encoder.for_inference(device.choose_precision("cpu", "fp32"))
    pixels = pictures(64, 2 * CACHED_PICTURES)
    sizes = []
    encode.trunk.register_forward_pre_hook(lambda trunk, given: sizes.append(len(given[0])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            together = encode(pixels)
            parts = [encode(part) for part in pixels.split(CACHED_PICTURES)]
    finally:
        torch.set_num_threads(threads)
    assert sizes == 4 * [CACHED_PICTURES]
    for number, name in enumerate(together._fields):
        expected = torch.cat([part[number] for part in parts])
        assert torch.equal(together[number], expected), name


@pytest.mark.parametrize("numbers", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2", "pixels"])
def test_a_picture_alone_is_that_picture_in_a_batch(
    kind: str, numbers: device.PrecisionName
) -> None:
    options = {"size": 64} if kind == "pixels" else {"size": 64, "weights": "random"}
    encoder = (
        ENCODERS[kind](**options).build().for_inference(device.choose_precision("cpu", numbers))
    )
    pixels = pictures(64, 5)
    grid, vector = features(encoder, pixels)
    for row in range(5):
        alone = features(encoder, pixels[row : row + 1])
        assert torch.allclose(
            alone[0][0], grid[row], rtol=1e-4, atol=1e-5 * float(grid.abs().max())
        )
        assert torch.allclose(
            alone[1][0], vector[row], rtol=1e-4, atol=1e-5 * float(vector.abs().max())
        )


def test_positions_go_row_by_row() -> None:
    encoder = Pixels(size=96, patch=32).build()
    black = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    lit = black.clone()
    lit[:, :, :32, 64:] = 255  # top right
    changed = (features(encoder, lit)[0] != features(encoder, black)[0]).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [2]


def test_grid_pools_and_repeats() -> None:
    def grid(side: int | None) -> Tensor:
        encoder = ResNet18(weights="random", size=64, grid=side).build()
        cells, _ = features(encoder, pictures(64))
        assert cells.shape[1] == encoder.positions == encoder.side**2
        return cells.unflatten(1, (encoder.side, encoder.side))  # [B, H, W, D]

    plain = grid(None)
    assert torch.allclose(grid(1)[:, 0, 0], plain.mean((1, 2)), atol=1e-5)
    assert torch.allclose(
        grid(2 * plain.shape[1]), plain.repeat_interleave(2, 1).repeat_interleave(2, 2), atol=1e-6
    )


def test_pixels_keeps_mean_colour_and_needs_nothing_saved() -> None:
    encoder = Pixels(size=64, patch=16, frequencies=4).build()
    pixels = pictures(64)
    grid, vector = features(encoder, pixels)
    assert (
        grid.shape == (3, 16, 48) and not encoder.state_dict() and not list(encoder.parameters())
    )
    # [B, 3, 4, 4]
    colours = ((pixels / 255 - 0.5) / 0.25).unfold(2, 16, 16).unfold(3, 16, 16).mean((4, 5))
    constant = grid.unflatten(2, (3, 16))[:, :, :, 0]  # the frequency 0 of each colour
    assert torch.allclose(constant, colours.flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.allclose(vector, grid.mean(1), atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
)
def test_folding_changes_no_feature(kind: str) -> None:
    encoder = worn(ENCODERS[kind](weights="random", size=64).build())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    pixels = pictures(64)
    grid, vector = features(encoder, pixels)
    exact = encoder.for_inference(device.choose_precision("cpu", "fp32"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in exact.modules())
    for ours, theirs in zip(features(exact, pixels), (grid, vector), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    halved = encoder.for_inference(device.choose_precision("cpu", "bf16"))
    assert {part.dtype for part in halved.trunk.parameters()} == {torch.bfloat16}
    half = features(halved, pixels)
    assert half[0].dtype == torch.float32
    assert cosine_similarity(half[1], vector).min() > 0.99
    after = encoder.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(after[key], before[key]) for key in after
    )


# The first layer of the last stage: its name in torchvision, or its index in the list of layers.
LAST_STAGES = {
    "resnet18": "layers.layer4",
    "resnet50": "layers.layer4",
    "mobilenet_v2": "layers.14",
}
LAST_STAGES |= {"mobilenet_v3_small": "layers.9", "efficientnet_b0": "layers.6"}
LAST_STAGES |= {"vit_b_16": "blocks.layers.encoder_layer_11"}


@pytest.mark.parametrize("kind", LAST_STAGES)
def test_only_the_last_stage_trains(kind: str) -> None:
    with torch.device("meta"):  # no numbers are drawn
        encoder = ENCODERS[kind](weights="random", size=32, trainable="last").build()
    names = [name for name, _ in encoder.named_parameters()]
    first = next(
        place for place, name in enumerate(names) if name.startswith(f"trunk.{LAST_STAGES[kind]}.")
    )
    assert [name for name, value in encoder.named_parameters() if value.requires_grad] == names[
        first:
    ]


def test_none_or_all_trains() -> None:
    frozen, whole = (
        ResNet18(weights="random", size=32, trainable=what).build() for what in ("none", "all")
    )
    assert not list(frozen.trainable_parameters())
    assert len(list(whole.trainable_parameters())) == len(list(whole.parameters()))
    assert all(part.training for part in whole.train().modules())


def test_the_last_stage_learns_and_no_statistics_change() -> None:
    encoder = ResNet18(weights="random", size=64, trainable="last").build().train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    optimiser = torch.optim.SGD(encoder.trainable_parameters(), lr=0.1)
    encoder(pictures(64)).grid.square().mean().backward()
    optimiser.step()
    changed = {
        key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])
    }
    assert all(key.startswith("trunk.layers.layer4.") for key in changed)
    assert {"trunk.layers.layer4.0.conv1.weight", "trunk.layers.layer4.0.bn1.weight"} <= changed
    assert not any("running" in key or "batches" in key for key in changed)


def test_state_dict_travels_into_an_encoder_without_weights() -> None:
    encoder = worn(MobileNetV3Small(weights="random", size=64).build())
    # No download: the caller brings the weights.
    other = MobileNetV3Small(size=64).build(pretrained=False)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(features(other, pictures(64))[0], features(encoder, pictures(64))[0])


def evident(shared_data: Path) -> tuple[Tensor, Tensor]:
    files = [shared_data / "coco-mini" / "photos" / f"{number:012d}.jpg" for number in EVIDENT]
    photos = [
        Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        for file in files
    ]
    classes = torch.tensor(list(EVIDENT.values()))
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2), classes


def chance_of_truth(
    encoder: Encoder,
    weight: Tensor,
    bias: Tensor,
    shared_data: Path,
) -> tuple[Tensor, Tensor]:
    """The file's own classifier on the vector: is the class right, and how probable was it held to
    be."""
    pixels, classes = evident(shared_data)
    scores = features(encoder, pixels)[1] @ weight.float().T + bias.float()
    return scores.argmax(1) == classes, scores.softmax(1)[torch.arange(len(classes)), classes]


@pytest.mark.thorough
def test_the_he_layout_of_real_weights(shared_data: Path, shared_weights: Path) -> None:
    file = str(shared_weights / "resnet50_he.safetensors")
    head = load_file(file)
    chosen = device.choose_precision("cpu", "fp32")
    right, wrong = (
        chance_of_truth(
            ResNet50(weights=file, stride_in_1x1=layout).build().for_inference(chosen),
            head["fc.weight"],
            head["fc.bias"],
            shared_data,
        )
        for layout in (True, False)
    )
    assert right[0].all()
    # The wrong layout sees the same things, and is unsure.
    assert right[1].mean() > wrong[1].mean() + 0.1


def test_real_mobilenet_weights(shared_data: Path, shared_weights: Path) -> None:
    file = str(shared_weights / "mobilenet_v2.pth")
    head = torch.load(file, weights_only=True)
    encoder = MobileNetV2(weights=file).build()
    right, _ = chance_of_truth(
        encoder, head["classifier.1.weight"], head["classifier.1.bias"], shared_data
    )
    assert (encoder.positions, encoder.width) == (49, 1280) and right.sum() >= len(EVIDENT) - 2


@pytest.fixture(scope="module")
def small_state(torchvision: ModuleType) -> dict[str, Tensor]:
    """A whole MobileNetV3, classifier and all, as torchvision would save it."""
    torch.manual_seed(3)
    state = torchvision.models.mobilenet_v3_small().state_dict()
    return {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }


def test_files_of_both_kinds_load_cast_and_without_head(
    tmp_path: Path, small_state: dict[str, Tensor]
) -> None:
    save_file(small_state, tmp_path / "a.safetensors")
    torch.save(
        {key: value for key, value in small_state.items() if "num_batches" not in key},
        tmp_path / "b.pth",
    )
    encoders = [
        MobileNetV3Small(weights=str(tmp_path / name)).build()
        for name in ("a.safetensors", "b.pth")
    ]
    encoders.append(MobileNetV3Small(weights=(tmp_path / "b.pth").as_uri()).build())
    for encoder in encoders:
        first = encoder.state_dict()["trunk.layers.0.0.weight"]
        assert first.dtype == torch.float32
        assert torch.equal(first, small_state["features.0.0.weight"].float())


def test_a_download_of_before_is_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_state: dict[str, Tensor],
    torchvision: ModuleType,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url
    torch.save(small_state, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    encoder = MobileNetV3Small().build()
    assert torch.equal(
        encoder.state_dict()["trunk.layers.0.0.weight"], small_state["features.0.0.weight"].float()
    )


def test_offline_the_message_names_the_option_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # where no server listens
    monkeypatch.setattr(urllib.request, "_opener", None)  # it would remember other proxies
    with pytest.raises(
        UserError, match=r"weights of resnet18 could not be downloaded .*--encoder\.weights FILE"
    ):
        ResNet18().build()
    with pytest.raises(UserError, match="no weights V9 of resnet18: it has IMAGENET1K_V1"):
        ResNet18(weights="torchvision:V9").build()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


def test_a_pickled_module_is_refused_and_never_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, tmp_path / "trap.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("trap.pth", "module.pth"):
        with pytest.raises(UserError, match=f"{name} holds more than tensors"):
            ResNet18(weights=str(tmp_path / name)).build()
    assert not sprung.exists()


def test_unusable_files_are_refused(tmp_path: Path, small_state: dict[str, Tensor]) -> None:
    save_file(small_state, tmp_path / "whole.safetensors")
    torch.save(small_state, tmp_path / "whole.pth")
    for name in ("whole.safetensors", "whole.pth"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"torn-{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<!DOCTYPE html> not found")
    torch.save({"epoch": 3, "state_dict": small_state}, tmp_path / "checkpoint.pth")
    save_file(
        small_state | {"features.0.0.weight": torch.zeros(8, 3, 3, 3)},
        tmp_path / "narrow.safetensors",
    )
    save_file({**small_state, "neck.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    few = {key: value for key, value in small_state.items() if key != "features.0.0.weight"}
    save_file(few, tmp_path / "few.safetensors")
    for name, reason in {
        "nowhere.pth": "cannot read the weights",
        "torn-whole.safetensors": "not a whole safetensors file or torch state dict",
        "torn-whole.pth": "not a whole safetensors file or torch state dict",
        "empty.pth": "not a whole safetensors file or torch state dict",
        "page.pth": "state dict: its first bytes are of neither",
        "checkpoint.pth": "holds a mapping of epoch, state_dict, not a state dict",
        "few.safetensors": r"it lacks features\.0\.0\.weight$",
        "narrow.safetensors": r"its features\.0\.0\.weight is \[8, 3, 3, 3\], not \[16, 3, 3, 3\]",
        "more.safetensors": r"it has also neck\.weight$",
    }.items():
        with pytest.raises(UserError, match=reason):
            MobileNetV3Small(weights=str(tmp_path / name)).build()
    with pytest.raises(
        UserError, match=r"it lacks conv1\.weight, .* more and has also features\.0\.0\.weight"
    ):
        ResNet18(weights=str(tmp_path / "whole.pth")).build()


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("resnet50", {"weights": "none"}, "describes nothing"),
        ("timm", {"weights": ""}, "describes nothing"),
        ("resnet50", {"grid": 0}, "grid is 0"),
        ("resnet50", {"size": 16}, "at least 32 pixels"),
        ("resnet50", {"std": (0.2, 0.0, 0.2)}, "above 0"),
        ("vit_b_16", {"size": 225}, "give 240, for example"),
        ("pixels", {"patch": 50}, "give 250, for example"),
        ("pixels", {"frequencies": 33}, "give 1 to 32"),
        ("timm", {"model": ""}, "give timm's name"),
        ("timm", {"size": 0}, "size is 0"),
    ],
)
def test_impossible_options_are_refused(
    kind: str, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        ENCODERS[kind](**options)


def test_wrong_pixels_are_an_error() -> None:
    encoder = Pixels(size=64).build()
    for wrong in (pictures(32), pictures(64).float(), pictures(64).permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="must be uint8"):
            encoder(wrong)


def test_vit_weights_stretch_to_another_size(tmp_path: Path) -> None:
    with torch.device("meta"):  # to draw 86 million numbers takes seconds
        encoder = ViTB16(weights="random", size=64).build()
    encoder = encoder.to_empty(device="cpu")
    for part in encoder.parameters():
        part.data.zero_()
    encoder.trunk.patches.weight.data.uniform_(-0.1, 0.1)
    save_file(torchvision_names(encoder), tmp_path / "vit.safetensors")
    larger = ViTB16(weights=str(tmp_path / "vit.safetensors"), size=96).build()
    assert larger.positions == 36
    assert torch.equal(larger.trunk.patches.weight, encoder.trunk.patches.weight.half().float())


def torchvision_names(encoder: Encoder) -> dict[str, Tensor]:
    renamed = {"patches": "conv_proj", "blocks": "encoder"}
    state = {}
    for key, value in encoder.trunk.state_dict().items():
        first, dot, rest = key.partition(".")
        state[renamed.get(first, first) + dot + rest] = value.half()
    return state


def test_precision_is_derived_with_a_reason_and_can_be_forced() -> None:
    derived = device.choose_precision("cpu")
    assert derived.dtype in (torch.float32, torch.bfloat16) and "processor" in str(derived)
    forced = device.choose_precision("cpu", "bf16")
    assert str(forced) == "cpu in bfloat16: as asked for"
    with forced.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with device.choose_precision("cpu", "fp32").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(UserError, match="no device 'gpu'"):
        device.choose_precision("gpu")
    with pytest.raises(UserError, match="torch sees"):
        device.choose_precision("cuda:99")


def test_auto_takes_an_apple_gpu_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without one can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    chosen = device.choose_precision()
    assert (chosen.device.type, chosen.dtype) == ("mps", torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device._device("auto").type == "cuda"


def test_a_fine_tuned_encoder_trains_under_autocast() -> None:
    chosen = device.choose_precision("cpu", "bf16")
    encoder = (
        ResNet18(weights="random", size=64, trainable="last").build().for_training(chosen).train()
    )
    with chosen.autocast():
        encoder(pictures(64)).vector.square().mean().backward()
    gradients = [parameter.grad for parameter in encoder.trainable_parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


# A vision transformer, a CLIP tower, a ConvNeXt; then maps with the channels last, and networks
# with odd vectors.
@pytest.mark.parametrize(
    ("model", "positions", "width", "class_token"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 196, 192, True),
        pytest.param(
            *("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 196, 256, True),
            marks=pytest.mark.thorough,
        ),
        ("convnext_atto.d2_in1k", 49, 320, False),
        pytest.param(
            *("swin_tiny_patch4_window7_224.ms_in1k", 49, 768, False),
            marks=pytest.mark.thorough,
        ),
        ("mobilenetv3_small_050.lamb_in1k", 49, 288, False),
    ],
)
def test_timm_models(
    model: str, positions: int, width: int, class_token: bool, torchvision: ModuleType
) -> None:
    timm = pytest.importorskip("timm")
    encoder = Timm(model=model, weights="random", trainable="last").build()
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    assert encoder.preprocessing == Preprocessing(
        224, "crop", config["interpolation"], config["mean"], config["std"]
    )
    assert (encoder.positions, encoder.width) == (positions, width)
    pixels = pictures(224, 2)
    grid, vector = features(encoder, pixels)
    normalise = torchvision.transforms.Normalize(config["mean"], config["std"])
    with torch.inference_mode():
        raw = encoder.trunk.network.forward_features(normalise(pixels / 255))
    # Where channels are last.
    cells = raw[:, -positions:] if raw.ndim == 3 else raw.reshape(2, positions, width)
    if raw.ndim == 4 and raw.shape[1] == width:
        cells = raw.flatten(2).transpose(1, 2)
    assert torch.allclose(grid, cells, atol=1e-4)
    if class_token:
        assert torch.allclose(vector, raw[:, 0], atol=1e-4)
    trained = len(list(encoder.trainable_parameters()))
    assert 0 < trained < len(list(encoder.parameters()))
    half = features(encoder.for_inference(device.choose_precision("cpu", "bf16")), pixels)
    assert cosine_similarity(half.grid, grid, dim=2).mean() > 0.99


def test_timm_files_sizes_and_choices(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = "vit_tiny_patch16_224"
    torch.manual_seed(4)
    # With its classifier.
    save_file(timm.create_model(model).state_dict(), tmp_path / "vit.safetensors")
    chosen = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "resize": "squash",
        "interpolation": "bilinear",
    }
    encoder = Timm(
        model=model, weights=str(tmp_path / "vit.safetensors"), size=64, grid=2, **chosen
    ).build()
    assert encoder.preprocessing == Preprocessing(
        64, "squash", "bilinear", chosen["mean"], chosen["std"]
    )
    assert features(encoder, pictures(64))[0].shape == (3, 4, 192)
    with pytest.raises(UserError, match="not of this encoder"):
        Timm(model="vit_small_patch16_224", weights=str(tmp_path / "vit.safetensors")).build()
    with pytest.raises(UserError, match="give 112, for example"):
        Timm(model=model, weights="random", size=100).build()
    with pytest.raises(UserError, match="cannot take pictures of 96 pixels"):
        Timm(model="mixer_s32_224", weights="random", size=96).build()


def test_timm_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="close: vit_tiny_patch16_224"):
        Timm(model="vit_tiny_patch16_22").build()
    with pytest.raises(UserError, match=r"it has convnext_atto\.d2_in1k"):
        Timm(model="convnext_atto.nope").build()
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be downloaded .*--encoder\.weights FILE"):
        Timm(model="convnext_atto.d2_in1k").build()


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"pip install 'raycap\[timm\]'"):
        Timm().build()
