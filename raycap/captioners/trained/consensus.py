"""Choosing among candidate captions the one that agrees with the captions of similar photos.

The candidates are the captions of a beam search and some that are drawn at random. They are ranked
by log-probability per word + `search.consensus` x agreement with the captions of the nearest
training photos (Devlin et al. 2015). With `search.fusion` the beam search itself prefers the words
of these captions (shallow fusion).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.captioners.trained.doubt import signs_of
from raycap.captioners.trained.neighbours import Floats, Neighbours
from raycap.decoders.decoder import Decoder, Tensors
from raycap.metrics.ngrams import Ints
from raycap.search import Beam, Hypothesis, Sample
from raycap.search.captions import SearchResult
from raycap.search.cuda import to_device


def find_candidates(
    search: Beam,
    decoder: Decoder,
    memory: Tensors,
    seeds: Sequence[int],
    attention: bool = False,
    word_bonus: NDArray[np.float32] | None = None,
) -> list[list[Hypothesis]]:
    """For each picture in `memory` all captions of the beam search, then those drawn with the
    picture's seed. No caption is there twice. `word_bonus` [B, V] is that of the neighbours."""
    bonus = None
    if search.fusion and word_bonus is not None:
        device = next(iter(memory.values())).device
        bonus = to_device(torch.from_numpy(fusion_bonus(search, word_bonus)), device)
    return merge_candidates(search_candidates(search, decoder, memory, seeds, attention, bonus))


def fusion_bonus(search: Beam, word_bonus: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is added to the log-probabilities of words [B, V]."""
    weighed: NDArray[np.float32] = search.fusion * word_bonus
    return weighed


def search_candidates(
    search: Beam,
    decoder: Decoder,
    memory: Tensors,
    seeds: Sequence[int],
    attention: bool,
    bonus: Tensor | None,
) -> list[SearchResult]:
    """All captions of the beam search, and those drawn, on the device of the memory."""
    beams = replace(search, best=search.width)
    results = [beams.search(decoder, memory, attention=attention, word_bonus=bonus)]
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
        results.append(drawing.search(decoder, memory, seeds=seeds, attention=attention))
    return results


def merge_candidates(results: Sequence[SearchResult]) -> list[list[Hypothesis]]:
    """The captions of each picture, no caption twice."""
    of_picture = zip(*(result.hypotheses() for result in results), strict=True)
    found = [[one for part in parts for one in part] for parts in of_picture]
    return [list({one.words: one for one in reversed(each)}.values())[::-1] for each in found]


def rank_by_consensus(
    search: Beam,
    candidates: Sequence[Hypothesis],
    neighbours: Neighbours,
    nearest: Ints,
    likeness: Floats,
    familiar: float,
) -> tuple[list[Hypothesis], dict[str, float]]:
    """The `best` candidates of a picture whose most similar training photos are `nearest`, and the
    columns `agreement` and `doubt` of the first one. Captions that were cut off come last."""
    agreement = neighbours.agreement([one.words for one in candidates], nearest, likeness)
    scores = per_word(candidates)
    ranks = scores + search.consensus * agreement
    is_cut_off = np.array([not one.finished for one in candidates])
    order = np.lexsort((-ranks, is_cut_off))
    if not len(order):
        return [], {"agreement": 0.0}
    first = order[0]
    columns = {"agreement": float(agreement[first])}
    if neighbours.doubt is not None:
        signs = signs_of(scores[[first]], np.array([familiar]), agreement[[first]])
        columns["doubt"] = float(neighbours.doubt.chance(signs)[0])
    return [candidates[number] for number in order[: search.best]], columns


def per_word(candidates: Sequence[Hypothesis]) -> Floats:
    """The mean log-probability of each caption's words and its `<end>`."""
    return np.array(
        [one.log_probability / max(len(one.words) + one.finished, 1) for one in candidates]
    )
