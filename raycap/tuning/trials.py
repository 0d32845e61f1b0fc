"""The trials of a sweep: reads them from their folders, writes their table, and formats them for
the terminal.

Imports neither Ray nor torch.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.metrics import facts_of
from raycap.storage import RunFolder, write_json
from raycap.storage.training_log import METRICS, read_epochs
from raycap.terminal import printable
from raycap.training.options import Measure
from raycap.tuning.space import Parameters

TRIALS, TABLE = "trials", "trials.parquet"
MEASURE = "measure"  # of the scores, in the table's metadata
BEGUN, ENDED, FACTS = "trial.json", "ended.json", "facts.json"  # in a trial's folder
UNFINISHED, FINISHED, STOPPED, FAILED = "unfinished", "finished", "stopped", "failed"
SHOWN = 10  # trials that a terminal shows
SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("status", pa.string()),  # finished, stopped (early, by the scheduler), failed, unfinished
        ("reason", pa.string()),  # why it failed
        ("score", pa.float64()),  # of its best epoch, whose captioner it keeps
        ("best_epoch", pa.int64()),
        ("epochs", pa.int64()),
        ("curve", pa.list_(pa.float64())),  # the score after each epoch
        ("seconds", pa.float64()),
        ("folder", pa.string()),
        ("parameters", pa.string()),  # JSON; and each in a column of its own name
    ]
)


@dataclass(frozen=True)
class Trial:
    """The state of one trial."""

    name: str
    folder: Path
    status: str
    reason: str
    parameters: Parameters
    curve: Sequence[float]
    best_epoch: int  # 0 before the first
    seconds: float

    @property
    def score(self) -> float | None:
        return self.curve[self.best_epoch - 1] if self.best_epoch else None


def score_of(line: dict[str, Any], measure: Measure) -> float:
    """The score by which trials are compared, from the log line of an epoch."""
    return float(line[facts_of(measure).log_name or measure])


def begin_trial(folder: Path, parameters: Parameters) -> None:
    """Record the parameters of a trial."""
    write_json(folder / BEGUN, {"parameters": parameters})


def end_trial(folder: Path, reason: str = "") -> None:
    """Record how a trial ended. `reason` is given if it failed."""
    status = FINISHED if (folder / FACTS).exists() else STOPPED
    if reason:
        status = FAILED
    write_json(folder / ENDED, {"status": status, "reason": reason})


def read_trials(sweep: Path, measure: Measure) -> list[Trial]:
    """All trials that have begun, by number."""
    trials = []
    for begun in sorted((sweep / TRIALS).glob(f"*/{BEGUN}")):
        folder, ended = begun.parent, {}
        if (folder / ENDED).exists():
            ended = json.loads((folder / ENDED).read_text(encoding="utf-8"))
        epochs = read_epochs(folder / METRICS)
        best = [number for number, line in enumerate(epochs, start=1) if line["best"]]
        training = epochs[-1]["seconds"] if epochs else 0
        trials.append(
            Trial(
                name=folder.name,
                folder=folder,
                status=ended.get("status", UNFINISHED),
                reason=ended.get("reason", ""),
                parameters=json.loads(begun.read_text(encoding="utf-8"))["parameters"],
                curve=[score_of(line, measure) for line in epochs],
                best_epoch=best[-1] if best else 0,
                seconds=training + sum(line["validation_seconds"] for line in epochs),
            )
        )
    return trials


def ranked(trials: Sequence[Trial], measure: Measure) -> list[Trial]:
    """The trials that have a score and did not fail, the best first."""
    known = [trial for trial in trials if trial.score is not None and trial.status != FAILED]
    finite = [trial for trial in known if math.isfinite(trial.score or 0.0)]
    return sorted(finite, key=lambda trial: facts_of(measure).sort_key(trial.score or 0.0))


def write_table(sweep: Path, trials: Sequence[Trial], measure: Measure) -> None:
    """trials.parquet: a row for each trial."""
    rows = [
        {
            "trial": trial.name,
            "status": trial.status,
            "reason": trial.reason,
            "score": trial.score,
            "best_epoch": trial.best_epoch,
            "epochs": len(trial.curve),
            "curve": trial.curve,
            "seconds": trial.seconds,
            "folder": str(trial.folder),
            "parameters": json.dumps(trial.parameters),
        }
        for trial in trials
    ]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({MEASURE: measure}))
    for key in dict.fromkeys(key for trial in trials for key in trial.parameters):
        column = _column([trial.parameters.get(key) for trial in trials])
        table = table.append_column(key, column)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    RunFolder(str(sweep)).write(TABLE, buffer.getvalue().to_pybytes())


def _column(values: Sequence[Any]) -> pa.Array:
    """Numbers as numbers, strings as strings, anything else as JSON."""
    known = [value for value in values if value is not None]
    if all(type(value) in (int, float) for value in known):
        return pa.array(values, pa.float64())
    if all(isinstance(value, str) for value in known):
        return pa.array(values, pa.string())
    return pa.array(
        [None if value is None else json.dumps(value) for value in values], pa.string()
    )


# ----------------------------------------------------------------------------- for the terminal


def trial_line(trials: Sequence[Trial], name: str, count: int, measure: Measure) -> str:
    """A line that says how the trial `name` ended. `count` is the number of trials of the
    sweep."""
    trial = next(trial for trial in trials if trial.name == name)
    ended = sum(trial.status != UNFINISHED for trial in trials)
    how = f"after {len(trial.curve)} epochs"
    if trial.status == FAILED:
        how = f"({printable(trial.reason)})"
    line = f"{ended} of {count}: trial {name} {trial.status} {how}"
    if trial.score is not None:
        line += f", {measure} {trial.score:.4f}"
    best = ranked(trials, measure)
    if best:
        line += f"; the best is trial {best[0].name} with {best[0].score:.4f}"
    return line + "\n"


def summary(trials: Sequence[Trial], measure: Measure) -> str:
    """The best trials as a table, the failed trials, and the number of trials by status."""
    best = ranked(trials, measure)[:SHOWN]
    keys = list(dict.fromkeys(key for trial in best for key in trial.parameters))
    table = [["trial", measure, "epoch", *keys]] if best else []
    for trial in best:
        parameters = [_cell(trial.parameters.get(key, "")) for key in keys]
        epoch = f"{trial.best_epoch} of {len(trial.curve)}"
        table.append([trial.name, f"{trial.score:.4f}", epoch, *parameters])
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    failed = [trial for trial in trials if trial.status == FAILED]
    lines += [f"trial {trial.name} failed: {printable(trial.reason)}" for trial in failed]
    statuses = Counter(trial.status for trial in trials)
    counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return "\n".join([*lines, f"{len(trials)} trials: {counts}"]) + "\n"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
