"""Computes the scores of each table, their bootstrap intervals, and which table is best."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycap.evaluation.alignment import JUDGED, Alignment
from raycap.evaluation.options import Evaluate
from raycap.metrics import (
    METRICS,
    Comparison,
    Corpus,
    Score,
    ScoreFacts,
    bootstrap,
    compare_resamples,
    middle,
    reference_likelihood,
)
from raycap.schema import TRUE_WORDS

# Scores that are closer than this count as equal: BLEU's tiny constants must not decide.
_TIE = 1e-6

TableScores = dict[str, Score]  # by the name of the score
Intervals = dict[str, tuple[float, float]]
Comparisons = dict[tuple[int, int], Comparison]  # by the numbers of the first and second table


@dataclass(frozen=True)
class Best:
    """The table that is best by a score."""

    table: int
    beyond_chance: bool  # whether its lead over each of the others is


@dataclass(frozen=True)
class Evaluation:
    """The scores of all tables, and the alignment from which they were computed."""

    alignment: Alignment
    scores: tuple[TableScores, ...]  # for each table
    intervals: tuple[Intervals, ...]  # for each table, of the scores that can be resampled
    comparisons: dict[str, Comparisons]  # by the name of the score
    best: dict[str, Best]

    @property
    def facts(self) -> dict[str, ScoreFacts]:
        """The description of each score, by its name."""
        return {name: score.facts for own in self.scores for name, score in own.items()}


def score_tables(alignment: Alignment, options: Evaluate, metric_options: Any) -> Evaluation:
    """Compute the requested metrics for every table, and loss, perplexity and token accuracy for
    tables with the columns of TRUE_WORDS."""
    metrics = [getattr(metric_options, name) for name in METRICS if name in options.metrics]
    scores: list[TableScores] = []
    for number, captions in enumerate(alignment.captions):
        corpus = Corpus(captions, alignment.references, alignment.training_captions)
        own = [score for metric in metrics for score in metric.compute(corpus)]
        own += _reference_likelihood(alignment, number)
        scores.append({score.name: score for score in own})
    intervals, comparisons = _intervals_and_comparisons(scores, options)
    best = {}
    for name in dict.fromkeys(name for own in scores for name in own):
        winner = _best(name, scores, comparisons.get(name, {}))
        if winner:
            best[name] = winner
    return Evaluation(alignment, tuple(scores), intervals, comparisons, best)


def _reference_likelihood(alignment: Alignment, number: int) -> Sequence[Score]:
    table = alignment.tables[number]
    if not table.vocabulary:
        return ()
    rows = {one.key: one.row for one in alignment.outcomes[number] if one.outcome == JUDGED}
    columns = [table.rows[name].to_numpy() for name in TRUE_WORDS.names]
    # Pictures that the captioner did not see count for nothing here: a last row of zeros.
    sums = np.append(np.array(columns, np.float64).T, np.zeros((1, 3)), 0)  # [rows + 1, 3]
    own = np.nan_to_num(sums)[[rows.get(key, -1) for key in alignment.keys]]
    return reference_likelihood(own, table.vocabulary)


def _intervals_and_comparisons(
    scores: Sequence[TableScores], options: Evaluate
) -> tuple[tuple[Intervals, ...], dict[str, Comparisons]]:
    """Intervals by table and name, and comparisons of all tables by name, from the same
    resamples."""
    intervals: tuple[Intervals, ...] = tuple({} for _ in scores)
    comparisons: dict[str, Comparisons] = {}
    places = [
        (table, name)
        for table, own in enumerate(scores)
        for name, score in own.items()
        if score.can_resample
    ]
    if not places or not options.samples:
        return intervals, comparisons
    resampled = [scores[table][name] for table, name in places]
    values = dict(zip(places, bootstrap(resampled, options.samples, options.seed), strict=True))
    for table, name in places:
        intervals[table][name] = middle(values[table, name], options.level)
    for (first, name), (second, other_name) in itertools.combinations(places, 2):
        ours, theirs = scores[first][name], scores[second][other_name]
        if name != other_name or ours.signature != theirs.signature:
            continue
        differences = values[first, name] - values[second, name]
        comparison = compare_resamples(ours, theirs, differences, options.level)
        comparisons.setdefault(name, {})[first, second] = comparison
    return intervals, comparisons


def _best(name: str, scores: Sequence[TableScores], comparisons: Comparisons) -> Best | None:
    """The best table; None if there is only one, a tie, or scores that cannot be compared."""
    own = {table: those[name] for table, those in enumerate(scores) if name in those}
    facts = next(iter(own.values())).facts
    signatures = {score.signature for score in own.values()}
    if facts.better == "neither" or len(own) == 1 or len(signatures) > 1:
        return None
    first, second, *_ = sorted(own, key=lambda table: facts.sort_key(own[table].value))
    if not abs(own[first].value - own[second].value) >= _TIE:
        return None
    # If the interval of a difference contains 0, the lead is not significant.
    against = [comparison for pair, comparison in comparisons.items() if first in pair]
    is_clear = all(comparison.low > 0 or comparison.high < 0 for comparison in against)
    return Best(first, bool(against) and is_clear)
