"""Similarity of caption and references in GloVe space: cosine of their mean word vectors."""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.corpus import Corpus
from raycap.metrics.scores import Floats, Score, ScoreFacts, mean_score
from raycap.vocabulary import SPECIAL_TOKENS, Vocabulary, load_glove

MEAN = ScoreFacts(
    "glove_mean",
    "GloVe similarity, mean",
    "cosine of the mean word vectors of caption and reference, up to 1; the mean over references",
    format="{:.3f}",
    picture_rank=2,
)
BEST = ScoreFacts(
    "glove_best",
    "GloVe similarity, best",
    "cosine of the mean word vectors of caption and reference, up to 1; the best reference",
    format="{:.3f}",
)


@dataclass(frozen=True)
class GloveSimilarity:
    """Cosine in GloVe space between caption and references: their mean, and the best of them."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (MEAN, BEST)
    glove: str = ""
    """GloVe text file: a path or URI; .gz and .zip too."""

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """A caption or reference without a known word has similarity 0."""
        if not self.glove:
            raise UserError(
                "glove_similarity needs a GloVe file: give --metric.glove-similarity.glove FILE"
            )
        texts = [*corpus.tokens, *chain.from_iterable(corpus.reference_tokens)]
        words = sorted({word for text in texts for word in text.split()})
        vocabulary = Vocabulary((*SPECIAL_TOKENS, *words))
        loaded = load_glove(self.glove, vocabulary)
        unknown = {*SPECIAL_TOKENS, *loaded.missing}  # their vectors are random
        rows = {word: row for row, word in enumerate(vocabulary.words) if word not in unknown}
        units = _unit_vectors(texts, rows, loaded.matrix)
        ours, theirs = units[: len(corpus.captions)], units[len(corpus.captions) :]
        counts = np.array([len(references) for references in corpus.references])
        first = np.cumsum(counts) - counts
        cosines: Floats = (np.repeat(ours, counts, axis=0) * theirs).sum(axis=1)
        signature = corpus.signature(glove=self.glove.rsplit("/", 1)[-1])
        return (
            mean_score(MEAN, np.add.reduceat(cosines, first) / counts, signature),
            mean_score(BEST, np.maximum.reduceat(cosines, first), signature),
        )


def _unit_vectors(
    texts: list[str], rows: dict[str, int], matrix: npt.NDArray[np.float32]
) -> Floats:
    """The mean vector of each text's words at length 1; zeros where no word has a vector."""
    sums = np.zeros((len(texts), matrix.shape[1]))  # [texts, E]
    for number, text in enumerate(texts):
        known = [rows[word] for word in text.split() if word in rows]
        sums[number] = matrix[known].sum(axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths > 0, lengths, 1)
