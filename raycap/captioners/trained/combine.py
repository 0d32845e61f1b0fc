"""One captioner folder of several: an ensemble of their decoders, or the mean of their weights.

    combine(Combine(("runs/1/captioner", "runs/2/captioner"), out="ensemble"))

The captioners have the same encoder, words and reading. The search is that of the first one, the
remembered photos are those of the first one that has any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raycap import __version__
from raycap.captioners.combining import Combine
from raycap.captioners.trained.card import card
from raycap.captioners.trained.checks import CARD, MODEL, NEIGHBOURS, WORDS, read_config
from raycap.captioners.trained.folder import (
    format_of,
    neighbours_of,
    plan_of,
    read_digests,
    state_of,
    words_of,
    write_files,
)
from raycap.captioners.trained.neighbours import Neighbours, to_file
from raycap.captioners.trained.plan import CaptionerPlan
from raycap.captioners.trained.weights import pack
from raycap.decoders import DECODERS, SAVED_DECODERS, DecoderChoice, Ensemble
from raycap.encoders import ENCODERS
from raycap.errors import UserError
from raycap.options import to_plain
from raycap.search import SEARCHES, Beam
from raycap.shipped import place_of
from raycap.vocabulary import Vocabulary

# Options of encoders that say where its weights are, or what of it was trained.
OF_WEIGHTS = ("weights", "trainable")


@dataclass(frozen=True)
class Part:
    """A captioner folder that becomes a part of another one."""

    path: str
    config: Mapping[str, Any]
    digest: str
    plan: CaptionerPlan
    vocabulary: Vocabulary
    state: Mapping[str, Tensor]


def combine(options: Combine) -> None:
    """Write the captioner folder. Raises UserError for captioners that do not go together."""
    if len(options.captioners) < 2:
        raise UserError(
            "which captioners? Give at least two folders: "
            "raycap combine runs/1/captioner runs/2/captioner --out ensemble"
        )
    if options.shares and len(options.shares) != len(options.captioners):
        raise UserError(
            f"combine.shares are {len(options.shares)} numbers for {len(options.captioners)} "
            "captioners: give one for each, in their order"
        )
    parts = [_read(path) for path in options.captioners]
    for part in parts[1:]:
        _check_same(parts[0], part)
    neighbours = _neighbours(parts)
    if options.by == "weights":
        decoder, tensors = _mean_weights(parts, options.shares)
    else:
        decoder, tensors = _all_weights(parts)
    first = parts[0]
    plan = replace(first.plan, decoder=decoder)
    if isinstance(plan.search, Beam) and neighbours is None:
        plan = replace(plan, search=replace(plan.search, consensus=0.0, fusion=0.0))
    encoder = {name: part for name, part in first.state.items() if name.startswith("encoder.")}
    facts = _facts(parts, options)
    config = dict(first.config) | {
        "format": format_of(plan, options.numbers),
        "raycap": __version__,
        "decoder": to_plain(decoder, SAVED_DECODERS),
        "search": to_plain(plan.search, SEARCHES),
        "facts": facts,
    }
    files = {
        MODEL: pack({**encoder, **tensors}, options.numbers),
        WORDS: first.vocabulary.to_json().encode(),
    }
    if neighbours is not None:
        files[NEIGHBOURS] = to_file(neighbours)
    about = card(plan, first.vocabulary, facts, config["encoder_included"], neighbours)
    files[CARD] = about.encode()
    write_files(options.out, config, files)


def _read(path: str) -> Part:
    place = place_of(path)
    digest, _ = read_digests(place)
    return Part(path, read_config(place), digest, plan_of(place), words_of(place), state_of(place))


def _check_same(first: Part, other: Part) -> None:
    """Raise UserError if the two have other words, pictures or encoders."""
    both = f"{first.path} and {other.path}"
    if first.vocabulary.to_json() != other.vocabulary.to_json():
        raise UserError(
            f"{both} know different words: only captioners with the same vocabulary can be "
            "combined, such as those of runs on the same captions"
        )
    # Which pictures are accepted is for whoever reads them to say.
    if first.plan.reading.background != other.plan.reading.background:
        raise UserError(f"{both} show pictures on different backgrounds (--reading.background)")
    options = [
        {name: value for name, value in plain.items() if name not in OF_WEIGHTS}
        for plain in (to_plain(part.plan.encoder, ENCODERS) for part in (first, other))
    ]
    is_same = first.config["encoder_sha256"] == other.config["encoder_sha256"]
    if options[0] != options[1] or not (is_same or _has_same_encoder(first, other)):
        raise UserError(
            f"{both} have different encoders, or other weights of them: only captioners with the "
            "same encoder can be combined (leave encoder.trainable at none)"
        )


def _has_same_encoder(first: Part, other: Part) -> bool:
    """Whether both folders hold the same weights of an encoder."""
    ours, theirs = (
        {name: tensor for name, tensor in part.state.items() if name.startswith("encoder.")}
        for part in (first, other)
    )
    return (
        bool(ours)
        and ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    )


def _neighbours(parts: Sequence[Part]) -> Neighbours | None:
    """Those of the first captioner that has any. What one of them doubts, another may be sure of:
    their doubt is left out."""
    for part in parts:
        found = neighbours_of(place_of(part.path), len(part.vocabulary))
        if found is not None:
            return replace(found, doubt=None)
    return None


def _all_weights(parts: Sequence[Part]) -> tuple[Ensemble, dict[str, Tensor]]:
    """An ensemble of all decoders. Those of an ensemble among the captioners become its own."""
    members: list[DecoderChoice] = []
    tensors: dict[str, Tensor] = {}
    for part in parts:
        own, prefixes = [part.plan.decoder], ["decoder."]
        if isinstance(part.plan.decoder, Ensemble):
            own = list(part.plan.decoder.decoders())
            prefixes = [f"decoder.members.{number}." for number in range(len(own))]
        for decoder, prefix in zip(own, prefixes, strict=True):
            assert not isinstance(decoder, Ensemble)
            for name, tensor in part.state.items():
                if name.startswith(prefix):
                    new = f"decoder.members.{len(members)}.{name.removeprefix(prefix)}"
                    tensors[new] = tensor
            members.append(decoder)
    return Ensemble(tuple(to_plain(member, DECODERS) for member in members)), tensors


def _mean_weights(
    parts: Sequence[Part], shares: Sequence[float]
) -> tuple[DecoderChoice | Ensemble, dict[str, Tensor]]:
    first = parts[0]
    for other in parts[1:]:
        is_same_kind = type(other.plan.decoder) is type(first.plan.decoder)
        if not is_same_kind or _decoder_shapes(other) != _decoder_shapes(first):
            raise UserError(
                f"{first.path} and {other.path} have different decoders: their weights have no "
                "mean (--by probabilities combines them)"
            )
    shares = shares or [1.0] * len(parts)
    tensors = {}
    for name in _decoder_shapes(first):
        mean = torch.zeros_like(first.state[name], dtype=torch.float64)
        for share, part in zip(shares, parts, strict=True):
            mean += share / sum(shares) * part.state[name].double()
        tensors[name] = mean.float()
    return first.plan.decoder, tensors


def _decoder_shapes(part: Part) -> dict[str, torch.Size]:
    return {
        name: tensor.shape for name, tensor in part.state.items() if name.startswith("decoder.")
    }


def _facts(parts: Sequence[Part], options: Combine) -> dict[str, Any]:
    """What the card says: of the data and the licence what the captioners say, of scores that
    they were not measured."""
    count = len(parts)
    named = [(f"captioner {number}", part) for number, part in enumerate(parts, 1)]
    kind = "An ensemble" if options.by == "probabilities" else "The mean of the weights"
    facts: dict[str, Any] = {"name": f"{kind} of {count} captioners"}
    for section in ("data", "licence", "limits", "use"):
        own = {name: part.config["facts"].get(section) for name, part in named}
        given = [value for value in own.values() if value is not None]
        if given and all(value == given[0] for value in own.values()):
            facts[section] = given[0]
        elif given:
            facts[section] = {name: _on_one_line(value) for name, value in own.items()}
    shares = options.shares or (1.0,) * count
    facts["training"] = {
        name: f"share {share / sum(shares):.3g}, "
        f"{_on_one_line(part.config['facts'].get('training'))} (sha256 {part.digest[:16]})"
        for (name, part), share in zip(named, shares, strict=True)
    }
    facts["scores"] = "not measured; `raycap evaluate` does"
    return facts


def _on_one_line(fact: Any) -> str:
    if fact is None:
        return "not recorded"
    if isinstance(fact, Mapping):
        return ", ".join(f"{name}: {_on_one_line(value)}" for name, value in fact.items())
    if isinstance(fact, list | tuple):
        return "; ".join(_on_one_line(one) for one in fact)
    return str(fact)
