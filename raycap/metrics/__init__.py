"""How good captions are, in numbers: METRICS, each with one answer form, and how sure the numbers are."""

from typing import Protocol

from raycap.metrics.answers import (
    Answer,
    Comparison,
    bounds,
    compare,
    compared,
    interval,
    resampled,
)
from raycap.metrics.bleu import Bleu
from raycap.metrics.cider import Cider, CiderD, CiderReward
from raycap.metrics.corpus import Corpus
from raycap.metrics.health import Health
from raycap.metrics.java_scores import Meteor, Spice
from raycap.metrics.nltk_scores import BleuNltk, MeteorNltk
from raycap.metrics.rouge import RougeL
from raycap.metrics.similarity import GloveSimilarity
from raycap.metrics.tokenise import tokenise
from raycap.metrics.true_words import of_true_words


class Metric(Protocol):
    """A frozen dataclass whose fields are the metric's options."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """What the metric says of the corpus, one answer for each number."""


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

__all__ = [
    "METRICS",
    "Answer",
    "CiderReward",
    "Comparison",
    "Corpus",
    "Metric",
    "bounds",
    "compare",
    "compared",
    "interval",
    "of_true_words",
    "resampled",
    "tokenise",
]
