"""The files that a training run writes line by line, for whoever shows a run: JSON lines that are
read while they grow."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"  # a line for every event of the run
PICTURES = "validation.jsonl"  # a line for every validation picture of the epoch that is kept


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines so far; a killed run may have left half of one at the end."""
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete if line]


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of finished epochs."""
    return [line for line in read_log(path) if line["kind"] == "epoch"]
