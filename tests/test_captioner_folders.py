"""TrainedCaptioner folders from anybody: nothing outside of them is opened, nothing large is made,
nothing is printed."""

import hashlib
import json
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from server import Server, serving
from small_captioner import SENTENCES, save_captioner

from raycap import Captioner
from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.captioners.trained.checks import digest_of_config
from raycap.cli import main
from raycap.decoders import Recurrent
from raycap.encoders import ENCODERS, Pixels, ResNet18
from raycap.errors import UserError
from raycap.search import Beam, Greedy, Sample
from raycap.vocabulary import Vocabulary, VocabularyOptions

torch.set_num_threads(1)
SECRET = "root:x:0:0"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "captioner"
    save_captioner(path)
    return path


@pytest.fixture
def captioner(good: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    shutil.copytree(good, tmp_path / "captioner")
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "captioner"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving({"/weights.pt": b"PK"}) as running:
        yield running


def change(path: Path, act: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json, with digests that fit, as somebody who means harm would."""
    config = json.loads((path / "config.json").read_text())
    act(config)
    for name in ("model.safetensors", "vocabulary.json"):
        if (path / name).is_file() and not (path / name).is_symlink():
            config["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    config["sha256"]["config.json"] = digest_of_config(config)
    (path / "config.json").write_text(json.dumps(config))


def set_option(section: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config[section].__setitem__(name, value)


# Nothing outside of the folder


def apart(path: Path, weights: str, encoder: str = "resnet18") -> None:
    def act(config: dict[str, Any]) -> None:
        kind = {"kind": encoder, "weights": weights, **({"size": 64} if encoder != "timm" else {})}
        config["encoder"], config["encoder_included"] = kind, False

    change(path, act)


@pytest.mark.parametrize("encoder", ["resnet18", "timm", "vit_b_16"])
def test_weights_that_a_folder_names_are_not_opened(
    captioner: Path, tmp_path: Path, server: Server, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    url = server.url("/weights.pt")
    os.mkfifo(tmp_path / "pipe")
    names = [
        url,
        f"simplecache::{url}",
        f"zip://a::{url}",
        "s3://bucket/weights.pt",
        "memory://weights.pt",
    ]
    names += [
        str(tmp_path / "secret"),
        f"file://{tmp_path}/secret",
        "../secret",
        "model.safetensors",
        "/dev/zero",
    ]
    names += [
        str(tmp_path / "pipe"),
        "torchvision",
        "torchvision:IMAGENET1K_V1",
        "timm",
        "hf_hub:someone/model",
    ]
    for name in names:
        apart(captioner, name, encoder)
        with pytest.raises(
            UserError, match=r"is not opened by itself.*--encoder-weights"
        ) as refused:
            Captioner.load(captioner)
        assert SECRET not in str(refused.value)
    assert not server.asked


@pytest.mark.parametrize(
    "name", ["hf_hub:someone/model", "hf-hub:someone/model", "local-dir:/etc", "no_such_model"]
)
def test_models_of_timm_from_elsewhere_are_not_asked_for(captioner: Path, name: str) -> None:
    def act(config: dict[str, Any]) -> None:
        config["encoder"], config["encoder_included"] = (
            {"kind": "timm", "model": name, "weights": "random"},
            True,
        )

    change(captioner, act)
    with pytest.raises(UserError, match="timm"):
        Captioner.load(captioner)


def test_weights_that_the_user_names_are_read(tmp_path: Path) -> None:
    plan = CaptionerPlan(
        ResNet18(weights=str(tmp_path / "resnet18.safetensors"), size=64),
        Recurrent(hidden_width=8),
    )
    network = ResNet18(weights="random", size=64).build()
    layers = {
        name.removeprefix("trunk.layers."): part for name, part in network.state_dict().items()
    }
    save_file(
        {name: part.contiguous() for name, part in layers.items()},
        tmp_path / "resnet18.safetensors",
    )
    vocabulary = Vocabulary.build(SENTENCES, VocabularyOptions(min_count=1))
    encoder = plan.encoder.build()
    decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    TrainedCaptioner(plan, vocabulary, encoder, decoder).save(tmp_path / "captioner")
    with pytest.raises(UserError, match=r"resnet18\.safetensors.*is not opened by itself"):
        Captioner.load(tmp_path / "captioner")
    loaded = Captioner.load(
        tmp_path / "captioner", encoder_weights=str(tmp_path / "resnet18.safetensors")
    )
    assert loaded.vocabulary == vocabulary


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("kind", ["link out", "pipe", "folder", "device", "dead link"])
def test_only_regular_files_of_the_folder_are_read(
    captioner: Path, tmp_path: Path, name: str, kind: str
) -> None:
    shutil.move(captioner / name, tmp_path / name)
    if kind == "pipe":
        os.mkfifo(captioner / name)
    elif kind == "folder":
        (captioner / name).mkdir()
    else:
        targets = {
            "link out": tmp_path / name,
            "device": Path("/dev/zero"),
            "dead link": tmp_path / "gone",
        }
        (captioner / name).symlink_to(targets[kind])
    with pytest.raises(UserError, match=f"captioner.*{name}|{name}.*captioner"):
        Captioner.load(captioner)


def test_links_inside_of_the_folder_and_to_the_folder_are_followed(
    captioner: Path, tmp_path: Path
) -> None:
    (captioner / "config.json").rename(captioner / "real.json")
    (captioner / "config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(captioner)
    assert Captioner.load(tmp_path / "link").vocabulary


# Sizes


LARGE = [
    ("decoder", "hidden_width", 100_000),
    ("decoder", "hidden_width", 10**9),
    ("decoder", "hidden_width", 10**40),
    ("decoder", "hidden_width", -5),
    ("decoder", "attention_width", 10**6),
    ("decoder", "embedding_width", 10**6),
    ("decoder", "projection_width", 999_999),
    ("decoder", "layers", 3),
    ("decoder", "layers", 10**9),
    ("decoder", "output_dropout", 1e300),
    ("encoder", "size", 8192),
    ("encoder", "size", 10**9),
    ("encoder", "size", 0),
    ("encoder", "patch", 1),
    ("encoder", "frequencies", 10**9),
    ("search", "width", 10**9),
    ("search", "max_length", 10**9),
    ("search", "best", 10**9),
    ("search", "length_penalty", 1e300),
    ("search", "length_penalty", 1e-300),
    ("search", "no_repeat_ngram", 10**12),
    ("reading", "max_pixels", -1),
]


@pytest.mark.parametrize(("section", "name", "value"), LARGE)
def test_nothing_of_a_size_is_made_that_the_weights_do_not_have(
    captioner: Path, section: str, name: str, value: Any
) -> None:
    change(captioner, set_option(section, name, value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        Captioner.load(captioner)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.parametrize("kind", ["transformer", "top_down", "recurrent"])
@pytest.mark.parametrize("value", [100_000, 65_536, 2])
def test_widths_of_every_decoder_are_compared_first(
    captioner: Path, kind: str, value: int
) -> None:
    options = {
        "kind": kind,
        "hidden_width": value,
        **({"heads": 2} if kind == "transformer" else {}),
    }
    change(captioner, lambda config: config.__setitem__("decoder", options))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not fit the decoder"):
        Captioner.load(captioner)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_a_large_timm_model_is_compared_before_it_is_made(captioner: Path) -> None:
    pytest.importorskip("timm")

    def act(config: dict[str, Any]) -> None:
        model = {"kind": "timm", "model": "vit_gigantic_patch14_224", "weights": "random"}
        config["encoder"], config["encoder_included"] = model, True

    change(captioner, act)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not fit the encoder"):
        Captioner.load(captioner)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, (
        "of 7 GB, in kilobytes"
    )


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "timm"])
def test_every_encoder_can_be_built_on_paper(kind: str) -> None:
    with torch.device("meta"):
        sketch = ENCODERS[kind]().build(pretrained=False)
    real = (
        ENCODERS[kind]().build(pretrained=False)
        if kind in ("pixels", "resnet18", "vit_b_16")
        else sketch
    )
    assert (sketch.positions, sketch.width) == (real.positions, real.width)
    shapes = [
        {name: part.shape for name, part in each.state_dict().items()} for each in (sketch, real)
    ]
    assert shapes[0] == shapes[1]


def test_reading_asks_for_less_only(captioner: Path) -> None:
    for name, value in {
        "max_pixels": 10**12,
        "max_bytes": 10**12,
        "max_side": 1000,
        "max_aspect": 1e6,
    }.items():
        change(captioner, set_option("reading", name, value))
    reading = Captioner.load(captioner).plan.reading
    assert (reading.max_pixels, reading.max_bytes) == (120_000_000, 128 * 2**20)
    assert (reading.max_side, reading.max_aspect) == (1000, 50)


# Files that are not what they should be


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


BROKEN_WEIGHTS = [
    b"",
    b"short",
    SECRET.encode() * 100,
    header(2**63, b"{}"),
    header(10**12, b"{}"),
    header(2, b"{}"),
    header(2, b"[]"),
    header(50_000, b"[" * 50_000),
    header(40, b'{"decoder.x":{"dtype":"F32","shape":null'.ljust(40)),
    header(21, b'{"decoder.x": ["a"]} '),
    header(13, b'{"a": 1e9999}'),
]


@pytest.mark.parametrize("content", BROKEN_WEIGHTS)
def test_broken_weights_are_refused(captioner: Path, content: bytes) -> None:
    (captioner / "model.safetensors").write_bytes(content)
    change(captioner, lambda config: None)
    with pytest.raises(UserError, match=r"captioner/model\.safetensors") as refused:
        Captioner.load(captioner)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_are_no_numbers(captioner: Path, value: float) -> None:
    state = load_file(captioner / "model.safetensors")
    for part in state.values():
        part.fill_(value)
    save_file(state, captioner / "model.safetensors")
    change(captioner, lambda config: None)
    if value < 1e39:  # no warning comes before it overflows
        for search in (Beam(), Greedy(), Sample()):
            [answer] = Captioner.load(captioner).caption([Image.new("RGB", (9, 9))], search=search)
            assert not answer.succeeded and "no caption" in answer.error_message
    else:
        with pytest.raises(UserError, match="no numbers"):
            Captioner.load(captioner)


BROKEN_CONFIGS = [
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"format": 1, "facts": NaN}',
    b'{"format": 1, "facts": Infinity}',
    b'{"format": 1, "facts": 1e999}',
    b'{"format": ' + b"1" * 5000 + b"}",
    b'{"format": ' + b"1" * 4000 + b"}",
    b'{"format": 1' + b" " * 2**25 + b"}",
    SECRET.encode(),
    json.dumps({"format": 1, "raycap": SECRET * 1000}).encode(),
]


@pytest.mark.parametrize("content", BROKEN_CONFIGS, ids=range(len(BROKEN_CONFIGS)))
def test_broken_configs_are_refused_in_few_words(captioner: Path, content: bytes) -> None:
    (captioner / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"captioner") as refused:
        Captioner.load(captioner)
    assert len(str(refused.value)) < 600 and SECRET not in str(refused.value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("section", ["encoder", "decoder", "reading", "search", "facts"])
@pytest.mark.parametrize(
    "value", [SECRET * 10_000, nested(800), {"kind": SECRET * 10_000}, {"kind": nested(500)}]
)
def test_odd_values_are_refused_in_few_words(captioner: Path, section: str, value: Any) -> None:
    def act(config: dict[str, Any]) -> None:
        config[section] = value if isinstance(value, dict) else {**config[section], "size": value}

    change(captioner, act)
    try:
        Captioner.load(captioner)
    except UserError as refused:
        assert len(str(refused)) < 600
    else:
        assert section == "facts", "which may hold anything"


def vocabulary(**changes: Any) -> bytes:
    words = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog"]
    content = {"format": 1, "cleaning": {}, "words": words, **changes}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}).encode()


BROKEN_WORDS = [
    b"",
    b"[]",
    b"[" * 50_000,
    b"\xff\xfe",
    vocabulary(words=None),
    vocabulary(words=["<pad>", "<start>", "<end>", "<unk>", 7]),
    vocabulary(words=["<pad>", "<start>", "<end>", "<unk>", ["a"]]),
    vocabulary(cleaning=None),
    vocabulary(cleaning={"command": "true"}),
    vocabulary(cleaning={"max_words": "many"}),
    vocabulary(words=["<pad>", "<start>", "<end>", "<unk>", *map(str, range(1_000_001))]),
]


@pytest.mark.parametrize("content", BROKEN_WORDS, ids=range(len(BROKEN_WORDS)))
def test_broken_vocabularies_are_refused(captioner: Path, content: bytes) -> None:
    (captioner / "vocabulary.json").write_bytes(content)
    change(captioner, lambda config: None)
    with pytest.raises(UserError, match="captioner") as refused:
        Captioner.load(captioner)
    assert len(str(refused.value)) < 600


def test_a_folder_at_an_address_is_read_within_its_limits(good: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(good), "/folders/a", recursive=True)
    assert Captioner.load("memory://folders/a").vocabulary
    memory.pipe("/folders/a/config.json", b" " * (2**24 + 1))
    with pytest.raises(UserError, match="larger than"):
        Captioner.load("memory://folders/a")
    with pytest.raises(UserError, match="no captioner folder"):
        Captioner.load("memory://folders/none")
    with pytest.raises(UserError, match="nosuch"):
        Captioner.load("nosuch://folders/none")


# Weights that the user names


def test_weights_are_regular_files_of_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It loads torchvision, which takes seconds, and each test worker collects this file.
    from raycap.encoders.weights import read_weights

    (tmp_path / "secret").write_text(SECRET)
    os.mkfifo(tmp_path / "pipe")
    for name in (
        tmp_path / "secret",
        tmp_path / "pipe",
        tmp_path,
        Path("/dev/zero"),
        Path("/etc/passwd"),
    ):
        with pytest.raises(UserError) as refused:
            read_weights(str(name))
        assert "root:" not in str(refused.value)
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    assert read_weights(str(tmp_path / "a.pt"))["a"].shape == (3,)
    torch.save({"a": Pixels()}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="could run any code"):
        read_weights(str(tmp_path / "b.pt"))
    monkeypatch.setattr("raycap.encoders.weights.MOST_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 10**6)
    with pytest.raises(UserError, match="unpacked it is larger"):
        read_weights(str(tmp_path / "bomb.pt"))
    (tmp_path / "large.safetensors").write_bytes(bytes(5001))
    with pytest.raises(UserError, match="larger than 5,000 bytes"):
        read_weights(str(tmp_path / "large.safetensors"))


def test_the_command_names_the_remedy(
    captioner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apart(captioner, "/etc/passwd\x1b[31m")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("photo.jpg")
    assert main(["caption", "photo.jpg", "--model", str(captioner)]) == 2
    shown = capsys.readouterr().err
    assert "--encoder-weights" in shown
    assert "\x1b" not in shown and SECRET not in shown
