"""What a page tells of a sweep: every trial's curve, each option against the scores, the best, what failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from raycap.errors import UserError
from raycap.plots import bundle, scatter
from raycap.report.tables import NAMES
from raycap.tuning.trials import FAILED, MEASURE, TABLE

LOSS = "loss"  # the measure of which the lowest is best


@dataclass(frozen=True)
class Sweep:
    """One sweep, finished or under way."""

    name: str
    measure: str
    trials: Sequence[Mapping[str, Any]]  # rows of the table that have a score, the best first
    failed: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]  # by status
    settings: str  # the best's config, as YAML; "" while the sweep goes on
    charts: Sequence[tuple[str, Figure]]

    @property
    def options(self) -> list[str]:
        """What was searched."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial["parameters"]))


def is_sweep(path: str) -> bool:
    """Whether a sweep lies there, of which a trial has ended."""
    return (Path(path) / TABLE).is_file()


def read_sweep(name: str, path: str) -> Sweep:
    """The sweep in a folder, from its table of trials."""
    try:
        table = pq.read_table(Path(path) / TABLE)
        best = Path(path) / "best.yaml"
        settings = best.read_text(encoding="utf-8") if best.exists() else ""
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read the sweep in {path}: {error}") from error
    measure = (table.schema.metadata or {}).get(MEASURE.encode(), b"score").decode()
    rows = [{**row, "parameters": json.loads(row["parameters"])} for row in table.to_pylist()]
    scored = [row for row in rows if row["score"] is not None]
    scored.sort(
        key=lambda row: (
            row["status"] == FAILED,
            row["score"] if measure == LOSS else -row["score"],
        )
    )
    statuses = [row["status"] for row in rows]
    return Sweep(
        name,
        NAMES.get(measure, measure),
        scored,
        [row for row in rows if row["status"] == FAILED],
        {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        settings,
        list(_charts(scored, NAMES.get(measure, measure))) if scored else [],
    )


def _charts(trials: Sequence[Mapping[str, Any]], measure: str) -> list[tuple[str, Figure]]:
    curves = {trial["trial"]: trial["curve"] for trial in trials}
    drawn = [
        (
            f"{measure} of every trial, epoch by epoch",
            bundle(curves, trials[0]["trial"], "epoch", measure),
        )
    ]
    for key in dict.fromkeys(key for trial in trials for key in trial["parameters"]):
        having = [trial for trial in trials if key in trial["parameters"]]
        places = [trial["parameters"][key] for trial in having]
        # The best of those that have it stands first.
        drawn.append(
            (
                f"{measure} by {key}",
                scatter(places, [trial["score"] for trial in having], 0, key, measure),
            )
        )
    return drawn
