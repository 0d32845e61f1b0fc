"""--estimate: what a job will take, from 200 of its pictures: hours, tokens, money, failures.

The pictures are drawn over the whole source (`sampling`) and captioned by one worker
(`measuring`). What they took is extrapolated to all rows (`extrapolation`).
"""

import functools

import pyarrow.parquet as pq

from raycap.bulk.estimate_text import text_of
from raycap.bulk.extrapolation import extrapolate
from raycap.bulk.identity import differences_from
from raycap.bulk.job import RUN, TableJob, local_source
from raycap.bulk.machines import Machines
from raycap.bulk.options import CaptionOptions
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.sampling import draw_rows
from raycap.bulk.table import OutputTable
from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.storage import RunFolder
from raycap.terminal import write_err

PICTURES = 200


def estimate_job(
    job: TableJob,
    out: RunFolder,
    prices: CaptionOptions,
    limits: tuple[float, float] = (0, 0),
) -> str:
    """Caption a sample of the source; the text about what the whole job will take.

    `out` may hold rows of it already. `limits` are the most requests and the most tokens in a
    minute, of all workers; 0 for none.
    """
    record = None if job.options.overwrite else out.read_json(RUN)
    if record is not None and differences_from(as_recorded(job, record), record):
        record = None  # of another run
    taken = TakenKeys()
    if record is not None:
        _add_keys(OutputTable(out / job.table), taken)
    drawn = draw_rows(job.source, job.options, PICTURES, taken)
    if not len(drawn.rows):
        narrowed = f" that fits --only {job.options.only}" if job.options.only else ""
        raise UserError(f"{job.source.path} holds no row{narrowed}")
    rows = drawn.total - drawn.held
    if rows == 0 and drawn.is_exact:
        return f"{drawn.total:,} pictures in {job.source.path}: {out} holds all of them\n"
    with Machines(job.cluster) as machines:
        machines.check_visible(local_source(job.source))
        job = resolve_precision(job, record, out, machines)
        write_err(
            f"raycap: captions {len(drawn.rows)} pictures, drawn over the whole source; nothing "
            "is written\n"
        )
        deployment, measured = machines.on_worker(job, drawn.rows, rows)
    estimate = extrapolate(measured, deployment, rows, prices, limits)
    return text_of(job, out, drawn, measured, deployment, estimate, prices)


def _add_keys(table: OutputTable, taken: TakenKeys) -> None:
    """Add the keys of the rows of a table."""
    read = functools.partial(pq.read_table, columns=["key"])
    for file in table.files():
        taken.add(table.folder.reading(file.path, read)["key"])
