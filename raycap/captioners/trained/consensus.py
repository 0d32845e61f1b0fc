"""Choosing among candidate captions the one that agrees with the captions of similar photos.

The candidates are the captions of a beam search and some that are drawn at random. They are ranked
by log-probability per word + `search.consensus` x CIDEr-D against the captions of the nearest
training photos (Devlin et al. 2015).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raycap.captioners.trained.neighbours import Floats, Neighbours
from raycap.decoders.decoder import Decoder, Tensors
from raycap.metrics.ngrams import Ints
from raycap.search import Beam, Hypothesis, Sample


def find_candidates(
    search: Beam, decoder: Decoder, memory: Tensors, seeds: Sequence[int], attention: bool = False
) -> list[list[Hypothesis]]:
    """For each picture in `memory` all captions of the beam search, then those drawn with the
    picture's seed. No caption is there twice."""
    beams = replace(search, best=search.width)
    found = beams.search(decoder, memory, attention=attention).hypotheses()
    if search.drawn:
        drawing = Sample(
            samples=search.drawn,
            temperature=search.drawn_temperature,
            max_length=search.max_length,
            min_length=search.min_length,
            no_repeat_ngram=search.no_repeat_ngram,
            no_stutter=search.no_stutter,
            allow_unknown=search.allow_unknown,
        )
        drawn = drawing.search(decoder, memory, seeds=seeds, attention=attention).hypotheses()
        found = [[*ours, *theirs] for ours, theirs in zip(found, drawn, strict=True)]
    return [list({one.words: one for one in reversed(each)}.values())[::-1] for each in found]


def rank_by_consensus(
    search: Beam, candidates: Sequence[Hypothesis], neighbours: Neighbours, nearest: Ints
) -> tuple[list[Hypothesis], float]:
    """The `best` candidates of a picture whose most similar training photos are `nearest`, and the
    agreement of the first one. Captions that were cut off come last."""
    agreement = neighbours.consensus([one.words for one in candidates], nearest)
    ranks = per_word(candidates) + search.consensus * agreement
    is_cut_off = np.array([not one.finished for one in candidates])
    order = np.lexsort((-ranks, is_cut_off))
    if not len(order):
        return [], 0.0
    return [candidates[number] for number in order[: search.best]], float(agreement[order[0]])


def per_word(candidates: Sequence[Hypothesis]) -> Floats:
    """The mean log-probability of each caption's words and its `<end>`."""
    return np.array(
        [one.log_probability / max(len(one.words) + one.finished, 1) for one in candidates]
    )
