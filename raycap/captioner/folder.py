"""The captioner folder: config.json, model.safetensors, vocabulary.json and a model card; read with suspicion."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raycap import __version__
from raycap.captioner.card import card
from raycap.captioner.plan import Plan
from raycap.config import part_from_plain, part_to_plain
from raycap.decoders.decoder import Decoder
from raycap.encoders import EncoderOptions, Pixels
from raycap.encoders.encoder import Encoder
from raycap.refusal import Refusal
from raycap.shipped import place_of
from raycap.vocabulary import Vocabulary

FORMAT = 1  # of the folder; raise it when the meaning of its files changes
CONFIG, MODEL, WORDS, CARD = "config.json", "model.safetensors", "vocabulary.json", "README.md"
PARTS = ("encoder", "decoder", "reading", "search")
# What config.json must hold besides its format, and of which type.
WANTED = {
    **dict.fromkeys(PARTS, dict),
    "encoder_included": bool,
    "encoder_sha256": str,
    "facts": dict,
    "sha256": dict,
}

Parts = tuple[Plan, Vocabulary, Encoder, Decoder, dict[str, Any]]


def save(
    path: Path,
    plan: Plan,
    vocabulary: Vocabulary,
    encoder: Encoder,
    decoder: Decoder,
    facts: Mapping[str, Any],
    include_encoder: bool,
    half: bool,
) -> None:
    """Write a new folder beside `path`, then rename it there: no reader sees half of one."""
    include_encoder = include_encoder or encoder.is_own
    if include_encoder and not isinstance(plan.encoder, Pixels):  # where they came from matters no more
        plan = replace(plan, encoder=_with_weights(plan.encoder, type(plan.encoder).weights))
    tensors = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    if include_encoder:
        tensors |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    numbers = torch.float16 if half else torch.float32
    files = {
        MODEL: safetensors.torch.save({name: _as(tensor, numbers) for name, tensor in tensors.items()}),
        WORDS: vocabulary.to_json().encode(),
    }
    config: dict[str, Any] = {
        "format": FORMAT,
        "raycap": __version__,
        **{section: part_to_plain(section, getattr(plan, section)) for section in PARTS},
        "encoder_included": include_encoder,
        "encoder_sha256": digest_of(encoder),
        "facts": dict(facts),
    }
    config["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    config["sha256"][CONFIG] = _digest_of_config(config)
    files[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    files[CARD] = card(plan, vocabulary, facts, include_encoder).encode()
    _put(path, files)


def load(path: str, encoder_weights: str) -> Parts:
    """Rebuild the parts; what is not as it was written is refused."""
    path = place_of(path)
    config = _config(path)
    plan = _plan(path, config)
    vocabulary, state = _words(path, config), _state(path, config)
    options = _with_weights(plan.encoder, encoder_weights) if encoder_weights else plan.encoder
    encoder = _encoder(path, config, options, state)
    decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    _fill(decoder, state, "decoder.", path)
    return plan, vocabulary, encoder, decoder, config["facts"]


def plan_of(path: str) -> Plan:
    """How the captioner there is made."""
    path = place_of(path)
    return _plan(path, _config(path))


def _plan(path: str, config: Mapping[str, Any]) -> Plan:
    return Plan(**{section: part_from_plain(section, config[section], f"{path}/{CONFIG}") for section in PARTS})


def encoder_of(path: str, options: EncoderOptions) -> Encoder:
    """What the captioner there looks with, built with `options`."""
    path = place_of(path)
    config = _config(path)
    return _encoder(path, config, options, _state(path, config))


def words_of(path: str) -> Vocabulary:
    """The words of the captioner there."""
    path = place_of(path)
    return _words(path, _config(path))


def state_of(path: str) -> dict[str, Tensor]:
    """The weights of the captioner there, under `decoder.` and, if they are in it, `encoder.`."""
    path = place_of(path)
    return _state(path, _config(path))


def _words(path: str, config: Mapping[str, Any]) -> Vocabulary:
    try:
        return Vocabulary.from_json(_checked(path, WORDS, config["sha256"]).decode())
    except (Refusal, UnicodeDecodeError) as error:
        raise Refusal(f"{path}: {error}") from error


def _state(path: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    content = _checked(path, MODEL, config["sha256"])
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise Refusal(f"{path}: {error}") from error


def _encoder(path: str, config: Mapping[str, Any], options: EncoderOptions, state: Mapping[str, Tensor]) -> Encoder:
    included = config["encoder_included"]
    encoder = options.build(pretrained=not included)
    if included:
        _fill(encoder, state, "encoder.", path)
        encoder.is_own = True
    elif digest_of(encoder) != config["encoder_sha256"]:
        raise Refusal(
            f"{path} was trained on other weights of its encoder than {getattr(options, 'weights', 'these')}: "
            "its captions would be nonsense. Say where the right ones are (to caption: encoder_weights; to train: "
            "encoder.weights)"
        )
    return encoder


def digest_of(network: torch.nn.Module) -> str:
    """The weights by name, as float32: what tells one encoder from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _as(tensor: Tensor, numbers: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(numbers if tensor.is_floating_point() else tensor.dtype).contiguous()


def _put(path: Path, files: Mapping[str, bytes]) -> None:
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        beside.mkdir(parents=True)
        for name, content in files.items():
            (beside / name).write_bytes(content)
        if path.exists():
            path.rename(old)  # a folder cannot be renamed over a full one
        beside.rename(path)
    except OSError as error:
        raise Refusal(f"cannot write the captioner {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(_read(path, CONFIG))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{path}/{CONFIG} is not whole JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise Refusal(f"{path}/{CONFIG} is not of a captioner: it has no format number")
    if config["format"] != FORMAT:
        raise Refusal(
            f"{path} has format {config['format']}, this raycap {__version__} reads {FORMAT}: "
            f"use raycap {config.get('raycap', '(unknown)')}, which wrote it, or train it again"
        )
    wrong = [name for name, kind in WANTED.items() if not isinstance(config.get(name), kind)]
    if wrong:
        raise Refusal(f"{path}/{CONFIG} is not what was written: {', '.join(wrong)} missing or of another type")
    if config["sha256"].get(CONFIG) != _digest_of_config(config):
        raise Refusal(
            f"{path}/{CONFIG} is not what was written: it is damaged or was changed; take the folder anew"
        )
    return config


def _digest_of_config(config: Mapping[str, Any]) -> str:
    content = {name: value for name, value in config.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _with_weights(options: EncoderOptions, weights: str) -> EncoderOptions:
    if isinstance(options, Pixels):
        raise Refusal(
            "encoder_weights is given, but this captioner's encoder, pixels, has no weights: leave it out"
        )
    return replace(options, weights=weights)


def _checked(path: str, name: str, digests: Mapping[str, str]) -> bytes:
    content = _read(path, name)
    if hashlib.sha256(content).hexdigest() != digests.get(name):
        raise Refusal(f"{path}/{name} is not what was written: it is damaged or was changed; take the folder anew")
    return content


def _read(path: str, name: str) -> bytes:
    try:
        with fsspec.open(f"{path.rstrip('/')}/{name}", "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError as error:
        raise Refusal(f"{path} is no captioner folder: it has no {name}") from error
    except (OSError, ValueError, ImportError) as error:
        raise Refusal(f"cannot read {path}/{name}: {error}") from error


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor], prefix: str, path: str) -> None:
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise Refusal(f"{path}/{MODEL} does not fit the {prefix[:-1]} that {CONFIG} describes: {error}") from error
