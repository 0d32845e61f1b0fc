"""`--dry-run`: what a run would do."""

import json

from raycap.bulk.counts import RowCounts
from raycap.bulk.facts import note_lines
from raycap.bulk.finish import counts_of_files
from raycap.bulk.identity import differences_from
from raycap.bulk.job import RUN, TableJob
from raycap.bulk.plan import plans_of_table
from raycap.bulk.precision import as_recorded
from raycap.bulk.selection import chosen_rows
from raycap.bulk.table import OutputTable
from raycap.bulk.taken_keys import TakenKeys
from raycap.sources import Notes
from raycap.storage import RunFolder


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
