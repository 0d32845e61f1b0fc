"""Captions that a captioner writes for its own training photos: of its candidates, those that
agree best with the human captions.

They were to stand in for Flickr8k's own captions, which may not be redistributed. They gain next
to nothing: what ships has vectors of the n-grams of the human captions instead.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from candidates import candidates_of

from raycap.captioners.trained import TrainedCaptioner
from raycap.metrics.consensus import CiderConsensus
from raycap.search import Beam


def own_captions(
    kept: Path,
    captioner: TrainedCaptioner,
    references: Sequence[Sequence[Sequence[int]]],
    count: int,
    width: int = 10,
    drawn: int = 20,
) -> list[list[list[int]]]:
    """The `count` best captions of each training photo, as token numbers."""
    search = captioner.plan.search
    assert isinstance(search, Beam)
    search = replace(search, consensus=0.0, fusion=0.0, best=1, width=width, drawn=drawn)
    found = candidates_of(kept, "train", captioner, search)
    reward = CiderConsensus(references)
    chosen = []
    for photo, each in enumerate(found):
        agreement = reward([one.words for one in each], np.array([photo]))
        best = np.argsort(-agreement, kind="stable")[:count]
        chosen.append([list(each[number].words) for number in best])
    return chosen
