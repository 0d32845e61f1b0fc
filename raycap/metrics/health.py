"""Diversity and faults of captions (repetition, captions that were cut off). References are not
used."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raycap.metrics.corpus import Corpus
from raycap.metrics.scores import Floats, Score, ScoreFacts, mean_score
from raycap.metrics.tokenise import tokenise

# A caption that ends in one of these was cut off: "a man in a".
_UNFINISHED = re.compile(
    r"(?:^| )(?:an?|the|this|his|her|its|their|my|your|our|some|and|or|but|with|without|of|in|on|"
    r"at|to|from|for|into|onto|beside|between|against|while|as|is|are|was|were|be|being|has|have|"
    r"having|very)$"
)
# A phrase of one to four tokens twice in a row, or three tokens that come again later.
_REPEATED = re.compile(r"(?:^| )(?:(\S+(?: \S+){0,3}) \1|(\S+ \S+ \S+) (?:.* )?\2)(?= |$)")

DISTINCT = ScoreFacts(
    "distinct", "distinct captions", "share of captions that differ", "neither", "{:.1%}"
)
VOCABULARY = ScoreFacts(
    "vocabulary", "words used", "number of different words in all captions", "neither", "{:,.0f}"
)
LENGTH = ScoreFacts("length", "length in words", "words in a caption", "neither", "{:.1f}")
CUT_OFF = ScoreFacts(
    "cut_off", "cut off", "share of captions that end in mid-sentence", "lower", "{:.1%}"
)
REPETITIVE = ScoreFacts(
    "repetitive", "repetitive", "share of captions that repeat a phrase", "lower", "{:.1%}"
)
NOVEL = ScoreFacts(
    "novel",
    "novel captions",
    "share that are no training caption",
    "neither",
    "{:.1%}",
)


@dataclass(frozen=True)
class Health:
    """Distinct captions, words used, mean length; shares cut off, repetitive, novel."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        DISTINCT,
        VOCABULARY,
        LENGTH,
        CUT_OFF,
        REPETITIVE,
        NOVEL,
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """One score for each number; `novel` only where the training captions are known."""
        captions = corpus.tokens
        signature = f"tokens:ptb|end:no|pictures:{len(captions)}"
        repeats = Counter(captions)
        words = [set(caption.split()) for caption in captions]
        used_by = Counter(word for own in words for word in own)
        # Each word counts 1 / (number of pictures that use it): the sum is the number of different
        # words.
        shares = np.array([[sum(1 / used_by[word] for word in own)] for own in words], np.float64)
        distinct = np.array([1 / repeats[caption] for caption in captions])
        scores = [
            mean_score(DISTINCT, distinct, signature, can_resample=False),
            Score(VOCABULARY, shares, _sum, signature, can_resample=False),
        ]
        per_caption: dict[ScoreFacts, list[float]] = {
            LENGTH: [len(caption.split()) for caption in captions],
            CUT_OFF: [bool(_UNFINISHED.search(caption)) for caption in captions],
            REPETITIVE: [bool(_REPEATED.search(caption)) for caption in captions],
        }
        if corpus.training_captions:
            known = set(tokenise(corpus.training_captions))
            per_caption[NOVEL] = [caption not in known for caption in captions]
        for facts, values in per_caption.items():
            scores.append(mean_score(facts, np.array(values, np.float64), signature))
        return tuple(scores)


def _sum(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0].round(6))  # thirds add up to 0.9999999999999999
