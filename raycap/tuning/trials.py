"""What is known of a sweep's trials, read off their folders, and the table of it. Needs neither Ray nor torch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.runs import RunFolder, write_json
from raycap.training import Measure
from raycap.training.journal import METRICS, epochs
from raycap.tuning.space import Parameters

TRIALS, TABLE = "trials", "trials.parquet"
MEASURE = "measure"  # of the scores, in the table's metadata
BEGUN, ENDED, FACTS = "trial.json", "ended.json", "facts.json"  # in a trial's folder
UNFINISHED, FINISHED, STOPPED, FAILED = "unfinished", "finished", "stopped", "failed"
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
        ("changes", pa.list_(pa.string())),  # of parameters on the way, by pbt
        ("folder", pa.string()),
        ("parameters", pa.string()),  # JSON; and each in a column of its own name
    ]
)


@dataclass(frozen=True)
class Trial:
    """One of them, as far as it has come."""

    name: str
    folder: Path
    status: str
    reason: str
    parameters: Parameters
    changes: Sequence[str]
    curve: Sequence[float]
    best_epoch: int  # 0 before the first
    seconds: float

    @property
    def score(self) -> float | None:
        return self.curve[self.best_epoch - 1] if self.best_epoch else None


def score_of(line: dict[str, Any], measure: Measure) -> float:
    """What trials are compared by, from the journal's line of an epoch."""
    return float(line["validation_loss" if measure == "loss" else measure])


def read_trials(sweep: Path, measure: Measure) -> list[Trial]:
    """All that have begun, in their order."""
    return [_read(begun.parent, measure) for begun in sorted((sweep / TRIALS).glob(f"*/{BEGUN}"))]


def _read(folder: Path, measure: Measure) -> Trial:
    begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    ended = json.loads((folder / ENDED).read_text(encoding="utf-8")) if (folder / ENDED).exists() else {}
    lines = epochs(folder / METRICS)
    return Trial(
        folder.name,
        folder,
        ended.get("status", UNFINISHED),
        ended.get("reason", ""),
        begun["parameters"],
        begun["changes"],
        [score_of(line, measure) for line in lines],
        max((place for place, line in enumerate(lines, 1) if line["best"]), default=0),
        (lines[-1]["seconds"] if lines else 0) + sum(line["validation_seconds"] for line in lines),
    )


def begin(folder: Path, parameters: Parameters, changes: Sequence[str]) -> None:
    """Put down what a trial tries."""
    write_json(folder / BEGUN, {"parameters": parameters, "changes": list(changes)})


def end(folder: Path, reason: str = "") -> None:
    """Put down how a trial ended."""
    status = FAILED if reason else FINISHED if (folder / FACTS).exists() else STOPPED
    write_json(folder / ENDED, {"status": status, "reason": reason})


def ranked(trials: Sequence[Trial], measure: Measure) -> list[Trial]:
    """Those that have a score and did not fail, the best first."""
    known = [trial for trial in trials if trial.score is not None and trial.status != FAILED]
    known = [trial for trial in known if math.isfinite(trial.score or 0.0)]
    return sorted(known, key=lambda trial: trial.score or 0.0, reverse=measure != "loss")


def write_table(sweep: Path, trials: Sequence[Trial], measure: Measure) -> None:
    """trials.parquet: a row for each."""
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
            "changes": trial.changes,
            "folder": str(trial.folder),
            "parameters": json.dumps(trial.parameters),
        }
        for trial in trials
    ]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({MEASURE: measure}))
    for key in dict.fromkeys(key for trial in trials for key in trial.parameters):
        table = table.append_column(key, _column([trial.parameters.get(key) for trial in trials]))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    RunFolder(str(sweep)).write(TABLE, buffer.getvalue().to_pybytes())


def _column(values: Sequence[Any]) -> pa.Array:
    """Numbers as numbers, words as words, anything else as JSON."""
    known = [value for value in values if value is not None]
    if all(type(value) in (int, float) for value in known):
        return pa.array(values, pa.float64())
    if all(isinstance(value, str) for value in known):
        return pa.array(values, pa.string())
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
