"""The n-grams of photos' captions as numbers, which agreement can be computed from, and which hold
no text.

    vectors = build_gram_vectors(captions)                 # of the training photos
    vectors.agreement([[4, 9, 17]], rows, weights)         # with the captions of some photos

The captions of a photo are one vector: the mean of their tf-idf vectors, each of length 1 for each
n. Its product with the vector of a caption is close to CIDEr-D, which clips counts and discounts
other lengths for each caption. N-grams are known by a hash of 32 bits. Those that few photos have,
which is most of them, are left out: they cost room, and captions hardly ever have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.metrics.cider import LONGEST
from raycap.metrics.ngrams import Captions, Ints

Floats = NDArray[np.floating]

FEWEST_PHOTOS = 3  # that must have an n-gram in their captions
MOST_WEIGHT = 255
SIGMA = 6.0  # words that a caption may be longer or shorter than others, as in CIDEr-D
ARRAYS = {
    "gram_hashes": (np.uint32,),
    "gram_photos": (np.uint32,),
    "photo_grams": (np.uint16,),
    "photo_lengths": (np.float16,),
    "gram_places": (np.uint16, np.uint32),
    "gram_weights": (np.uint8,),
}


@dataclass(frozen=True, eq=False)
class GramVectors:
    """The n-grams of the captions of N photos."""

    gram_hashes: NDArray[np.uint32]  # [G] ascending
    gram_photos: NDArray[np.uint32]  # [G] photos that have it
    photo_grams: NDArray[np.uint16]  # [N] n-grams of each photo
    photo_lengths: NDArray[np.float16]  # [N] mean number of words of its captions
    gram_places: NDArray[np.unsignedinteger]  # [K] of the n-grams of all photos, in the table
    gram_weights: NDArray[np.uint8]  # [K] in 255ths

    def fits(self, photos: int) -> bool:
        """Whether it is of so many photos, and whole: the file may be from anybody."""
        size = len(self.gram_hashes)
        return (
            all(getattr(self, name).ndim == 1 for name in ARRAYS)
            and self.gram_photos.shape == (size,)
            and self.photo_grams.shape == self.photo_lengths.shape == (photos,)
            and self.gram_places.shape == self.gram_weights.shape
            and int(self.photo_grams.sum(dtype=np.int64)) == len(self.gram_places)
            and (not len(self.gram_places) or int(self.gram_places.max()) < size)
            and bool((np.diff(self.gram_hashes.astype(np.int64)) > 0).all())
            and bool((self.gram_photos >= 1).all() and (self.gram_photos <= photos).all())
            and bool(np.isfinite(self.photo_lengths).all())
        )

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.photo_grams, dtype=np.int64)

    @cached_property
    def _rarity(self) -> Floats:
        """Of each n-gram of the table, and of one that is not in it."""
        photos = np.append(self.gram_photos, 1)
        rarity: Floats = np.log(len(self.photo_grams)) - np.log(photos)
        return rarity

    def _mean(self, rows: Ints, weights: Floats) -> Floats:
        """The weight of each n-gram of the table in the captions of these photos; 0 of another."""
        sizes = self.photo_grams[rows].astype(np.int64)
        before = np.cumsum(sizes) - sizes
        own = np.arange(int(sizes.sum())) + np.repeat(self._ends[rows] - sizes - before, sizes)
        amounts = self.gram_weights[own] * np.repeat(weights / MOST_WEIGHT, sizes)
        size = len(self.gram_hashes) + 1
        return np.asarray(np.bincount(self.gram_places[own], amounts, size), np.float64)

    def _places(self, hashes: NDArray[np.uint32]) -> Ints:
        """In the table; its length for an n-gram that is not in it."""
        size = len(self.gram_hashes)
        places = np.searchsorted(self.gram_hashes, hashes)
        padded = np.append(self.gram_hashes, np.uint32(0))
        return np.where(padded[places] == hashes, places, size)

    def agreement(self, captions: Sequence[Sequence[int]], rows: Ints, weights: Floats) -> Floats:
        """The agreement [C] of captions with those of the photos in `rows` [R], whose weights
        [R] sum to 1."""
        mean = self._mean(rows, weights)
        flat = Captions.of(captions)
        total = np.zeros(flat.count)
        for caption, hashes, counts in _grams(flat):
            places = self._places(hashes)
            rarity = self._rarity[places]
            norms = np.sqrt(np.bincount(caption, (counts * rarity) ** 2, flat.count))
            # As in CIDEr-D, a word that is said twice agrees no more than one that is said once.
            both = np.bincount(caption, rarity * mean[places], flat.count)
            total += both / norms.clip(np.finfo(float).tiny)
        apart = flat.lengths[:, None] - self.photo_lengths[rows].astype(float)
        alike = np.exp(-(apart**2) / (2 * SIGMA**2)) @ weights
        agreement: Floats = 10 / LONGEST * total * alike
        return agreement

    def word_bonus(self, rows: Ints, weights: Floats, words: int) -> NDArray[np.float32]:
        """How much each of the words 0 to `words` agrees with the captions of the photos in
        `rows` [B, K], which have these weights: [B, words]."""
        alone = Captions(np.arange(words), np.arange(words), words)
        _, hashes, _ = _grams(alone)[0]
        places = self._places(hashes)
        bonus = [
            (self._rarity * self._mean(own, of_photos))[places]
            for own, of_photos in zip(rows, weights, strict=True)
        ]
        return np.array(bonus, np.float32)


def build_gram_vectors(
    captions: Sequence[Sequence[Sequence[int]]], fewest_photos: int = FEWEST_PHOTOS
) -> GramVectors:
    """Of the captions of each photo, as token numbers."""
    photos = len(captions)
    per_photo = np.array([len(of_photo) for of_photo in captions], np.int64)
    owner = np.repeat(np.arange(photos), per_photo)  # of each caption
    flat = Captions.of([caption for of_photo in captions for caption in of_photo])
    of_photo, hashes_of, weights_of = [], [], []
    table, table_photos = [], []
    for caption, hashes, counts in _grams(flat):
        known, place = np.unique(hashes, return_inverse=True)
        in_photos = np.unique(place * photos + owner[caption]) // max(photos, 1)
        documents = np.bincount(in_photos, minlength=len(known))
        weights = counts * (np.log(max(photos, 1)) - np.log(documents[place]))
        norms = np.sqrt(np.bincount(caption, weights**2, flat.count))
        weights /= norms[caption].clip(np.finfo(float).tiny) * per_photo[owner[caption]]
        is_kept = documents[place] >= fewest_photos
        of_photo.append(owner[caption[is_kept]])
        hashes_of.append(hashes[is_kept])
        weights_of.append(weights[is_kept])
        table.append(known[documents >= fewest_photos])
        table_photos.append(documents[documents >= fewest_photos])
    # Two n-grams of different lengths may have the same hash, once in thousands of vocabularies.
    gram_hashes, first = np.unique(np.concatenate(table), return_index=True)
    places = np.searchsorted(gram_hashes, np.concatenate(hashes_of))
    size = max(len(gram_hashes), 1)
    keys, of_key = np.unique(np.concatenate(of_photo) * size + places, return_inverse=True)
    amounts = np.rint(np.bincount(of_key, np.concatenate(weights_of), len(keys)) * MOST_WEIGHT)
    kept = amounts > 0
    lengths = np.bincount(owner, flat.lengths, photos) / np.maximum(per_photo, 1)
    return GramVectors(
        gram_hashes=gram_hashes,
        gram_photos=np.concatenate(table_photos)[first].astype(np.uint32),
        photo_grams=np.bincount(keys[kept] // size, minlength=photos).astype(np.uint16),
        photo_lengths=lengths.astype(np.float16),
        gram_places=(keys[kept] % size).astype(np.uint16 if size <= 2**16 else np.uint32),
        gram_weights=amounts[kept].clip(max=MOST_WEIGHT).astype(np.uint8),
    )


def _grams(captions: Captions) -> list[tuple[Ints, NDArray[np.uint32], Ints]]:
    """For each n the distinct n-grams of each caption: the caption, the hash, how often."""
    found = []
    tokens = captions.tokens.astype(np.uint64)
    state = np.zeros(len(tokens), np.uint64)  # of the n-gram that starts at each token
    for n in range(1, LONGEST + 1):
        starts = captions.starts(n)
        state[starts] = _mixed(state[starts] + tokens[starts + n - 1] + np.uint64(n << 32))
        hashes = state[starts] >> np.uint64(32)
        key = (captions.owner[starts].astype(np.uint64) << np.uint64(32)) | hashes
        distinct, counts = np.unique(key, return_counts=True)
        caption = (distinct >> np.uint64(32)).astype(np.int64)
        found.append((caption, distinct.astype(np.uint32), counts))
    return found


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits that spreads every bit (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = numbers ^ (numbers >> np.uint64(31))
    return mixed
