"""The scores that tutorials compute with NLTK: its corpus BLEU, and its METEOR."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raycap.errors import UserError
from raycap.metrics.bleu import LONGEST, count_ngrams
from raycap.metrics.corpus import Corpus, to_numbers
from raycap.metrics.ngrams import Captions, ReferenceGrams
from raycap.metrics.scores import Floats, Score, ScoreFacts, mean_score
from raycap.vocabulary.cleaning import Cleaning


@dataclass(frozen=True)
class BleuNltk:
    """NLTK's `corpus_bleu` without smoothing, on words without punctuation; computed here, much
    faster."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = tuple(
        ScoreFacts(
            f"bleu_nltk_{n}",
            f"BLEU-{n} (NLTK)",
            f"phrases of up to {n} word{'s' * (n > 1)} that the references have too, from 0 to 1",
            format="{:.3f}",
        )
        for n in range(1, LONGEST + 1)
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """One score for each length of n-gram."""
        numbers: dict[str, int] = {}
        cleaning = Cleaning(keep_joined=False, max_words=None)

        def encode(caption: str) -> list[int]:
            return to_numbers(cleaning.words(caption), numbers)

        ours = Captions.of([encode(caption) for caption in corpus.captions])
        theirs = ReferenceGrams(
            [[encode(caption) for caption in captions] for captions in corpus.references]
        )
        parts = count_ngrams(ours, list(theirs.look_up(ours)), theirs)
        written = parts[:, LONGEST : 2 * LONGEST]
        np.maximum(written, 1, out=written)  # NLTK counts one for captions shorter than n
        signature = corpus.signature("words", length="closest", smoothing="none")
        return tuple(
            Score(facts, parts, _up_to(n), signature) for n, facts in enumerate(self.scores, 1)
        )


def _up_to(n: int) -> Callable[[Floats], Floats]:
    """The function that computes NLTK's BLEU-n from sums of `count_ngrams`."""

    def bleu(sums: Floats) -> Floats:
        found, written = sums[..., :n], sums[..., LONGEST : LONGEST + n]
        # NLTK takes the smallest float for a precision of 0, and 0 for the whole where no word is
        # found.
        precision = np.where(found > 0, found / written, sys.float_info.min)
        length, closest = sums[..., -2], sums[..., -1]
        penalty = np.exp(np.minimum(0, 1 - closest / np.maximum(length, 1)))
        score = penalty * np.exp(np.log(precision).mean(axis=-1))
        return np.asarray(np.where(sums[..., 0] > 0, score, 0))

    return bleu


@dataclass(frozen=True)
class MeteorNltk:
    """NLTK's METEOR by the best reference; its values differ much from those of the COCO
    evaluation's METEOR."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "meteor_nltk",
            "METEOR (NLTK)",
            "words, stems and synonyms that a reference has too, from 0 to 1",
            format="{:.3f}",
            picture_rank=8,
        ),
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The mean over pictures."""
        from nltk.corpus import wordnet  # takes half a second
        from nltk.translate.meteor_score import meteor_score

        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise UserError(
                "meteor_nltk needs WordNet, which is not on this machine: get it with\n"
                f"  {sys.executable} -m nltk.downloader wordnet\n"
                "or set NLTK_DATA to the folder that has it, or leave this metric out"
            ) from error
        per_picture = []
        for ours, references in zip(corpus.tokens, corpus.reference_tokens, strict=True):
            theirs = [reference.split() for reference in references]
            per_picture.append(meteor_score(theirs, ours.split()))
        return (mean_score(self.scores[0], np.array(per_picture, np.float64), corpus.signature()),)
