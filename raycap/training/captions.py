"""Captions of validation pictures, written as captioning writes them: the encoder computes in the
precision of the run, the decoder in float32, and with consensus the training photos are asked.

    memory, vectors = writer.read(batch.pictures)
    writer.find(memory, vectors, keys)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raycap.captioners.generation import picture_seed
from raycap.captioners.trained.consensus import find_candidates, rank_by_consensus
from raycap.captioners.trained.neighbours import Neighbours
from raycap.decoders.decoder import Tensors
from raycap.device import Precision
from raycap.search import Beam, Hypothesis, SearchChoice
from raycap.training.network import Network
from raycap.vocabulary import Vocabulary

# The captions of a picture, best first, and the columns `agreement` and `doubt` of the first one.
Ranked = tuple[list[Hypothesis], dict[str, float]]


@dataclass(frozen=True)
class CaptionWriter:
    """A network in training, and how captions are searched for with it."""

    network: Network
    vocabulary: Vocabulary
    search: SearchChoice
    precision: Precision
    neighbours: Neighbours | None = None
    """Without them, `search.consensus` is left out."""

    def read(self, pictures: Tensor) -> tuple[Tensors, Tensor]:
        """The decoder's memory of pictures (as in `Batch`), and their vectors [B, D]."""
        with self.precision.autocast():
            grid, vectors = self.network.features(pictures)
        return self.network.decoder.prepare(grid, vectors), vectors

    def find(
        self, memory: Tensors, vectors: Tensor, keys: Sequence[str], attention: bool = False
    ) -> list[Ranked]:
        """The captions of pictures with these keys, which seed what is drawn at random."""
        search, decoder, neighbours = self.search, self.network.decoder, self.neighbours
        if not (isinstance(search, Beam) and search.consensus and neighbours is not None):
            found = search.search(decoder, memory, attention=attention).hypotheses()
            return [(captions, {}) for captions in found]
        features = vectors.float().cpu().numpy()
        rows, likeness = neighbours.nearest(features)
        familiar = neighbours.familiar(features)
        bonus = None
        if search.fusion:
            bonus = neighbours.word_bonus(rows, likeness, len(self.vocabulary))
        seeds = [picture_seed(0, key, 0) for key in keys]
        candidates = find_candidates(search, decoder, memory, seeds, attention, bonus)
        return [
            rank_by_consensus(search, each, neighbours, *near)
            for each, *near in zip(candidates, rows, likeness, familiar, strict=True)
        ]

    def texts(self, memory: Tensors, vectors: Tensor, keys: Sequence[str]) -> list[str]:
        """The best caption of each picture; "" where the search found none."""
        return [
            self.vocabulary.decode(captions[0].words) if captions else ""
            for captions, _ in self.find(memory, vectors, keys)
        ]
