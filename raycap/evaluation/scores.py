"""The lined-up captions judged: each metric's score for each table, how sure it is, and which table is the best."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raycap.evaluation.alignment import FAILED, JUDGED, MISSING, Lineup
from raycap.evaluation.options import Evaluate
from raycap.metrics import (
    METRICS,
    Answer,
    Comparison,
    Corpus,
    bounds,
    compared,
    of_true_words,
    resampled,
)
from raycap.schema import TRUE_WORDS

# What no table wins by, and what is the better the less there is of it; of all else more is better.
NEITHER = frozenset({"length", "vocabulary", "distinct", "novel"})
LESS = frozenset({"cut_off", "repetitive", "loss", "perplexity"})
_TIE = (
    1e-6  # nearer scores are equal: the reference BLEU adds tiny numbers that would name a winner
)


@dataclass(frozen=True)
class Best:
    """The table that a metric likes best."""

    table: int
    beyond_chance: bool  # whether its lead over each of the others is


Answers = dict[str, Answer]
Intervals = dict[str, tuple[float, float]]
Duels = dict[tuple[int, int], Comparison]  # by the numbers of the first and the second table


@dataclass(frozen=True)
class Scores:
    """Answers by table and metric, with what they were made from."""

    lineup: Lineup
    answers: tuple[Answers, ...]  # for each table, by the answer's name
    intervals: tuple[Intervals, ...]  # likewise, where resampling makes sense
    comparisons: dict[str, Duels]
    best: dict[str, Best]

    @property
    def names(self) -> list[str]:
        """Of every score that a table has."""
        return list(dict.fromkeys(name for own in self.answers for name in own))


def judge(lineup: Lineup, options: Evaluate, metric_options: Any) -> Scores:
    """Every metric asked for, on every table; and how well captioners foretell words, where a table says it."""
    metrics = [getattr(metric_options, name) for name in METRICS if name in options.metrics]
    corpora = [Corpus(captions, lineup.references, lineup.learned) for captions in lineup.captions]
    answers = tuple(
        {answer.name: answer for metric in metrics for answer in metric.judge(corpus)}
        | {answer.name: answer for answer in _of_true_words(lineup, number)}
        for number, corpus in enumerate(corpora)
    )
    intervals, comparisons = _sureness(answers, options)
    scores = Scores(lineup, answers, intervals, comparisons, {})
    best = {
        name: winner
        for name in scores.names
        if name not in NEITHER and (winner := _best(name, answers, comparisons.get(name, {})))
    }
    return dataclasses.replace(scores, best=best)


def _of_true_words(lineup: Lineup, number: int) -> Sequence[Answer]:
    table = lineup.tables[number]
    if not table.vocabulary:
        return ()
    rows = {fate.key: fate.row for fate in lineup.fates[number] if fate.outcome == JUDGED}
    figures = np.array(
        [table.rows[name].to_numpy() for name in TRUE_WORDS.names], np.float64
    ).T  # [rows, 3]
    # Pictures that were not seen count for nothing here, whatever the other metrics make of them.
    figures = np.nan_to_num(np.append(figures, np.zeros((1, 3)), 0))
    return of_true_words(figures[[rows.get(key, -1) for key in lineup.keys]], table.vocabulary)


def _sureness(
    answers: Sequence[Answers], options: Evaluate
) -> tuple[tuple[Intervals, ...], dict[str, Duels]]:
    """Intervals by table and name, and the duels of all tables by name, from one set of resamples."""
    each = [
        (table, name)
        for table, own in enumerate(answers)
        for name, answer in own.items()
        if answer.resamples
    ]
    if not each or not options.samples:
        return tuple({} for _ in answers), {}
    scores = resampled(
        [answers[table][name] for table, name in each], options.samples, options.seed
    )
    drawn = dict(zip(each, scores, strict=True))
    intervals: tuple[Intervals, ...] = tuple({} for _ in answers)
    for table, name in each:
        intervals[table][name] = bounds(drawn[table, name], options.level)
    duels: dict[str, Duels] = {}
    for (one, name), (other, same) in itertools.combinations(each, 2):
        ours, theirs = answers[one][name], answers[other][same]
        if name == same and ours.signature == theirs.signature:  # others do not compare
            difference = drawn[one, name] - drawn[other, name]
            duels.setdefault(name, {})[one, other] = compared(
                ours, theirs, difference, options.level
            )
    return intervals, duels


def _best(name: str, answers: Sequence[Answers], duels: Duels) -> Best | None:
    """Of the tables that have the score; None where there is nobody to beat, or a tie, or what does not compare."""
    scores = {table: own[name].score for table, own in enumerate(answers) if name in own}
    alike = len({answers[table][name].signature for table in scores}) == 1
    order = sorted(scores, key=lambda table: scores[table], reverse=name not in LESS)
    if len(scores) == 1 or not alike or not abs(scores[order[0]] - scores[order[1]]) >= _TIE:
        return None
    own = [duel for pair, duel in duels.items() if order[0] in pair]
    # An interval of the difference that holds 0 is a lead that the choice of pictures may have made.
    return Best(order[0], bool(own) and all(duel.low > 0 or duel.high < 0 for duel in own))


def as_table(scores: Scores) -> pa.Table:
    """A row for each table and picture, and for each row that no picture belongs to: its fate and its scores."""
    tables = [_table_of(scores, number) for number in range(len(scores.answers))]
    return pa.concat_tables(tables, promote_options="default")


def _table_of(scores: Scores, number: int) -> pa.Table:
    fates = scores.lineup.fates[number]
    place = {key: row for row, key in enumerate(scores.lineup.keys)}
    # A row that belongs to no picture may have the key of one, where keys are matched by name.
    rows = [
        place.get(fate.key) if fate.outcome in (JUDGED, FAILED, MISSING) else None
        for fate in fates
    ]
    columns: dict[str, Iterable[Any]] = {
        "table": [scores.lineup.tables[number].name] * len(fates),
        "key": [fate.key for fate in fates],
        "caption": [fate.caption for fate in fates],
        "outcome": [fate.outcome for fate in fates],
        "reason": [fate.reason for fate in fates],
    }
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    for name, answer in scores.answers[number].items():
        each = answer.scores
        arrays[name] = pa.array(
            [None if row is None else float(each[row]) for row in rows], pa.float64()
        )
    return pa.table(arrays)
