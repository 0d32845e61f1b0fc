"""The model card: the README of a captioner folder, written from its facts."""

from collections.abc import Mapping
from typing import Any

from raycap.captioners.trained.neighbours import Neighbours
from raycap.captioners.trained.plan import CaptionerPlan
from raycap.decoders import SAVED_DECODERS, Ensemble
from raycap.encoders import ENCODERS
from raycap.options import kind_of
from raycap.search import SEARCHES
from raycap.vocabulary import Vocabulary

# The facts a card shows, in order: what training knows goes in by these names.
SECTIONS = {
    "data": "Training data",
    "licence": "Licence",
    "training": "Training",
    "scores": "Scores",
    "limits": "What it is bad at",
    "failures": "Some of its failures",
    "use": "Intended use",
}

USE = """\
```python
from raycap import Captioner

captioner = Captioner.load("this/folder")
print(captioner.caption(["photo.jpg"])[0])
```
"""


def card(
    plan: CaptionerPlan,
    vocabulary: Vocabulary,
    facts: Mapping[str, Any],
    encoder_included: bool,
    neighbours: Neighbours | None = None,
) -> str:
    """Markdown. A section without facts says so: a card that is silent looks complete."""
    square = plan.encoder.preprocessing()
    where = (
        "in this folder"
        if encoder_included
        else f"apart: {getattr(plan.encoder, 'weights', 'none needed')}"
    )
    lines = [
        f"# {facts.get('name', 'A raycap captioner')}",
        "",
        f"- encoder: {kind_of(plan.encoder, ENCODERS)} on {square.size}x{square.size} pixels "
        f"({square.resize}); its weights are {where}",
        f"- decoder: {_decoder(plan)}",
        f"- vocabulary: {len(vocabulary):,} words",
        f"- search: {kind_of(plan.search, SEARCHES)}",
        *_remembered(neighbours),
        "",
        USE,
    ]
    for name, title in SECTIONS.items():
        lines += [f"## {title}", "", *_said(facts.get(name, "not recorded")), ""]
    return "\n".join(lines)


def _decoder(plan: CaptionerPlan) -> str:
    kind = kind_of(plan.decoder, SAVED_DECODERS)
    if not isinstance(plan.decoder, Ensemble):
        return kind
    members = [kind_of(member, SAVED_DECODERS) for member in plan.decoder.decoders()]
    return f"{kind}, the mean probabilities of {len(members)} decoders ({', '.join(members)})"


def _remembered(neighbours: Neighbours | None) -> list[str]:
    if neighbours is None:
        return []
    return [
        f"- it remembers {len(neighbours.vectors):,} training photos: a vector of "
        f"{neighbours.vectors.shape[1]} small numbers, and "
        f"{len(neighbours.captions.gram_weights):,} weights of n-grams of its captions"
    ]


def _said(fact: Any) -> list[str]:
    if isinstance(fact, Mapping):
        return [f"- {name}: {value}" for name, value in fact.items()]
    if isinstance(fact, list | tuple):
        return [f"- {value}" for value in fact]
    return [str(fact)]
