"""The training photos that a captioner remembers: a short vector and the captions of each.

    neighbours = build_neighbours(vectors, captions)      # at the end of `raycap train`
    rows, likeness = neighbours.nearest(vectors, 100)     # the most similar training photos

They are the file neighbours.safetensors of a captioner folder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.metrics.consensus import CiderConsensus

FORMAT = 1  # of the file; raise it when the meaning of its arrays changes
WIDTH = 128  # numbers of a photo's vector
# Products of so many int8 numbers are whole numbers below 2 ** 24, which float32 sums exactly: the
# nearest photos then depend neither on the batch nor on the number of threads.
MOST_WIDTH = 1024
NEAREST = 100  # photos whose captions a caption has to agree with
FAMILIAR = 5  # photos that say how familiar a picture is
ARRAYS = {
    "vectors": np.int8,
    "mean": np.float32,
    "projection": np.float16,
    "words": np.uint32,
    "lengths": np.uint16,
    "captions": np.uint16,
    "likeness": np.float32,
}

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training photos and their captions."""

    vectors: NDArray[np.int8]  # [N, d]
    mean: NDArray[np.float32]  # [D] of the square roots of features
    projection: NDArray[np.float16]  # [D, d] on their principal components, whitened
    words: NDArray[np.uint32]  # [W] of all captions, without <start> and <end>
    lengths: NDArray[np.uint16]  # [C] of the captions
    captions: NDArray[np.uint16]  # [N] of each photo
    likeness: NDArray[np.float32]  # of the pictures that it was validated with, ascending

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.vectors.T.astype(np.float32))  # [d, N]

    @cached_property
    def consensus(self) -> CiderConsensus:
        """The agreement of captions with those of some of the photos."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        words = self.words.astype(np.int64)
        captions = [words[start:end].tolist() for start, end in pairwise([0, *ends])]
        of_photo = np.cumsum(self.captions, dtype=np.int64)
        return CiderConsensus(
            [captions[start:end] for start, end in pairwise([0, *of_photo.tolist()])]
        )

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

    def unfamiliar(self, likeness: Floats) -> Floats:
        """The share of the validation pictures that are more familiar, from 0 to 1, given the
        cosines [B, K] of the nearest photos."""
        own = likeness[:, :FAMILIAR].mean(1)
        lower = np.searchsorted(self.likeness, own)
        share: Floats = 1 - lower / max(len(self.likeness), 1)
        return share

    def calibrated(self, vectors: Floats) -> "Neighbours":
        """The same, with `unfamiliar` measured by the pictures with these features [M, D]. They
        are none of the photos."""
        likeness = self.nearest(vectors, FAMILIAR)[1].mean(1)
        share = np.linspace(0, 1, min(len(likeness), 1001))
        return replace(self, likeness=np.quantile(likeness, share).astype(np.float32))

    def _embed(self, vectors: Floats) -> NDArray[np.int8]:
        return _quantised((_roots(vectors) - self.mean) @ self.projection.astype(np.float32))


def build_neighbours(
    vectors: Floats, captions: Sequence[Sequence[Sequence[int]]], width: int = WIDTH
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
    flat = [caption for of_photo in captions for caption in of_photo]
    return Neighbours(
        vectors=_quantised(centred @ projection.astype(np.float32)),
        mean=mean,
        projection=projection,
        words=np.array([word for caption in flat for word in caption], np.uint32),
        lengths=np.array([len(caption) for caption in flat], np.uint16),
        captions=np.array([len(of_photo) for of_photo in captions], np.uint16),
        likeness=np.zeros(0, np.float32),
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
    arrays = {name: np.ascontiguousarray(getattr(neighbours, name)) for name in ARRAYS}
    return safetensors.numpy.save(arrays, {"format": str(FORMAT)})


def from_file(content: bytes, width: int, words: int, name: str) -> Neighbours:
    """What `to_file` wrote, for an encoder of this width and a vocabulary of so many words.

    `name` is the file's, for messages. The file may be from anybody.
    """
    again = "get the captioner folder again, or leave the file out"
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        arrays = safetensors.numpy.load(content)
    except (ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{name} is no whole safetensors file: {again}") from error
    if metadata.get("format") != str(FORMAT):
        raise UserError(
            f"{name} has format {str(metadata.get('format'))[:20]!r}, this raycap reads {FORMAT}: "
            "use the raycap that wrote it, or train the captioner again"
        )
    wrong = [key for key, kind in ARRAYS.items() if key not in arrays or arrays[key].dtype != kind]
    if wrong:
        raise UserError(f"{name} lacks {', '.join(wrong)}, or has them in another type: {again}")
    found = Neighbours(**{key: arrays[key] for key in ARRAYS})
    photos, own_width = found.vectors.shape if found.vectors.ndim == 2 else (0, 0)
    fits = (
        photos > 0
        and 0 < own_width <= MOST_WIDTH
        and found.mean.shape == (width,)
        and found.projection.shape == (width, own_width)
        and found.captions.shape == (photos,)
        and found.words.ndim == found.lengths.ndim == found.likeness.ndim == 1
        and int(found.captions.sum(dtype=np.int64)) == len(found.lengths)
        and int(found.lengths.sum(dtype=np.int64)) == len(found.words)
        and int(found.words.max(initial=0)) < words
        and bool(np.isfinite(found.mean).all() and np.isfinite(found.projection).all())
        and bool(np.isfinite(found.likeness).all() and (np.diff(found.likeness) >= 0).all())
    )
    if not fits:
        raise UserError(f"{name} does not fit the captioner that it lies with: {again}")
    return found
