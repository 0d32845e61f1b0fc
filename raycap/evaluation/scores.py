"""The lined-up captions judged: each metric's score for each table, how sure it is, and which table is the best."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.evaluation.alignment import FAILED, JUDGED, MISSING, Lineup
from raycap.evaluation.options import Evaluate
from raycap.metrics import METRICS, Answer, Comparison, Corpus, bounds, compared, resampled

# What no table wins by, and what is the better the less there is of it; of all else more is better.
NEITHER = frozenset({"length", "vocabulary", "distinct", "novel"})
LESS = frozenset({"cut_off", "repetitive"})
_TIE = 1e-6  # nearer scores are equal: the reference BLEU adds tiny numbers that would name a winner


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


def judge(lineup: Lineup, options: Evaluate, metric_options: Any) -> Scores:
    """Every metric asked for, on every table."""
    metrics = [getattr(metric_options, name) for name in METRICS if name in options.metrics]
    corpora = [Corpus(captions, lineup.references, lineup.learned) for captions in lineup.captions]
    answers = tuple(
        {answer.name: answer for metric in metrics for answer in metric.judge(corpus)} for corpus in corpora
    )
    intervals, comparisons = _sureness(answers, options)
    best = {
        name: winner
        for name in answers[0]
        if name not in NEITHER
        and (winner := _best([each[name] for each in answers], name in LESS, comparisons.get(name, {})))
    }
    return Scores(lineup, answers, intervals, comparisons, best)


def _sureness(answers: Sequence[Answers], options: Evaluate) -> tuple[tuple[Intervals, ...], dict[str, Duels]]:
    """Intervals by table and name, and the duels of all tables by name, from one set of resamples."""
    names = [name for name, answer in answers[0].items() if answer.resamples]
    if not names or not options.samples:
        return tuple({} for _ in answers), {}
    drawn = resampled([each[name] for each in answers for name in names], options.samples, options.seed)
    drawn = drawn.reshape(len(answers), len(names), options.samples)
    intervals = tuple(
        {name: bounds(own, options.level) for name, own in zip(names, table, strict=True)} for table in drawn
    )
    pairs = list(itertools.combinations(range(len(answers)), 2))
    duels = {
        name: {
            (one, other): compared(
                answers[one][name], answers[other][name], drawn[one, place] - drawn[other, place], options.level
            )
            for one, other in pairs
        }
        for place, name in enumerate(names)
    }
    return intervals, duels


def _best(answers: list[Answer], less: bool, duels: Duels) -> Best | None:
    """None where there is nobody to beat, or a tie."""
    scores = [-answer.score if less else answer.score for answer in answers]
    winner = scores.index(max(scores))
    if sum(score > scores[winner] - _TIE for score in scores) > 1 or len(scores) == 1:
        return None
    own = [duel for pair, duel in duels.items() if winner in pair]
    # An interval of the difference that holds 0 is a lead that the choice of pictures may have made.
    return Best(winner, bool(own) and all(duel.low > 0 or duel.high < 0 for duel in own))


def as_table(scores: Scores) -> pa.Table:
    """A row for each table and picture, and for each row that no picture belongs to: its fate and its scores."""
    return pa.concat_tables([_table_of(scores, number) for number in range(len(scores.answers))])


def _table_of(scores: Scores, number: int) -> pa.Table:
    fates = scores.lineup.fates[number]
    place = {key: row for row, key in enumerate(scores.lineup.keys)}
    # A row that belongs to no picture may have the key of one, where keys are matched by name.
    rows = [place.get(fate.key) if fate.outcome in (JUDGED, FAILED, MISSING) else None for fate in fates]
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
        arrays[name] = pa.array([None if row is None else float(each[row]) for row in rows], pa.float64())
    return pa.table(arrays)
