"""Writes an evaluation as JSON, as text for the terminal, and as a table with a row per
picture."""

from collections import Counter
from typing import Any

import pyarrow as pa

from raycap.evaluation.alignment import (
    EXTRA,
    FAILED,
    JUDGED,
    MISSING,
    NOT_CHOSEN,
    NOT_IN_ALL_TABLES,
    OTHER_SPLIT,
    WITHOUT_REFERENCES,
    Alignment,
)
from raycap.evaluation.options import Evaluate
from raycap.evaluation.scoring import Evaluation
from raycap.terminal import printable

KEYS_NAMED = 5
_OUTCOMES = {
    FAILED: "failed: the row says that its picture was not captioned",
    MISSING: "missing: a picture with references, but no row",
    EXTRA: "extra: a row whose picture the references do not have",
    WITHOUT_REFERENCES: "without references: a row whose picture has no human caption",
    NOT_IN_ALL_TABLES: "not in all tables: captioned here only",
    NOT_CHOSEN: "left out by --only, here or in another table",
    OTHER_SPLIT: "of another split",
}


def evaluation_as_json(evaluation: Evaluation, options: Evaluate) -> dict[str, Any]:
    """The evaluation as JSON, without single pictures."""
    alignment = evaluation.alignment
    names = [table.name for table in alignment.tables]
    comparisons = [
        {
            "metric": metric,
            "first": names[first],
            "second": names[second],
            "difference": comparison.difference,
            "low": comparison.low,
            "high": comparison.high,
            "chance": comparison.chance,
        }
        for metric, of_metric in evaluation.comparisons.items()
        for (first, second), comparison in of_metric.items()
    ]
    return {
        "pictures": len(alignment.keys),
        "bootstrap": {"samples": options.samples, "level": options.level, "seed": options.seed},
        "tables": [_table_as_json(evaluation, number) for number in range(len(names))],
        "comparisons": comparisons,
        "best": {
            metric: {"table": names[best.table], "beyond_chance": best.beyond_chance}
            for metric, best in evaluation.best.items()
        },
    }


def _table_as_json(evaluation: Evaluation, number: int) -> dict[str, Any]:
    table = evaluation.alignment.tables[number]
    scores = {}
    for name, score in evaluation.scores[number].items():
        low, high = evaluation.intervals[number].get(name, (None, None))
        scores[name] = {
            "score": score.value,
            "low": low,
            "high": high,
            "signature": score.signature,
        }
    return {
        "name": table.name,
        "path": table.path,
        "rows": len(table.rows),
        "matched_by": evaluation.alignment.matched_by[number],
        "outcomes": outcome_counts(evaluation.alignment, number),
        "notes": list(table.notes),
        "scores": scores,
    }


def outcome_counts(alignment: Alignment, number: int) -> dict[str, dict[str, Any]]:
    """How many pictures and rows of a table had each outcome, with the first keys."""
    counts: Counter[str] = Counter()
    keys: dict[str, list[str]] = {}
    for outcome in alignment.outcomes[number]:
        counts[outcome.outcome] += 1
        first = keys.setdefault(outcome.outcome, [])
        if len(first) < KEYS_NAMED:
            first.append(outcome.key)
    return {
        outcome: {"count": counts[outcome], "keys": keys[outcome]}
        for outcome in (JUDGED, *_OUTCOMES)
        if counts[outcome]
    }


def evaluation_as_text(evaluation: Evaluation, options: Evaluate) -> str:
    """The text for the terminal: a table of scores, and what was not scored and why."""
    alignment = evaluation.alignment
    names = list(evaluation.facts)
    columns = [["", *names]]
    for number, table in enumerate(alignment.tables):
        cells = [_cell(evaluation, number, name) for name in names]
        columns.append([printable(table.name), *cells])
    widths = [max(map(len, column)) for column in columns]

    counts = [len(references) for references in alignment.references]
    few, many = min(counts), max(counts)
    references = f"{few} reference{'s' * (few > 1)}"
    if few != many:
        references = f"{few} to {many} references"
    lines = [f"{len(alignment.keys):,} pictures judged, {references} each", ""]
    rows = zip(*columns, strict=True)
    lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if options.samples:
        resamples = f"{options.samples:,} resamples of the pictures"
        lines += ["", f"({options.level:.0%} intervals from {resamples})"]
    if len(alignment.tables) > 1:
        lines += ["** best, and its lead is beyond chance; * best, but its lead may be chance"]
    for number in range(len(alignment.tables)):
        lines += _not_judged(alignment, number)
    return "\n".join(lines) + "\n"


def _cell(evaluation: Evaluation, number: int, name: str) -> str:
    if name not in evaluation.scores[number]:
        return "-"
    cell = number_text(evaluation.scores[number][name].value)
    if bounds := evaluation.intervals[number].get(name):
        cell += f" [{number_text(bounds[0])}, {number_text(bounds[1])}]"
    best = evaluation.best.get(name)
    if best and best.table == number:
        cell += " **" if best.beyond_chance else " *"
    return cell


def number_text(number: float) -> str:
    """Counts without decimals, scores with four."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.4f}"


def _not_judged(alignment: Alignment, number: int) -> list[str]:
    """Lines about the rows and pictures of a table that were not scored, and how keys were
    matched."""
    table, rule = alignment.tables[number], alignment.matched_by[number]
    counts = outcome_counts(alignment, number)
    lines = []
    for outcome, found in counts.items():
        if outcome != JUDGED:
            keys = ", ".join(printable(key) for key in found["keys"])
            more = ", ..." if found["count"] > len(found["keys"]) else ""
            lines.append(f"  {found['count']:>9,}  {_OUTCOMES[outcome]} ({keys}{more})")
    indent = " " * 13
    if MISSING in counts and len(alignment.splits) == 1 and (split := min(alignment.splits)):
        only = f"every judged picture is of split {split}"
        lines.append(f"{indent}{only}: --split {split} asks for no others")
    lines += [f"{indent}{note}" for note in table.notes]
    if rule != "key":
        lines.append(f"{indent}keys of rows and pictures differ; they were matched by {rule}")
    name = printable(table.name)
    title = f"not judged of {name}:" if lines else f"every row of {name} was judged"
    return ["", title, *lines]


def evaluation_as_table(evaluation: Evaluation) -> pa.Table:
    """A row for each table and picture, and for each row without a picture: outcome and scores."""
    tables = []
    for number, outcomes in enumerate(evaluation.alignment.outcomes):
        row_of = {key: row for row, key in enumerate(evaluation.alignment.keys)}
        # If keys were matched by name, a row without a picture may have the same key as a picture.
        rows = [
            row_of.get(one.key) if one.outcome in (JUDGED, FAILED, MISSING) else None
            for one in outcomes
        ]
        columns = {
            "table": [evaluation.alignment.tables[number].name] * len(outcomes),
            "key": [one.key for one in outcomes],
            "caption": [one.caption for one in outcomes],
            "outcome": [one.outcome for one in outcomes],
            "reason": [one.reason for one in outcomes],
        }
        arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        for name, score in evaluation.scores[number].items():
            per_picture = score.per_picture
            values = [None if row is None else float(per_picture[row]) for row in rows]
            arrays[name] = pa.array(values, pa.float64())
        tables.append(pa.table(arrays))
    return pa.concat_tables(tables, promote_options="default")
