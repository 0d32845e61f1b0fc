"""Scores of captions against references. A new metric is one class and one line in METRICS.

corpus = Corpus(["a dog runs"], [["a dog is running", "the dog runs"]])
[cider_d] = METRICS["cider_d"]().compute(corpus)
cider_d.value, cider_d.per_picture
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from raycap.metrics.bleu import Bleu
from raycap.metrics.cider import Cider, CiderD, CiderReward
from raycap.metrics.corpus import Corpus
from raycap.metrics.frequencies import DocumentFrequencies
from raycap.metrics.glove_similarity import GloveSimilarity
from raycap.metrics.health import Health
from raycap.metrics.java_scores import Meteor, Spice
from raycap.metrics.nltk_scores import BleuNltk, MeteorNltk
from raycap.metrics.reference_likelihood import LIKELIHOOD_SCORES, reference_likelihood
from raycap.metrics.rouge import RougeL
from raycap.metrics.scores import (
    Comparison,
    Score,
    ScoreFacts,
    bootstrap,
    compare,
    compare_resamples,
    interval,
    mean_score,
    middle,
)
from raycap.metrics.tokenise import tokenise


class Metric(Protocol):
    """A frozen dataclass whose fields are the metric's options."""

    scores: ClassVar[tuple[ScoreFacts, ...]]
    """Descriptions of the scores that it computes."""

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The scores of a corpus, in the order of `scores`."""


METRICS: dict[str, type[Metric]] = {
    "bleu": Bleu,
    "rouge_l": RougeL,
    "cider": Cider,
    "cider_d": CiderD,
    "bleu_nltk": BleuNltk,
    "meteor_nltk": MeteorNltk,
    "meteor": Meteor,
    "spice": Spice,
    "glove_similarity": GloveSimilarity,
    "health": Health,
}


def every_score() -> list[ScoreFacts]:
    """Descriptions of all scores: those of METRICS, and loss, perplexity and token accuracy."""
    return [facts for metric in METRICS.values() for facts in metric.scores] + [*LIKELIHOOD_SCORES]


def find_facts(name: str) -> ScoreFacts | None:
    """The description of the score with this name, in tables or in the log of a training run."""
    return next((facts for facts in every_score() if name in (facts.name, facts.log_name)), None)


def facts_of(name: str) -> ScoreFacts:
    """Like `find_facts`; raises KeyError for an unknown name."""
    facts = find_facts(name)
    if facts is None:
        raise KeyError(name)
    return facts


def headline_scores(line: Mapping[str, Any]) -> dict[str, ScoreFacts]:
    """The headline scores in a line of a training log, by their name there."""
    found = {name: find_facts(name) for name in line}
    return {name: facts for name, facts in found.items() if facts and facts.headline}


__all__ = [
    "METRICS",
    "CiderReward",
    "Comparison",
    "Corpus",
    "DocumentFrequencies",
    "Metric",
    "Score",
    "ScoreFacts",
    "bootstrap",
    "compare",
    "compare_resamples",
    "every_score",
    "facts_of",
    "find_facts",
    "headline_scores",
    "interval",
    "mean_score",
    "middle",
    "reference_likelihood",
    "tokenise",
]
