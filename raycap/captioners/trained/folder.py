"""The captioner folder: config.json, model.safetensors, vocabulary.json, a model card and, where
training photos are remembered, neighbours.safetensors; read with suspicion."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raycap import __version__, plainjson
from raycap.captioners.trained.card import card
from raycap.captioners.trained.checks import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_OF_INT8,
    LONGEST_WORD,
    MODEL,
    MOST_POSITIONS,
    MOST_WORDS,
    NEIGHBOURS,
    OLDEST_FORMAT,
    PARTS,
    USUAL_SIZE,
    WORDS,
    Shapes,
    check_numbers,
    check_shapes,
    digest_of_config,
    on_paper,
    read_checked,
    read_config,
    read_file,
    read_shapes,
    shortened,
)
from raycap.captioners.trained.neighbours import Neighbours, from_file, to_file
from raycap.captioners.trained.plan import CaptionerPlan
from raycap.captioners.trained.weights import Numbers, pack, unpack
from raycap.decoders import SAVED_DECODERS, Ensemble
from raycap.decoders.decoder import Decoder
from raycap.encoders import ENCODERS, RANDOM, EncoderOptions, Pixels, Torchvision
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.images import Reading
from raycap.options import from_plain, to_plain
from raycap.search import SEARCHES, Beam, SearchChoice
from raycap.shipped import place_of
from raycap.storage import RunFolder, whole_path
from raycap.unset_weights import unset_weights
from raycap.uris import local_path
from raycap.vocabulary import Vocabulary


class CaptionerParts(NamedTuple):
    """What a captioner is made of."""

    plan: CaptionerPlan
    vocabulary: Vocabulary
    encoder: Encoder
    decoder: Decoder
    facts: dict[str, Any]
    neighbours: Neighbours | None = None


def save_folder(
    path: Path | str,
    plan: CaptionerPlan,
    vocabulary: Vocabulary,
    encoder: Encoder,
    decoder: Decoder,
    facts: Mapping[str, Any],
    include_encoder: bool,
    numbers: Numbers = "float32",
    neighbours: Neighbours | None = None,
) -> None:
    """Write a captioner folder at a path or URI: no reader sees half of one."""
    include_encoder = include_encoder or encoder.is_own
    # Where they came from matters no more.
    if include_encoder and not isinstance(plan.encoder, Pixels):
        plan = replace(plan, encoder=_with_weights(plan.encoder, type(plan.encoder).weights))
    tensors = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    if include_encoder:
        tensors |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    files = {
        MODEL: pack(tensors, numbers),
        WORDS: vocabulary.to_json().encode(),
    }
    if neighbours is not None:
        files[NEIGHBOURS] = to_file(neighbours)
    config: dict[str, Any] = {
        "format": format_of(plan, numbers),
        "raycap": __version__,
        "encoder": to_plain(plan.encoder, ENCODERS),
        "decoder": to_plain(plan.decoder, SAVED_DECODERS),
        "reading": to_plain(plan.reading),
        "search": to_plain(plan.search, SEARCHES),
        "encoder_included": include_encoder,
        "encoder_sha256": digest_of(encoder),
        "facts": dict(facts),
    }
    files[CARD] = card(plan, vocabulary, facts, include_encoder, neighbours).encode()
    write_files(path, config, files)


def format_of(plan: CaptionerPlan, numbers: Numbers) -> int:
    """The format of a folder: the oldest one that has all that is in it."""
    if isinstance(plan.decoder, Ensemble):
        return FORMAT
    return FORMAT_OF_INT8 if numbers == "int8" else OLDEST_FORMAT


def write_files(path: Path | str, config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a captioner folder. `config` is the content of config.json without the digests of
    `files`, the other ones."""
    _put(path, {**files, CONFIG: _with_digests(config, files, {})})


def _with_digests(
    config: Mapping[str, Any], files: Mapping[str, bytes], others: Mapping[str, str]
) -> bytes:
    """The content of config.json, with the digests of `files` and those of `others`."""
    own = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    own.pop(CARD, None)
    digests = {**others, **own, CONFIG: digest_of_config(config)}
    return json.dumps({**config, "sha256": digests}, indent=2, ensure_ascii=False).encode()


def add_neighbours(path: Path | str, neighbours: Neighbours) -> None:
    """Give the captioner folder at `path` these neighbours, in place of those that it has.

    At no moment does the folder lack its weights: whoever is killed here can do it again.
    """
    place = str(path)
    config = read_config(place)
    plan, vocabulary = _plan(place, config), _words(place, config)
    about = card(plan, vocabulary, config["facts"], config["encoder_included"], neighbours)
    files = {NEIGHBOURS: to_file(neighbours), CARD: about.encode()}
    folder = RunFolder(place)
    for name, content in files.items():
        folder.write(name, content)
    # Last: until then, the new neighbours are refused as not those of this captioner.
    folder.write(CONFIG, _with_digests(config, files, config["sha256"]))


def load_folder(path: str, encoder_weights: str) -> CaptionerParts:
    """Rebuild the parts; what is not as it was written is refused.

    The folder may be from anybody. Nothing outside of it is opened and nothing is downloaded,
    unless the caller says so with `encoder_weights`; and nothing is made of a size that its
    weights do not have.
    """
    path = place_of(path)
    config = read_config(path)
    plan = _plan(path, config)
    options = _with_weights(plan.encoder, encoder_weights) if encoder_weights else plan.encoder
    named = getattr(options, "weights", RANDOM)
    if not config["encoder_included"] and not encoder_weights and named != RANDOM:
        raise UserError(
            f"{path} does not hold its encoder's weights. It names {named[:200]!r} for them, but "
            "what a folder names is not opened by itself. Say where they are: --encoder-weights "
            "torchvision (or timm) downloads them, --encoder-weights FILE reads them (of "
            "`evaluate` --caption.encoder-weights, in Python encoder_weights=...)"
        )
    vocabulary = _words(path, config)
    shapes = read_shapes(path)
    encoder = _new_encoder(path, config, options, shapes)
    with on_paper(path):
        sketch = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    check_shapes(sketch, shapes, "decoder.", path)
    state = _state(path, config)
    _complete(encoder, path, config, options, state)
    with unset_weights():
        decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    _fill(decoder, state, "decoder.", path)
    neighbours = _neighbours(path, config, encoder.width, len(vocabulary))
    check_consensus(plan.search, neighbours, path)
    return CaptionerParts(plan, vocabulary, encoder, decoder, config["facts"], neighbours)


def neighbours_of(path: str, words: int) -> Neighbours | None:
    """The remembered photos of the captioner there, which has so many words."""
    path = place_of(path)
    return _neighbours(path, read_config(path), None, words)


def _neighbours(
    path: str, config: Mapping[str, Any], width: int | None, words: int
) -> Neighbours | None:
    if NEIGHBOURS not in config["sha256"]:
        return None
    content = read_checked(path, NEIGHBOURS, config["sha256"])
    return from_file(content, width, words, f"{path}/{NEIGHBOURS}")


def check_consensus(
    search: SearchChoice, neighbours: Neighbours | None, captioner: str = "this captioner"
) -> None:
    """Raise UserError if the search needs neighbours and there are none."""
    if isinstance(search, Beam) and search.consensus and neighbours is None:
        raise UserError(
            f"search.consensus is {search.consensus:g}, and {captioner} remembers no training "
            f"photos (it has no {NEIGHBOURS}): leave search.consensus out, or train it again with "
            "train.neighbours above 0"
        )


def read_digests(path: str) -> tuple[str, str]:
    """The digests of the folder's config.json, which holds those of the other files, and of its
    vocabulary."""
    path = place_of(path)
    config = read_config(path)
    digest = hashlib.sha256(read_file(path, CONFIG)).hexdigest()
    return digest, config["sha256"][WORDS]


def plan_of(path: str) -> CaptionerPlan:
    """How the captioner there is made."""
    path = place_of(path)
    return _plan(path, read_config(path))


def _plan(path: str, config: Mapping[str, Any]) -> CaptionerPlan:
    name = f"{path}/{CONFIG}"
    try:
        parts = {
            section: from_plain(shape, config[section], section)
            for section, shape in PARTS.items()
        }
    except UserError as error:  # it quotes values, which may be long
        raise UserError(shortened(f"{name}: {error}")) from None
    except RecursionError:
        raise UserError(f"{name} is not of a captioner: it is nested too deeply") from None
    for section in ("encoder", "decoder", "search"):
        check_numbers(section, parts[section], name)
    if isinstance(parts["decoder"], Ensemble):
        for member in parts["decoder"].decoders():
            check_numbers("decoder", member, name)
    # Which pictures are accepted is for whoever reads them to say, not for the folder: it may only
    # ask for less.
    usual, theirs = Reading(), parts["reading"]
    limits = ("max_bytes", "max_pixels", "max_side", "max_aspect")
    least = {limit: min(getattr(usual, limit), getattr(theirs, limit)) for limit in limits}
    parts["reading"] = replace(theirs, **least)
    return CaptionerPlan(**parts)


def _new_encoder(
    path: str, config: Mapping[str, Any], options: EncoderOptions, shapes: Shapes
) -> Encoder:
    """The encoder without the weights that the folder holds. One that could be large is first
    built on paper."""
    named_size = (
        isinstance(options, Torchvision) and options.size <= USUAL_SIZE and not options.grid
    )
    if not named_size:
        with on_paper(path):
            sketch = options.build(pretrained=False)
        if sketch.positions > MOST_POSITIONS:
            raise UserError(
                f"{path}/{CONFIG}: the encoder's grid would have {sketch.positions:,} cells, and "
                f"a captioner folder may ask for {MOST_POSITIONS:,}"
            )
        if config["encoder_included"]:
            check_shapes(sketch, shapes, "encoder.", path)
    return options.build(pretrained=not config["encoder_included"])


def encoder_of(path: str, options: EncoderOptions) -> Encoder:
    """What the captioner there looks with, built with `options`."""
    path = place_of(path)
    config = read_config(path)
    encoder = options.build(pretrained=not config["encoder_included"])
    _complete(encoder, path, config, options, _state(path, config))
    return encoder


def words_of(path: str) -> Vocabulary:
    """The words of the captioner there."""
    path = place_of(path)
    return _words(path, read_config(path))


def decoder_of(path: str) -> Decoder:
    """The decoder of the captioner there, without its encoder."""
    path = place_of(path)
    config = read_config(path)
    plan, vocabulary = _plan(path, config), _words(path, config)
    with on_paper(path):
        encoder = plan.encoder.build(pretrained=False)
        sketch = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    check_shapes(sketch, read_shapes(path), "decoder.", path)
    with unset_weights():
        decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    _fill(decoder, _state(path, config), "decoder.", path)
    return decoder


def state_of(path: str) -> dict[str, Tensor]:
    """The weights of the captioner there, under `decoder.` and, if they are in it, `encoder.`."""
    path = place_of(path)
    return _state(path, read_config(path))


def _words(path: str, config: Mapping[str, Any]) -> Vocabulary:
    try:
        content = read_checked(path, WORDS, config["sha256"])
        plainjson.loads(content)
        words = Vocabulary.from_json(content.decode())
        if not all(isinstance(word, str) and len(word) <= LONGEST_WORD for word in words.words):
            raise ValueError(f"a word of it is no text of at most {LONGEST_WORD} letters")
        "".join(
            words.words
        ).encode()  # halves of characters, which JSON may hold, are a UnicodeEncodeError
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}/{WORDS} is not a vocabulary: get the captioner folder again"
        ) from error
    except UnicodeEncodeError:
        raise UserError(
            f"{path}/{WORDS} holds a word that is no text: get the captioner folder again"
        ) from None
    except ValueError as error:  # a UserError is one too
        raise UserError(shortened(f"{path}: {error}")) from None
    if len(words) > MOST_WORDS:
        raise UserError(
            f"{path}/{WORDS} has {len(words):,} words: a captioner folder may have {MOST_WORDS:,}"
        )
    return words


def _state(path: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    return unpack(read_checked(path, MODEL, config["sha256"]), f"{path}/{MODEL}")


def _complete(
    encoder: Encoder,
    path: str,
    config: Mapping[str, Any],
    options: EncoderOptions,
    state: Mapping[str, Tensor],
) -> None:
    """Give the encoder the folder's weights or, where they are not in it, see that it has the
    right ones."""
    if config["encoder_included"]:
        _fill(encoder, state, "encoder.", path)
        encoder.is_own = True
    elif digest_of(encoder) != config["encoder_sha256"]:
        raise UserError(
            f"{path} was trained on other weights of its encoder than "
            f"{getattr(options, 'weights', 'these')}: its captions would be nonsense. Say where "
            "the right ones are (to caption: encoder_weights; to train: encoder.weights)"
        )


def digest_of(network: torch.nn.Module) -> str:
    """The weights by name, as float32: what tells one encoder from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _put(path: Path | str, files: Mapping[str, bytes]) -> None:
    local = local_path(str(path))
    if local is None:
        # Files of a store cannot be replaced together. Without config.json, it is no captioner.
        folder = RunFolder(str(path))
        folder.remove_file(CONFIG)
        for name in sorted(files, key=lambda name: name == CONFIG):
            folder.write(name, files[name])
        return
    path = Path(local)
    try:
        with whole_path(path) as part:
            part.mkdir()
            for name, content in files.items():
                (part / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write the captioner {path}: {error.strerror}") from error


def _with_weights(options: EncoderOptions, weights: str) -> EncoderOptions:
    if isinstance(options, Pixels):
        raise UserError(
            "encoder_weights is given, but this captioner's encoder, pixels, has no weights: "
            "leave it out"
        )
    return replace(options, weights=weights)


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor], prefix: str, path: str) -> None:
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(
            f"{path}/{MODEL} does not fit the {prefix[:-1]} that {CONFIG} describes: {error}"
        ) from error
