"""The result of a run: facts.json for programs, and a summary for people."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raycap import __version__
from raycap.bulk.counts import RowCounts
from raycap.bulk.job import FACTS, RunResult, TableJob
from raycap.fetch.hosts import host_lines
from raycap.options import to_plain
from raycap.sources.manifest import counted
from raycap.sources.notes import line_of
from raycap.storage import RunFolder
from raycap.terminal import printable

COMMONEST_REASONS = 5
HOSTS_IN_SUMMARY, HOSTS_IN_FACTS = 5, 100


def write_facts(
    job: TableJob, folder: RunFolder, result: RunResult, version: int, more: dict[str, Any]
) -> None:
    """Write facts.json, the last file of a run. It describes the `version` of the table."""
    held, made = result.held, result.made
    reasons = [
        {"status": status, "reason": reason, "rows": rows}
        for (status, reason), rows in held.reasons.most_common(4 * COMMONEST_REASONS)
    ]
    facts = {
        "raycap": __version__,
        "act": job.command,
        "table_version": version,
        "rows": held.rows,
        "failed": held.failed,
        "statuses": dict(held.statuses.most_common()),
        "reasons": reasons,
        "flagged": held.flagged,
        "flags": dict(held.flags.most_common()),
        "left_out": list(result.left_out),
        "notes": list(result.notes),
        "made_in_this_run": made.rows,
        "seconds": round(result.seconds, 1),
        "rows_per_second": round(made.rows / max(result.seconds, 1e-9), 2),
        "nodes": rows_by_node(made.makers, result.seconds),
        "hosts_in_this_run": made.hosts.report()[:HOSTS_IN_FACTS],
        "faults": list(result.faults),
        **more,
        "identity": job.identity,
        "finishing": job.finishing.identity() if job.finishing else {},
        "options": to_plain(job.options),
        "config": job.config,
        "versions": {
            "python": platform.python_version(),
            "ray": importlib.metadata.version("ray"),
        },
    }
    folder.write_json(FACTS, facts)


def update_facts(folder: RunFolder, result: RunResult) -> None:
    """Update facts.json after a run that made no rows. What the source leaves out may have changed
    since the last run."""
    facts = folder.read_json(FACTS) or {}
    now = {"left_out": list(result.left_out), "notes": list(result.notes)}
    if {name: facts.get(name, []) for name in now} != now:
        folder.write_json(FACTS, facts | now)


def counts_in(facts: dict[str, Any] | None, version: int) -> RowCounts | None:
    """The counts in facts.json, if it describes this version of the table. Of the reasons it has
    the commonest."""
    if facts is None or facts.get("table_version") != version:
        return None
    reasons = {(each["status"], each["reason"]): each["rows"] for each in facts["reasons"]}
    flags = Counter(facts.get("flags", {}))
    statuses, flagged = Counter(facts["statuses"]), facts.get("flagged", 0)
    return RowCounts(statuses, Counter(reasons), flags=flags, flagged=flagged)


def summary(job: TableJob, folder: RunFolder, result: RunResult) -> str:
    """The text that is printed at the end of a run."""
    made, held = result.made, result.held
    rate = made.rows / max(result.seconds, 1e-9)
    lines = [
        f"{held.rows:,} rows, {held.failed:,} failed; {made.rows:,} made now, in "
        f"{result.seconds:,.1f} s ({rate:,.1f} rows/s)",
        *reason_lines(held),
        *flag_lines(held),
        *note_lines(result.left_out, result.notes),
        *host_lines(made.hosts.report(), HOSTS_IN_SUMMARY),
        f"written: {folder / job.table}",
    ]
    if held.failed:
        lines.append(
            "failed rows are in the table too, each with its status and reason; "
            "--retry failed tries them again"
        )
    return "\n".join(lines) + "\n"


def note_lines(left_out: Sequence[dict[str, Any]], notes: Sequence[str]) -> list[str]:
    """Lines about what the source left out or found odd, safe to print."""
    lines = []
    if left_out:
        lines += ["left out, without a row:", *(f"  {line_of(item)}" for item in left_out)]
    if notes:
        lines += ["noted in the source:", *(f"  {line}" for line in notes)]
    return [printable(line) for line in lines]


def reason_lines(counts: RowCounts) -> list[str]:
    """The most frequent reasons of failed rows, safe to print."""
    return [
        f"  {rows:>9,}  {status}: {printable(reason)}"
        for (status, reason), rows in counts.reasons.most_common(COMMONEST_REASONS)
    ]


def flag_lines(counts: RowCounts) -> list[str]:
    """How many captions have a flag, and which ones."""
    if not counts.flagged:
        return []
    flags = ", ".join(f"{printable(flag)} {rows:,}" for flag, rows in counts.flags.most_common())
    captions = counted(counts.flagged, "caption has a flag", "captions have flags")
    return [f"{captions} ({flags}); --retry flagged tries again"]


def rows_by_node(rows: Mapping[str, int], seconds: float) -> dict[str, dict[str, float]]:
    """For each node its rows, rows per second and number of worker processes. `rows` has the rows
    of each worker, by its name "NODE PID". A worker that was replaced counts twice."""
    nodes: dict[str, dict[str, float]] = {}
    for worker, count in sorted(rows.items()):
        name = worker.rpartition(" ")[0]
        node = nodes.setdefault(name, {"rows": 0, "rows_per_second": 0.0, "processes": 0})
        node["rows"] += count
        node["rows_per_second"] = round(node["rows"] / max(seconds, 1e-9), 2)
        node["processes"] += 1
    return nodes
