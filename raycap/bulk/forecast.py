"""`--dry-run`: what a run would do, and what it would take if an earlier run says so."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.counts import RowCounts
from raycap.bulk.estimate_text import estimate_lines
from raycap.bulk.extrapolation import Estimate, money_of, times_rows, tokens_per_row
from raycap.bulk.facts import note_lines
from raycap.bulk.finish import counts_of_files
from raycap.bulk.identity import differences_from, origin
from raycap.bulk.intervals import Interval, wilson_interval
from raycap.bulk.job import FACTS, RUN, TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.plan import plans_of_table
from raycap.bulk.precision import as_recorded
from raycap.bulk.selection import chosen_rows
from raycap.bulk.table import OutputTable
from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.sources import Notes
from raycap.sources.manifest import counted
from raycap.storage import RunFolder, output_folder

# Where an earlier run with the same captioner is looked for, and what is read of it.
FOLDERS_BESIDE, FILES_READ = 200, 8
LEAST_ROWS = 50  # of a run whose rate says something


def forecast(job: TableJob, out: RunFolder) -> tuple[str, int]:
    """The text of --dry-run: what a run would do; and how many rows it would make. Writes
    nothing."""
    record = out.read_json(RUN)
    table = OutputTable(out / job.table)
    taken, lines = TakenKeys(), []
    rows = pending = 0
    if different := differences_from(as_recorded(job, record), record):
        lines.append(f"{out} holds rows of another run: {'; '.join(different)}")
    else:
        held = RowCounts()
        for counts in counts_of_files(table.folder, [file.path for file in table.files()]):
            held.add(counts)
        lines.append(f"{out} holds {held.rows:,} rows, {held.failed:,} failed")
        for plan in plans_of_table(out, table.completed):
            plan.add_keys(out, taken)
            if plan.operation > table.completed:
                chunks = table.chunks()
                pending += sum(
                    chunk.rows
                    for shard in plan.shards(out)
                    for chunk in shard.chunks(plan.operation)
                    if chunk not in chunks
                )
    notes = Notes()
    for found in chosen_rows(job.source, job.options, notes):
        rows += len(found)
        pending += sum(taken.lacks(found["key"]).to_pylist())
    noted = json.loads(notes.to_json())
    first = [f"{rows:,} rows in {job.source.path}", *note_lines(**noted)]
    text = "\n".join([*first, *lines, f"{pending:,} rows would be made"]) + "\n"
    return text, pending


def earlier_rate_lines(
    job: TableJob, out: RunFolder, rows: int, prices: CaptionOptions
) -> list[str]:
    """Lines about what `rows` rows will take, if an earlier run with the same captioner, in this
    folder or one beside it, says so; else how to find out."""
    found = next(_earlier_runs(job, out), None)
    if found is None:
        return ["what they will take is not known yet: --estimate captions 200 of them"]
    folder, facts = found
    table = _tokens_of_rows(folder / job.table)
    seconds = 1 / facts["rows_per_second"]
    hours = Interval(seconds, seconds, seconds).times(rows / 3600)
    tokens_in, tokens_out = (times_rows(each, rows) for each in tokens_per_row(table))
    workers = sum(node.get("processes", 1) for node in facts["nodes"].values())
    gpus = workers * (facts.get("options", {}).get("gpus") or 0)
    estimate = Estimate(
        rows,
        hours,
        tokens_in,
        tokens_out,
        wilson_interval(facts["failed"], facts["rows"]),
        money_of(hours.times(gpus or max(1, len(facts["nodes"]))), tokens_in, tokens_out, prices),
    )
    return [
        f"as the run in {folder} ({facts['made_in_this_run']:,} rows in "
        f"{facts['seconds']:,.0f} s, {counted(workers, 'worker', 'workers')}) they will take, "
        "with 95% intervals:",
        *estimate_lines(estimate, prices),
    ]


def _earlier_runs(job: TableJob, out: RunFolder) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Folders with runs of the same captioner that have made rows, and their facts."""
    parent, _, name = out.uri.rstrip("/").rpartition("/")
    beside: list[str] = []
    with contextlib.suppress(UserError, OSError):  # it may be closed to this user
        beside = output_folder(parent).folders() if parent else []
    others = [each for each in beside[:FOLDERS_BESIDE] if each != name]
    for folder in (out, *(RunFolder(f"{parent}/{each}") for each in others)):
        facts: Any = None
        with contextlib.suppress(UserError, OSError, ValueError):  # whatever has this name
            facts = folder.read_json(FACTS)
        if not isinstance(facts, dict) or facts.get("act") != job.command:
            continue
        if not OutputTable(folder / job.table).exists:
            continue
        identity = facts.get("identity", {})
        recorded = as_recorded(job, {"identity": identity})
        is_same = _captioner_of(identity) == _captioner_of(origin(recorded))
        is_long = facts.get("made_in_this_run", 0) >= LEAST_ROWS
        if is_same and is_long and facts.get("rows_per_second"):
            yield folder, facts


def _captioner_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    others = ("act", "source", "reading", "min_score", "batch")
    return {name: value for name, value in identity.items() if name not in others}


def _tokens_of_rows(table: RunFolder) -> pa.Table:
    """The token counts of a table, of some of its files."""
    parts = []
    for file in OutputTable(table).files()[:FILES_READ]:
        names = table.reading(file.path, pq.read_schema).names
        columns = [name for name in ("status", "tokens_in", "tokens_out") if name in names]
        read = functools.partial(pq.read_table, columns=columns)
        parts.append(table.reading(file.path, read))
    return pa.concat_tables(parts)
