"""CIDEr and CIDEr-D, for whole corpora and as a reward on token numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.corpus import Corpus
from raycap.metrics.ngrams import Captions, Grams, Ints, ReferenceGrams
from raycap.metrics.scores import Floats, Score, ScoreFacts, mean_score
from raycap.vocabulary.words import END, PAD, START

LONGEST = 4


@dataclass(frozen=True)
class Cider:
    """CIDEr: n-grams weighted by how rare they are among the pictures, as a cosine, times 10."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "cider",
            "CIDEr",
            "agreement with the references in rare words and phrases, from 0 to 10",
            format="{:.3f}",
            picture_rank=7,
        ),
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The mean over pictures."""
        signature = corpus.signature(frequencies="references")
        return (mean_score(self.scores[0], _per_picture(corpus, None), signature),)


@dataclass(frozen=True)
class CiderD:
    """CIDEr-D, in which repeated words gain nothing; the COCO evaluation calls it CIDEr."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "cider_d",
            "CIDEr-D",
            "agreement with the references in rare words and phrases, from 0 to 10; people among "
            "themselves reach about 1",
            format="{:.3f}",
            headline=True,
            picture_rank=1,
        ),
    )
    sigma: float = 6.0
    """Tokens that a caption may be longer or shorter than a reference before it loses much; COCO
    takes 6."""

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise UserError(f"sigma is {self.sigma}: it must be above 0")

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The mean over pictures."""
        signature = corpus.signature(frequencies="references", sigma=self.sigma)
        return (mean_score(self.scores[0], _per_picture(corpus, self.sigma), signature),)


def _per_picture(corpus: Corpus, sigma: float | None) -> Floats:
    similarity = TfIdfSimilarity(corpus.reference_grams, sigma)
    pictures = np.arange(len(corpus.captions))
    return similarity.to_references(corpus.grams, corpus.numbers.lengths, pictures)


class CiderReward:
    """CIDEr-D as a reward for sampled captions. The references are counted once, at the start."""

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        count_end: bool = True,
        sigma: float = 6.0,
    ) -> None:
        """`references`: the encoded captions of each picture, whose `<start>` and `<pad>` are
        ignored.

        With `count_end`, `<end>` is a token of captions, references and document frequencies.
        Without it, a captioner learns to stop in mid-sentence ("a man in a"), because nothing is
        lost by leaving out the last words.
        """
        empty = sum(not captions for captions in references)
        if empty:
            raise UserError(f"{empty} picture(s) have no captions to reward by: leave them out")
        self.count_end = count_end
        self._grams = ReferenceGrams(
            [[self._counted(caption) for caption in captions] for captions in references]
        )
        self._similarity = TfIdfSimilarity(self._grams, sigma)

    def _counted(self, caption: Sequence[int]) -> list[int]:
        dropped = (PAD, START) if self.count_end else (PAD, START, END)
        return [number for number in caption if number not in dropped]

    def __call__(
        self, captions: npt.NDArray[np.integer], pictures: Ints
    ) -> npt.NDArray[np.float32]:
        """The reward [B] of `captions` [B, T] by the references of their `pictures` [B].

        Only the tokens up to the first `<end>` count.
        """
        captions = np.asarray(captions, np.int64)
        ended = np.cumsum(captions == END, axis=1) - (captions == END)  # 0 up to the first <end>
        counts = (ended == 0) & (captions != PAD) & (captions != START)
        if not self.count_end:
            counts &= captions != END
        flat = Captions(captions[counts], np.nonzero(counts)[0], len(captions))
        grams = list(self._grams.look_up(flat))
        pictures = np.asarray(pictures, np.int64)
        rewards = self._similarity.to_references(grams, flat.lengths, pictures)
        return rewards.astype(np.float32)


class TfIdfSimilarity:
    """TF-IDF cosine similarity between captions and the references of their pictures."""

    def __init__(self, references: ReferenceGrams, sigma: float | None) -> None:
        """`sigma` is None for CIDEr: no length penalty, and counts are not clipped."""
        self._references, self._sigma = references, sigma
        # For each n: [table + 1], [n-grams of the references], [R].
        self.rarity: list[Floats] = []
        self.weights: list[Floats] = []
        self.norms: list[Floats] = []
        for n, grams in enumerate(references.grams, start=1):
            # One more, for n-grams that no reference has (place -1).
            documents = np.append(references.documents(n), 1)
            rarity = np.log(len(references.per_picture)) - np.log(documents)
            weights = grams.count * rarity[grams.place]
            squares = np.bincount(grams.caption, weights**2, len(references.picture))
            self.rarity.append(rarity)
            self.weights.append(weights)
            self.norms.append(np.sqrt(squares))

    def to_references(self, grams: list[Grams], lengths: Ints, pictures: Ints) -> Floats:
        """The score of each caption. `grams` has the n-grams for each n."""
        references = self._references
        total = np.zeros(len(lengths))
        for n, ours in enumerate(grams, start=1):
            weights = ours.count * self.rarity[n - 1][ours.place]
            norms = np.sqrt(np.bincount(ours.caption, weights**2, len(lengths)))
            rows, theirs = references.matches(n, ours, pictures)
            caption, reference = ours.caption[rows], references.grams[n - 1].caption[theirs]
            mine, other = weights[rows], self.weights[n - 1][theirs]
            clipped = mine if self._sigma is None else np.minimum(mine, other)
            both_norms = norms[caption] * self.norms[n - 1][reference]
            cosine = clipped * other / np.maximum(both_norms, np.finfo(float).tiny)
            if self._sigma is not None:
                # The reference implementation counts length in pairs of tokens, so 0 and 1 token
                # are equally long.
                own_length = np.maximum(lengths[caption], 1)
                apart = own_length - np.maximum(references.lengths[reference], 1)
                cosine *= np.exp(-(apart**2) / (2 * self._sigma**2))
            total += np.bincount(caption, cosine, len(lengths))
        return 10 * total / LONGEST / references.per_picture[pictures]
