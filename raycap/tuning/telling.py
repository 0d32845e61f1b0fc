"""A sweep as a terminal shows it."""

from collections import Counter
from collections.abc import Sequence

from raycap.terminal import printable
from raycap.training import Measure
from raycap.tuning.trials import FAILED, UNFINISHED, Trial, ranked

SHOWN = 10  # trials in the table


def line_of(trials: Sequence[Trial], name: str, count: int, measure: Measure) -> str:
    """How one of `count` trials ended."""
    one = next(trial for trial in trials if trial.name == name)
    ended = sum(trial.status != UNFINISHED for trial in trials)
    how = f"after {len(one.curve)} epochs" if one.status != FAILED else f"({printable(one.reason)})"
    score = "" if one.score is None else f", {measure} {one.score:.4f}"
    best = next(iter(ranked(trials, measure)), None)
    lead = "" if best is None else f"; the best is trial {best.name} with {best.score:.4f}"
    return f"{ended} of {count}: trial {name} {one.status} {how}{score}{lead}\n"


def told(trials: Sequence[Trial], measure: Measure) -> str:
    """The best trials as a table, and how many ended how."""
    best = ranked(trials, measure)[:SHOWN]
    keys = list(dict.fromkeys(key for trial in best for key in trial.parameters))
    heads = ["trial", measure, "epoch", *keys]
    rows = [
        [trial.name, f"{trial.score:.4f}", f"{trial.best_epoch} of {len(trial.curve)}"]
        + [_shown(trial.parameters.get(key, "")) for key in keys]
        for trial in best
    ]
    table = [heads, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    failed = [f"trial {one.name} failed: {printable(one.reason)}" for one in trials if one.status == FAILED]
    counts = Counter(trial.status for trial in trials)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, *failed, f"{len(trials)} trials: {summary}"]) + "\n"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
