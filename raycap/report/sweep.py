"""The content of a page about a sweep: curves of trials, scores by option, failures."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.errors import UserError
from raycap.metrics import ScoreFacts, find_facts
from raycap.tuning.trials import FAILED, MEASURE, TABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sweep:
    """One sweep, finished or under way."""

    name: str
    measure: str
    trials: Sequence[Mapping[str, Any]]  # rows of the table that have a score, the best first
    failed: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]  # by status
    settings: str  # the best trial's config, as YAML; "" while the sweep goes on
    charts: "Sequence[tuple[str, Figure]]"

    @property
    def options(self) -> list[str]:
        """The options that were searched."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial["parameters"]))


def is_sweep(path: str) -> bool:
    """Whether a folder holds a sweep in which at least one trial has ended."""
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
    facts = find_facts(measure) or ScoreFacts(measure, measure, "")
    rows = [{**row, "parameters": json.loads(row["parameters"])} for row in table.to_pylist()]
    scored = [row for row in rows if row["score"] is not None]
    scored.sort(key=lambda row: (row["status"] == FAILED, facts.sort_key(row["score"])))
    return Sweep(
        name,
        facts.label,
        scored,
        [row for row in rows if row["status"] == FAILED],
        Counter(row["status"] for row in rows),
        settings,
        _charts(scored, facts.label) if scored else [],
    )


def _charts(trials: Sequence[Mapping[str, Any]], measure: str) -> "list[tuple[str, Figure]]":
    from raycap.plots import bundle, scatter

    curves = {trial["trial"]: trial["curve"] for trial in trials}
    chart = bundle(curves, trials[0]["trial"], "epoch", measure)
    charts = [(f"{measure} of every trial, epoch by epoch", chart)]
    for key in dict.fromkeys(key for trial in trials for key in trial["parameters"]):
        having = [trial for trial in trials if key in trial["parameters"]]
        values = [trial["parameters"][key] for trial in having]
        # The best of those that have the option is the first.
        chart = scatter(values, [trial["score"] for trial in having], 0, key, measure)
        charts.append((f"{measure} by {key}", chart))
    return charts
