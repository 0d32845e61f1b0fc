"""The training photos that a captioner remembers: a short vector and the captions of each.

    neighbours = build_neighbours(vectors, captions)      # at the end of `raycap train`
    rows, likeness = neighbours.nearest(vectors, 100)     # the most similar training photos
    neighbours.agreement([[4, 9, 17]], rows[0], likeness[0])

They are the file neighbours.safetensors of a captioner folder. Captions are kept as vectors of
n-grams.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from raycap.captioners.trained.doubt import Doubt
from raycap.captioners.trained.gram_vectors import ARRAYS as GRAMS
from raycap.captioners.trained.gram_vectors import GramVectors, build_gram_vectors
from raycap.errors import UserError
from raycap.metrics.ngrams import Ints

# Of the file; raise it when the meaning of its arrays changes. In format 1, captions were numbers
# of words.
FORMAT = 2
OLDEST_FORMAT = 1
WIDTH = 128  # numbers of a photo's vector
# Products of so many int8 numbers are whole numbers below 2 ** 24, which float32 sums exactly: the
# nearest photos then depend neither on the batch nor on the number of threads.
MOST_WIDTH = 1024
NEAREST = 300  # photos whose captions a caption has to agree with
# The weight of a photo is exp(SHARPNESS x sqrt(width) x cosine): at 128 numbers, a cosine that is
# higher by 0.035 doubles it.
SHARPNESS = 20 / 128**0.5
ARRAYS = {
    "vectors": (np.int8,),
    "mean": (np.float32,),
    "projection": (np.float16,),
    "familiarity": (np.float32,),
}
TEXTS = {"words": (np.uint32,), "lengths": (np.uint16,), "captions": (np.uint16,)}

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training photos and their captions."""

    vectors: NDArray[np.int8]  # [N, d]
    mean: NDArray[np.float32]  # [D] of the square roots of features
    projection: NDArray[np.float16]  # [D, d] on their principal components, whitened
    familiarity: NDArray[np.float32]  # of the pictures that it was validated with, ascending
    captions: GramVectors
    doubt: Doubt | None = None

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.vectors.T.astype(np.float32))  # [d, N]

    def nearest(self, vectors: Floats, count: int = NEAREST) -> tuple[NDArray[np.intp], Floats]:
        """The most similar photos [B, K] of the features [B, D], the most similar first, and their
        cosines [B, K]."""
        count = min(count, len(self.vectors))
        products = self._embed(vectors).astype(np.float32) @ self._numbers
        some = np.argpartition(-products, count - 1, axis=1)[:, :count]
        some.sort(axis=1)  # so that of equal ones the first is first
        found = np.take_along_axis(products, some, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows = np.take_along_axis(some, order, 1)
        return rows, np.take_along_axis(found, order, 1) / _scale(self.vectors.shape[1]) ** 2

    def agreement(self, captions: Sequence[Sequence[int]], rows: Ints, likeness: Floats) -> Floats:
        """The agreement [C] of captions with those of the photos in `rows` [K], the more similar
        ones of which count more."""
        return self.captions.agreement(captions, rows, self._weights(likeness))

    def word_bonus(self, rows: Ints, likeness: Floats, words: int) -> NDArray[np.float32]:
        """How much each word of the vocabulary agrees with the captions of the photos in `rows`
        [B, K]: [B, V]."""
        return self.captions.word_bonus(rows, self._weights(likeness), words)

    def _weights(self, likeness: Floats) -> Floats:
        """Of photos with these cosines [..., K]; they sum to 1."""
        sharpness = SHARPNESS * np.sqrt(self.vectors.shape[1])
        weights = np.exp(sharpness * (likeness - likeness.max(-1, keepdims=True)))
        shares: Floats = weights / weights.sum(-1, keepdims=True)
        return shares

    def familiar(self, vectors: Floats) -> Floats:
        """How much of what pictures with the features [B, D] have apart from the mean lies in the
        directions in which the photos differ most, from 0 to 1."""
        own = _roots(vectors) - self.mean
        half = max(self.projection.shape[1] // 2, 1)
        directions = self.projection[:, :half].astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0).clip(1e-12)
        within = np.square(own @ directions).sum(1)
        share: Floats = within / np.square(own).sum(1).clip(1e-12)
        return share

    def unfamiliar(self, familiar: Floats) -> Floats:
        """The share of the validation pictures that are more familiar than pictures with these
        values [B], from 0 to 1; 0 where there were none."""
        if not len(self.familiarity):
            return np.zeros(len(familiar))
        share: Floats = 1 - np.searchsorted(self.familiarity, familiar) / len(self.familiarity)
        return share

    def calibrated(self, vectors: Floats) -> "Neighbours":
        """The same, with `unfamiliar` measured by the pictures with these features [M, D]. They
        are none of the photos."""
        familiar = self.familiar(vectors)
        share = np.linspace(0, 1, min(len(familiar), 1001))
        return replace(self, familiarity=np.quantile(familiar, share).astype(np.float32))

    def _embed(self, vectors: Floats) -> NDArray[np.int8]:
        return _quantised((_roots(vectors) - self.mean) @ self.projection.astype(np.float32))


def build_neighbours(
    vectors: Floats,
    captions: Sequence[Sequence[Sequence[int]]],
    width: int = WIDTH,
) -> Neighbours:
    """Remember photos with the features [N, D] and the captions of each, as token numbers without
    `<start>` and `<end>`."""
    roots = _roots(vectors)
    mean = roots.mean(0, dtype=np.float64).astype(np.float32)
    centred = roots - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    # Directions in which the photos do not differ would only add noise.
    kept = np.flatnonzero(variances > 1e-6 * max(variances[-1], 1e-12))[::-1][:width]
    if not len(kept):
        kept = np.array([len(variances) - 1])
    spread = np.sqrt(np.maximum(variances[kept], 1e-12))
    whitening = directions[:, kept] / spread
    # Only the directions of vectors count, and float16 ends at 65,504.
    projection = (whitening / np.abs(whitening).max()).astype(np.float16)
    return Neighbours(
        vectors=_quantised(centred @ projection.astype(np.float32)),
        mean=mean,
        projection=projection,
        familiarity=np.zeros(0, np.float32),
        captions=build_gram_vectors(captions),
    )


def _roots(vectors: Floats) -> NDArray[np.float32]:
    """Square roots, which keep a few strong features from deciding everything."""
    numbers = np.asarray(vectors, np.float32)
    roots: NDArray[np.float32] = np.sign(numbers) * np.sqrt(np.abs(numbers))
    return roots


def _scale(width: int) -> float:
    """Of the numbers of a vector of length 1: four standard deviations are 127."""
    return float(127 / 4 * np.sqrt(width))


def _quantised(vectors: Floats) -> NDArray[np.int8]:
    """Vectors of length 1, in int8."""
    length = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scaled = np.rint(vectors / length * _scale(vectors.shape[1]))
    numbers: NDArray[np.int8] = np.clip(scaled, -127, 127).astype(np.int8)
    return numbers


def to_file(neighbours: Neighbours) -> bytes:
    """The content of neighbours.safetensors."""
    arrays = {name: getattr(neighbours, name) for name in ARRAYS}
    arrays |= {name: getattr(neighbours.captions, name) for name in GRAMS}
    if neighbours.doubt is not None:
        arrays["doubt"] = neighbours.doubt.numbers()
    contiguous = {name: np.ascontiguousarray(part) for name, part in arrays.items()}
    return safetensors.numpy.save(contiguous, {"format": str(FORMAT)})


def from_file(content: bytes, width: int | None, words: int, name: str) -> Neighbours:
    """What `to_file` wrote, for an encoder of this width (None for any) and a vocabulary of so
    many words.

    `name` is the file's, for messages. The file may be from anybody.
    """
    again = "get the captioner folder again, or leave the file out"
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        arrays = safetensors.numpy.load(content)
    except (ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{name} is no whole safetensors file: {again}") from error
    if metadata.get("format") not in [str(one) for one in range(OLDEST_FORMAT, FORMAT + 1)]:
        raise UserError(
            f"{name} has format {str(metadata.get('format'))[:20]!r}, this raycap reads "
            f"{OLDEST_FORMAT} to {FORMAT}: use the raycap that wrote it, or train the captioner "
            "again"
        )
    is_first = metadata["format"] == "1"
    if is_first:  # which measured by other means how familiar a picture is
        arrays["familiarity"] = np.zeros(0, np.float32)
    wanted = ARRAYS | (TEXTS if is_first else GRAMS)
    wanted |= {"doubt": (np.float32,)} if "doubt" in arrays else {}
    wrong = [
        key for key, kinds in wanted.items() if key not in arrays or arrays[key].dtype not in kinds
    ]
    if wrong:
        raise UserError(f"{name} lacks {', '.join(wrong)}, or has them in another type: {again}")
    own = {key: arrays[key] for key in ARRAYS}
    photos, own_width = own["vectors"].shape if own["vectors"].ndim == 2 else (0, 0)
    captions = _of_texts(arrays, photos, words) if is_first else _of_grams(arrays, photos)
    fits = (
        captions is not None
        and photos > 0
        and 0 < own_width <= MOST_WIDTH
        and own["mean"].ndim == 1
        and width in (None, len(own["mean"]))
        and own["projection"].shape == (len(own["mean"]), own_width)
        and own["familiarity"].ndim == 1
        and bool(np.isfinite(own["mean"]).all() and np.isfinite(own["projection"]).all())
        and bool(np.isfinite(own["familiarity"]).all())
        and bool((np.diff(own["familiarity"]) >= 0).all())
        and ("doubt" not in arrays or Doubt.fits(arrays["doubt"]))
    )
    if captions is None or not fits:
        raise UserError(f"{name} does not fit the captioner that it lies with: {again}")
    doubt = Doubt.of(arrays["doubt"]) if "doubt" in arrays else None
    return Neighbours(**own, captions=captions, doubt=doubt)


def _of_grams(arrays: Mapping[str, NDArray[Any]], photos: int) -> GramVectors | None:
    found = GramVectors(**{key: arrays[key] for key in GRAMS})
    return found if found.fits(photos) else None


def _of_texts(arrays: Mapping[str, NDArray[Any]], photos: int, most: int) -> GramVectors | None:
    """Of a file of format 1."""
    words, lengths, of_photo = (arrays[key] for key in TEXTS)
    fits = (
        of_photo.shape == (photos,)
        and words.ndim == lengths.ndim == 1
        and int(of_photo.sum(dtype=np.int64)) == len(lengths)
        and int(lengths.sum(dtype=np.int64)) == len(words)
        and int(words.max(initial=0)) < most
    )
    if not fits:
        return None
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    captions = [words[start:end].tolist() for start, end in pairwise([0, *ends])]
    last = np.cumsum(of_photo, dtype=np.int64).tolist()
    return build_gram_vectors([captions[start:end] for start, end in pairwise([0, *last])])
