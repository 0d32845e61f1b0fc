"""From what a search has found to captions in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raycap.captioners.protocol import Alternative, Prediction
from raycap.captioners.trained.batch_work import FoundBatch
from raycap.captioners.trained.consensus import merge_candidates, rank_by_consensus
from raycap.captioners.trained.neighbours import Neighbours
from raycap.schema import CUT_OFF, NOT_SURE, UNFAMILIAR
from raycap.search import Beam, Hypothesis, Sample
from raycap.vocabulary import Vocabulary

# From this share of validation pictures that are more familiar, a picture has the flag.
MOST_UNFAMILIAR = 0.95


@dataclass(frozen=True)
class TrueWords:
    """How well a captioner predicts a picture's own captions, word by word, given the true words
    before."""

    surprise: float
    """Cross-entropy in nats, summed over the words."""
    right: int
    """Words that it thought the likeliest."""
    count: int
    """True words, with the `<end>` of each caption."""


def predictions_of(
    found: FoundBatch, vocabulary: Vocabulary, neighbours: Neighbours | None
) -> list[Prediction]:
    """One for each picture of the request. All that was found is in host memory."""
    request = found.batch.request
    count = len(request.pictures)
    true_words: Sequence[TrueWords | None] = [None] * count
    if found.true_words is not None:
        sums = found.true_words[:count].tolist()
        true_words = [
            TrueWords(surprise, int(right), int(words)) for surprise, right, words in sums
        ]
    nearest = found.nearest
    unfamiliar = [None] * count if nearest is None else nearest.unfamiliar[:count]
    ranked = _ranked(found, neighbours)[:count]
    predictions = [
        _in_words(*each, vocabulary, neighbours)
        for each in zip(ranked, true_words, unfamiliar, strict=True)
    ]
    if request.draws_again and not isinstance(request.usual, Sample):
        others = request.usual.best - 1 if isinstance(request.usual, Beam) else 0
        predictions = [
            replace(each, alternatives=each.alternatives[:others]) for each in predictions
        ]
    for place, fault in request.faults.items():
        predictions[place] = fault
    return predictions


def _ranked(
    found: FoundBatch, neighbours: Neighbours | None
) -> list[tuple[list[Hypothesis], dict[str, float]]]:
    """The captions of each picture, best first, and the values of columns that say how well the
    first one agrees with similar photos, where it was chosen by consensus."""
    search, nearest = found.batch.request.search, found.nearest
    if not (isinstance(search, Beam) and search.consensus):
        [result] = found.results
        return [(captions, {}) for captions in result.hypotheses()]
    assert nearest is not None and neighbours is not None
    candidates = merge_candidates(found.results)
    near = zip(candidates, nearest.rows, nearest.likeness, nearest.familiar, strict=True)
    # Black pictures, which fill the batch up, come last.
    pictures = len(found.batch.request.pictures)
    return [
        rank_by_consensus(search, each, neighbours, *its_near)
        for each, *its_near in list(near)[:pictures]
    ]


def _in_words(
    found: tuple[Sequence[Hypothesis], Mapping[str, float]],
    true_words: TrueWords | None,
    unfamiliar: float | None,
    vocabulary: Vocabulary,
    neighbours: Neighbours | None,
) -> Prediction:
    hypotheses, agreement = found
    extras: dict[str, Any] = dict(agreement)
    if unfamiliar is not None:
        extras["unfamiliar"] = unfamiliar
    if true_words is not None:
        extras["true_surprise"] = true_words.surprise
        extras["true_right"] = true_words.right
        extras["true_count"] = true_words.count
    # Weights that overflow make captions without a score, which mean nothing.
    good = [one for one in hypotheses if math.isfinite(one.score)]
    if not good:
        return Prediction(error="the search found no caption", extras=extras)
    best, *others = good
    extras["words"] = [vocabulary.words[word] for word in best.words]
    if best.attention is not None:
        extras["attention"] = best.attention.float().numpy()  # [T, P]
    decode = vocabulary.decode
    return Prediction(
        caption=decode(best.words),
        score=best.score,
        alternatives=tuple(Alternative(decode(other.words), other.score) for other in others),
        extras=extras,
        flags=(
            *(() if best.finished else (CUT_OFF,)),
            *((UNFAMILIAR,) if (unfamiliar or 0.0) >= MOST_UNFAMILIAR else ()),
            *((NOT_SURE,) if _is_doubtful(extras, neighbours) else ()),
        ),
    )


def _is_doubtful(extras: Mapping[str, Any], neighbours: Neighbours | None) -> bool:
    doubt = None if neighbours is None else neighbours.doubt
    if doubt is None or "doubt" not in extras:
        return False
    return bool(extras["doubt"] >= doubt.threshold or extras["unfamiliar"] >= MOST_UNFAMILIAR)
