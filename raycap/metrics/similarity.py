"""Similarity of caption and references in GloVe space: cosine of the mean vectors of their words."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.answers import Answer, Floats, mean_answer
from raycap.metrics.corpus import Corpus
from raycap.vocabulary import SPECIAL_TOKENS, Vocabulary, load_glove


@dataclass(frozen=True)
class GloveSimilarity:
    """Cosine in GloVe space between caption and references: their mean, and the best of them."""

    glove: str = ""
    """GloVe text file: a path or URI; .gz and .zip too."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """`glove_mean` and `glove_best`; a caption or reference without a known word has similarity 0."""
        if not self.glove:
            raise UserError(
                "glove_similarity needs a GloVe file: name it with the metric's option `glove`"
            )
        texts = [*corpus.tokens, *chain.from_iterable(corpus.reference_tokens)]
        vocabulary = Vocabulary(
            (*SPECIAL_TOKENS, *sorted({word for text in texts for word in text.split()}))
        )
        loaded = load_glove(self.glove, vocabulary)
        unknown = {*SPECIAL_TOKENS, *loaded.missing}  # their vectors are random
        places = {
            word: place for place, word in enumerate(vocabulary.words) if word not in unknown
        }
        units = _units(texts, places, loaded.matrix)
        ours, theirs = units[: len(corpus.captions)], units[len(corpus.captions) :]
        counts = np.array([len(references) for references in corpus.references])
        first = np.cumsum(counts) - counts
        cosines: Floats = (np.repeat(ours, counts, axis=0) * theirs).sum(axis=1)
        signature = corpus.signature(glove=self.glove.rsplit("/", 1)[-1])
        return (
            mean_answer("glove_mean", np.add.reduceat(cosines, first) / counts, signature),
            mean_answer("glove_best", np.maximum.reduceat(cosines, first), signature),
        )


def _units(texts: list[str], places: dict[str, int], matrix: npt.NDArray[np.float32]) -> Floats:
    """The mean vector of each text's words, made 1 long; zero where no word has a vector."""
    sums = np.zeros((len(texts), matrix.shape[1]))  # [texts, E]
    for row, text in enumerate(texts):
        known = [places[word] for word in text.split() if word in places]
        sums[row] = matrix[known].sum(axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths > 0, lengths, 1)
