"""CIDEr and CIDEr-D, for whole corpora and as a reward on token numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.metrics.answers import Answer, Floats, mean_answer
from raycap.metrics.corpus import Corpus
from raycap.metrics.ngrams import Captions, Grams, Ints, ReferenceGrams
from raycap.vocabulary.words import END, PAD, START

LONGEST = 4


@dataclass(frozen=True)
class Cider:
    """CIDEr: n-grams weighted by how rare they are among the pictures, as a cosine, times 10."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """The mean over pictures."""
        return (
            mean_answer(
                "cider", _of_corpus(corpus, None), corpus.signature(frequencies="references")
            ),
        )


@dataclass(frozen=True)
class CiderD:
    """CIDEr-D, which cannot be gamed by repeating words; the COCO evaluation prints it under the name CIDEr."""

    sigma: float = 6.0
    """Tokens that a caption may be longer or shorter than a reference before it loses much; COCO takes 6."""

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise UserError(f"sigma is {self.sigma}: it must be above 0")

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """The mean over pictures."""
        signature = corpus.signature(frequencies="references", sigma=self.sigma)
        return (mean_answer("cider_d", _of_corpus(corpus, self.sigma), signature),)


def _of_corpus(corpus: Corpus, sigma: float | None) -> Floats:
    agreement = _Agreement(corpus.reference_grams, sigma)
    return agreement.scores(corpus.grams, corpus.numbers.lengths, np.arange(len(corpus.captions)))


class CiderReward:
    """CIDEr-D of sampled captions, with the references' n-grams and document frequencies prepared once."""

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        count_end: bool = True,
        sigma: float = 6.0,
    ) -> None:
        """`references`: for each picture its encoded captions, of which `<start>` and `<pad>` are ignored.

        With `count_end`, `<end>` is a token of captions, references and document frequencies. Without it a
        captioner learns to stop in mid-sentence ("a man in a"), since nothing is gained by the last words.
        """
        bare = sum(not captions for captions in references)
        if bare:
            raise UserError(f"{bare} picture(s) have no captions to reward by: leave them out")
        self.count_end = count_end
        self._grams = ReferenceGrams(
            [[self._counted(caption) for caption in captions] for captions in references]
        )
        self._agreement = _Agreement(self._grams, sigma)

    def _counted(self, caption: Sequence[int]) -> list[int]:
        dropped = (PAD, START) if self.count_end else (PAD, START, END)
        return [number for number in caption if number not in dropped]

    def __call__(
        self, captions: npt.NDArray[np.integer], pictures: Ints
    ) -> npt.NDArray[np.float32]:
        """The reward [B] of `captions` [B, T], each judged by the references of its picture in `pictures` [B].

        Only the tokens up to the first `<end>` count.
        """
        captions = np.asarray(captions, np.int64)
        ended = np.cumsum(captions == END, axis=1) - (captions == END)  # 0 up to the first <end>
        counts = (ended == 0) & (captions != PAD) & (captions != START)
        if not self.count_end:
            counts &= captions != END
        flat = Captions(captions[counts], np.nonzero(counts)[0], len(captions))
        grams = list(self._grams.look_up(flat))
        return self._agreement.scores(grams, flat.lengths, np.asarray(pictures, np.int64)).astype(
            np.float32
        )


class _Agreement:
    """How well captions agree with their picture's references in rare n-grams."""

    def __init__(self, references: ReferenceGrams, sigma: float | None) -> None:
        """`sigma` None for CIDEr: no penalty for length, and counts are not clipped to the reference's."""
        self._references, self._sigma = references, sigma
        self._rarity, self._weights, self._norms = (
            [],
            [],
            [],
        )  # for each n: [table + 1], [references' grams], [R]
        for n, grams in enumerate(references.grams, start=1):
            documents = np.append(
                references.documents(n), 1
            )  # one more, for n-grams without a place (-1)
            rarity = np.log(len(references.per_picture)) - np.log(documents)
            weights = grams.count * rarity[grams.place]
            self._rarity.append(rarity)
            self._weights.append(weights)
            self._norms.append(
                np.sqrt(np.bincount(grams.caption, weights**2, len(references.picture)))
            )

    def scores(self, grams: list[Grams], lengths: Ints, pictures: Ints) -> Floats:
        """Each caption's score, from its n-grams for each n, its length and its picture."""
        references = self._references
        total = np.zeros(len(lengths))
        for n, ours in enumerate(grams, start=1):
            weights = ours.count * self._rarity[n - 1][ours.place]
            norms = np.sqrt(np.bincount(ours.caption, weights**2, len(lengths)))
            rows, theirs = references.matches(n, ours, pictures)
            caption, reference = ours.caption[rows], references.grams[n - 1].caption[theirs]
            mine, other = weights[rows], self._weights[n - 1][theirs]
            value = (mine if self._sigma is None else np.minimum(mine, other)) * other
            value /= np.maximum(
                norms[caption] * self._norms[n - 1][reference], np.finfo(float).tiny
            )
            if self._sigma is not None:
                # The reference implementation measures length in pairs of tokens: 0 and 1 token are as long.
                apart = np.maximum(lengths[caption], 1) - np.maximum(
                    references.lengths[reference], 1
                )
                value *= np.exp(-(apart**2) / (2 * self._sigma**2))
            total += np.bincount(caption, value, len(lengths))
        return 10 * total / LONGEST / references.per_picture[pictures]
