"""Scores as JSON and as text: what was judged, what was not and why, and who is best."""

from collections import Counter
from typing import Any

from raycap.evaluation.alignment import (
    ELSEWHERE,
    EXTRA,
    FAILED,
    JUDGED,
    MISSING,
    OTHER_SPLIT,
    SILENT,
    Lineup,
)
from raycap.evaluation.options import Evaluate
from raycap.evaluation.scores import Scores
from raycap.terminal import printable

KEYS_NAMED = 5
_SAID = {
    FAILED: "failed: the row says that its picture was not captioned",
    MISSING: "missing: a picture with references, but no row",
    EXTRA: "extra: a row whose picture the references do not know",
    SILENT: "without references: a row whose picture has no human caption",
    ELSEWHERE: "not in all tables: captioned here only",
    OTHER_SPLIT: "of another split",
}


def as_data(scores: Scores, options: Evaluate) -> dict[str, Any]:
    """Everything but the single pictures."""
    return {
        "pictures": len(scores.lineup.keys),
        "bootstrap": {"samples": options.samples, "level": options.level, "seed": options.seed},
        "tables": [_table(scores, number) for number in range(len(scores.answers))],
        "comparisons": _comparisons(scores),
        "best": {
            name: {
                "table": scores.lineup.tables[best.table].name,
                "beyond_chance": best.beyond_chance,
            }
            for name, best in scores.best.items()
        },
    }


def _table(scores: Scores, number: int) -> dict[str, Any]:
    table = scores.lineup.tables[number]
    found = {}
    for name, answer in scores.answers[number].items():
        bounds = scores.intervals[number].get(name)
        low, high = bounds or (None, None)
        found[name] = {
            "score": answer.score,
            "low": low,
            "high": high,
            "signature": answer.signature,
        }
    return {
        "name": table.name,
        "path": table.path,
        "rows": len(table.rows),
        "matched_by": scores.lineup.matched_by[number],
        "outcomes": outcomes(scores.lineup, number),
        "notes": list(table.notes),
        "scores": found,
    }


def outcomes(lineup: Lineup, number: int) -> dict[str, dict[str, Any]]:
    """How many pictures and rows met each fate, with the first keys."""
    fates = lineup.fates[number]
    counts = Counter(fate.outcome for fate in fates)
    keys: dict[str, list[str]] = {outcome: [] for outcome in counts}
    for fate in fates:
        if len(keys[fate.outcome]) < KEYS_NAMED:
            keys[fate.outcome].append(fate.key)
    return {
        outcome: {"count": counts[outcome], "keys": keys[outcome]}
        for outcome in (JUDGED, *_SAID)
        if counts[outcome]
    }


def _comparisons(scores: Scores) -> list[dict[str, Any]]:
    tables = scores.lineup.tables
    return [
        {
            "metric": name,
            "first": tables[first].name,
            "second": tables[second].name,
            "difference": duel.difference,
            "low": duel.low,
            "high": duel.high,
            "chance": duel.chance,
        }
        for name, duels in scores.comparisons.items()
        for (first, second), duel in duels.items()
    ]


def as_text(scores: Scores, options: Evaluate) -> str:
    """As a person reads it: the table of scores, the duels, and what was not judged."""
    lineup = scores.lineup
    columns = [["", *scores.names]]
    for number, table in enumerate(lineup.tables):
        columns.append(
            [printable(table.name), *(_cell(scores, number, name) for name in scores.names)]
        )
    lines = [
        f"{len(lineup.keys):,} pictures judged, {_per_picture(lineup)} each",
        "",
        *_grid(columns),
    ]
    if options.samples:
        lines += [
            "",
            f"({options.level:.0%} intervals from {options.samples:,} resamples of the pictures)",
        ]
    if len(lineup.tables) > 1:
        lines += ["** best, and its lead is beyond chance; * best, but its lead may be chance"]
    lines += [line for number in range(len(lineup.tables)) for line in _account(lineup, number)]
    return "\n".join(lines) + "\n"


def _per_picture(lineup: Lineup) -> str:
    counts = [len(references) for references in lineup.references]
    few, many = min(counts), max(counts)
    return f"{few} reference{'s' * (few > 1)}" if few == many else f"{few} to {many} references"


def _cell(scores: Scores, number: int, name: str) -> str:
    if name not in scores.answers[number]:
        return "-"
    bounds = scores.intervals[number].get(name)
    between = f" [{figure(bounds[0])}, {figure(bounds[1])}]" if bounds else ""
    best = scores.best.get(name)
    mark = ("**" if best.beyond_chance else "*") if best and best.table == number else ""
    return f"{figure(scores.answers[number][name].score)}{between} {mark:<2}".rstrip()


def figure(number: float) -> str:
    """Counts whole, scores with four places."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.4f}"


def _grid(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _account(lineup: Lineup, number: int) -> list[str]:
    """What was not judged of one table, and how its keys were found."""
    table, rule = lineup.tables[number], lineup.matched_by[number]
    found = outcomes(lineup, number)
    lines = [
        f"  {fate['count']:>9,}  {_SAID[outcome]} ({', '.join(printable(key) for key in fate['keys'])}"
        f"{', ...' if fate['count'] > len(fate['keys']) else ''})"
        for outcome, fate in found.items()
        if outcome != JUDGED
    ]
    if MISSING in found and len(lineup.splits) == 1 and (split := next(iter(lineup.splits))):
        lines.append(
            f"             every judged picture is of split {split}: --split {split} asks for no others"
        )
    lines += [f"             {note}" for note in table.notes]
    if rule != "key":
        lines.append(f"             keys of rows and pictures differ; they were matched by {rule}")
    return [
        "",
        f"not judged of {printable(table.name)}:"
        if lines
        else f"every row of {printable(table.name)} was judged",
        *lines,
    ]
