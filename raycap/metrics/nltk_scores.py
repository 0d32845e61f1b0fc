"""The scores that tutorials compute with NLTK: its corpus BLEU, and its METEOR."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raycap.errors import UserError
from raycap.metrics.answers import Answer, Floats, mean_answer
from raycap.metrics.bleu import LONGEST, counted
from raycap.metrics.corpus import Corpus, numbered
from raycap.metrics.ngrams import Captions, ReferenceGrams
from raycap.vocabulary.cleaning import Cleaning


@dataclass(frozen=True)
class BleuNltk:
    """NLTK's `corpus_bleu` without smoothing, on words without punctuation; counted here, much faster."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """One answer for each length of n-gram."""
        numbers: dict[str, int] = {}
        cleaning = Cleaning(keep_joined=False, max_words=None)
        ours = Captions.of(
            [numbered(cleaning.words(caption), numbers) for caption in corpus.captions]
        )
        theirs = ReferenceGrams(
            [
                [numbered(cleaning.words(caption), numbers) for caption in captions]
                for captions in corpus.references
            ]
        )
        parts = counted(ours, list(theirs.look_up(ours)), theirs)
        written = slice(LONGEST, 2 * LONGEST)
        parts[:, written] = np.maximum(
            parts[:, written], 1
        )  # NLTK counts one for captions shorter than n
        signature = corpus.signature("words", length="closest", smoothing="none")
        return tuple(
            Answer(f"bleu_nltk_{n}", parts, _up_to(n), signature) for n in range(1, LONGEST + 1)
        )


def _up_to(n: int) -> Callable[[Floats], Floats]:
    def bleu(sums: Floats) -> Floats:
        found, written = sums[..., :n], sums[..., LONGEST : LONGEST + n]
        # NLTK takes the smallest float for a precision of 0, and 0 for the whole where no word is found.
        precision = np.where(found > 0, found / written, sys.float_info.min)
        length, closest = sums[..., -2], sums[..., -1]
        penalty = np.exp(np.minimum(0, 1 - closest / np.maximum(length, 1)))
        return np.asarray(
            np.where(sums[..., 0] > 0, penalty * np.exp(np.log(precision).mean(axis=-1)), 0)
        )

    return bleu


@dataclass(frozen=True)
class MeteorNltk:
    """NLTK's METEOR: the best reference; it is not the Java METEOR of the COCO evaluation, nor close to it."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """The mean over pictures."""
        from nltk.corpus import wordnet  # half a second; only this metric needs it
        from nltk.translate.meteor_score import meteor_score

        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise UserError(
                "meteor_nltk needs WordNet, which is not on this machine: get it with\n"
                f"  {sys.executable} -m nltk.downloader wordnet\n"
                "or set NLTK_DATA to the folder that has it, or leave this metric out"
            ) from error
        pairs = zip(corpus.tokens, corpus.reference_tokens, strict=True)
        scores = [
            meteor_score([theirs.split() for theirs in every], ours.split())
            for ours, every in pairs
        ]
        return (mean_answer("meteor_nltk", np.array(scores, np.float64), corpus.signature()),)
