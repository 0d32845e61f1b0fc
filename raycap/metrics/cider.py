"""CIDEr and CIDEr-D, for whole corpora and as a reward on token numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.corpus import Corpus
from raycap.metrics.frequencies import DocumentFrequencies, Encoded, counted_tokens
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
    """CIDEr-D as a reward for sampled captions. The references come with the captions; how rare
    n-grams are comes from the whole data."""

    def __init__(self, frequencies: DocumentFrequencies, sigma: float = 6.0) -> None:
        """If the frequencies count `<end>`, it is a token of captions and references, too.
        Without it, a captioner learns to stop in mid-sentence ("a man in a"), because nothing is
        lost by leaving out the last words.
        """
        self._frequencies, self._sigma = frequencies, sigma

    def __call__(
        self,
        captions: npt.NDArray[np.integer],
        references: Sequence[Encoded],
        pictures: Ints,
    ) -> npt.NDArray[np.float32]:
        """The reward [B] of `captions` [B, T]. `pictures` [B] has the picture of each, and
        `references` the encoded captions of each picture, whose `<start>` and `<pad>` are ignored.

        Only the tokens up to the first `<end>` count.
        """
        empty = sum(not of_picture for of_picture in references)
        if empty:
            raise UserError(f"{empty} picture(s) have no captions to reward by: leave them out")
        count_end = self._frequencies.count_end
        captions = np.asarray(captions, np.int64)
        ended = np.cumsum(captions == END, axis=1) - (captions == END)  # 0 up to the first <end>
        counts = (ended == 0) & (captions != PAD) & (captions != START)
        if not count_end:
            counts &= captions != END
        flat = Captions(captions[counts], np.nonzero(counts)[0], len(captions))
        # The captions are added as pictures, so that all their n-grams are in the table.
        own = [[row[kept].tolist()] for row, kept in zip(captions, counts, strict=True)]
        grams = ReferenceGrams([*(counted_tokens(one, count_end) for one in references), *own])
        similarity = TfIdfSimilarity(grams, self._sigma, self._frequencies)
        looked_up = list(grams.look_up(flat))
        rewards = similarity.to_references(looked_up, flat.lengths, np.asarray(pictures, np.int64))
        return rewards.astype(np.float32)


class TfIdfSimilarity:
    """TF-IDF cosine similarity between captions and the references of their pictures."""

    def __init__(
        self,
        references: ReferenceGrams,
        sigma: float | None,
        frequencies: DocumentFrequencies | None = None,
    ) -> None:
        """`sigma` is None for CIDEr: no length penalty, and counts are not clipped. The document
        frequencies are those of the references, or given."""
        self._references, self._sigma = references, sigma
        pictures = len(references.per_picture) if frequencies is None else frequencies.pictures
        hashes = references.hashes()
        # For each n: [table + 1], [n-grams of the references], [R].
        self.rarity: list[Floats] = []
        self.weights: list[Floats] = []
        self.norms: list[Floats] = []
        for n, grams in enumerate(references.grams, start=1):
            # One more, for n-grams that no reference has (place -1).
            if frequencies is None:
                documents = np.append(references.documents(n), 1)
            else:
                documents = np.append(frequencies.of(n, next(hashes)), 1)
            rarity = np.log(pictures) - np.log(documents)
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
