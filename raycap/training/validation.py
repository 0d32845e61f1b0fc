"""How good the captioner is after an epoch: loss and accuracy by the true words, captions by the metrics."""

from typing import Any, NamedTuple

import numpy as np
import torch

from raycap.decoders.decoder import Tensors
from raycap.metrics import METRICS, Corpus
from raycap.precision import Precision
from raycap.search import SearchChoice
from raycap.training import Objective
from raycap.training.batches import Lesson, in_batches, read_ahead
from raycap.training.group import Group
from raycap.training.material import Material
from raycap.training.network import Network
from raycap.training.objective import sums
from raycap.vocabulary import Vocabulary

JUDGES = ("bleu", "rouge_l", "cider_d", "health")
REPORTED = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "cut_off", "distinct")
LOWER_IS_BETTER = {"loss"}
PANELS = 12  # pictures whose maps of attention are kept for the report


class Judged(NamedTuple):
    """What a validation found."""

    figures: dict[str, Any]  # for the journal
    pictures: list[dict[str, Any]]  # key, caption, CIDEr-D and references of each


class Told(NamedTuple):
    """A picture's caption, by its place in the store."""

    place: int
    caption: str


@torch.no_grad()
def validate(network: Network, lesson: Lesson, material: Material, precision: Precision, group: Group) -> Judged:
    """Scores over all processes' pictures, and some samples; the same answer in each process."""
    options, search = material.options.validation, material.plan.search
    network.eval()
    counts = torch.zeros(4, device=precision.device)
    told: list[Told] = []
    for batch in read_ahead(in_batches(lesson.places, options.batch, group.rank, group.size), lesson.batch):
        batch = batch.to(precision.device)
        with precision.autocast():
            memory = network.remember(batch.pictures)
            counts += sums(network.decoder, memory, batch.words, Objective(label_smoothing=0.0)).counts
            told += tell(network, memory, batch.places, material.vocabulary, search)
    network.train()
    surprise, right, words, _ = group.add(counts).tolist()
    told = sorted(group.collect(told))
    scores, each = scored(lesson, told)
    figures = {
        "validation_loss": surprise / words,
        "perplexity": float(np.exp(surprise / words)),
        "accuracy": right / words,
        **scores,
        "samples": shown(lesson, [one for one in told if one.place in spread(lesson.places, options.samples)]),
    }
    key, references = lesson.store.key, lesson.store.references
    pictures = [
        {"key": key(one.place), "caption": one.caption, "cider_d": cider_d, "references": references(one.place)}
        for one, cider_d in zip(told, each, strict=True)
    ]
    return Judged(figures, pictures)


def tell(
    network: Network, memory: Tensors, places: np.ndarray, vocabulary: Vocabulary, search: SearchChoice
) -> list[Told]:
    """The captions of pictures that are remembered."""
    found = search.search(network.decoder, memory).words[:, 0].tolist()
    return [Told(int(place), vocabulary.decode(words)) for place, words in zip(places, found, strict=True)]


def spread(places: np.ndarray, count: int) -> np.ndarray:
    """A few of `places`, always the same."""
    chosen: np.ndarray = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    return chosen


def scored(lesson: Lesson, told: list[Told]) -> tuple[dict[str, float], list[float]]:
    """The captions' scores, and the CIDEr-D of each."""
    corpus = Corpus([one.caption for one in told], [lesson.store.references(one.place) for one in told])
    answers = {answer.name: answer for judge in JUDGES for answer in METRICS[judge]().judge(corpus)}
    return {name: answers[name].score for name in REPORTED}, answers["cider_d"].scores.tolist()


@torch.no_grad()
def looked_at(network: Network, lesson: Lesson, material: Material, precision: Precision) -> list[dict[str, Any]]:
    """A few of the pictures again, with the words said of each and a map [T][P] of where each word looked."""
    batch = lesson.batch(spread(lesson.places, PANELS)).to(precision.device)
    network.eval()
    with precision.autocast():
        memory = network.remember(batch.pictures)
        found = material.plan.search.search(network.decoder, memory, attention=True).hypotheses()
    network.train()
    names = material.vocabulary.words
    return [
        {
            "key": lesson.store.key(place),
            "words": [names[word] for word in best.words],
            "attention": [[round(share, 4) for share in looks] for looks in best.attention.tolist()],
        }
        for place, best in ((place, each[0]) for place, each in zip(batch.places, found, strict=True) if each)
        if best.attention is not None
    ]


def shown(lesson: Lesson, told: list[Told]) -> list[dict[str, str]]:
    """Captions for people to read, each beside a reference."""
    key, references = lesson.store.key, lesson.store.references
    return [{"key": key(one.place), "caption": one.caption, "reference": references(one.place)[0]} for one in told]


def better(measure: str, score: float, than: float | None) -> bool:
    """Whether a score is better than the best so far."""
    if than is None:
        return True
    return score < than if measure in LOWER_IS_BETTER else score > than
