"""--estimate: what a job will take, from 200 of its pictures: hours, tokens, money, failures.

The pictures are drawn over the whole source (`sampling`) and captioned by one worker
(`measuring`). What they took is extrapolated to all rows (`extrapolation`).
"""

from raycap.bulk.estimate_text import text_of
from raycap.bulk.extrapolation import extrapolate
from raycap.bulk.identity import differences_from
from raycap.bulk.job import RUN, TableJob, local_source
from raycap.bulk.machines import Machines
from raycap.bulk.options import CaptionOptions
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.sampling import draw_rows
from raycap.bulk.table import OutputTable
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
    drawn = draw_rows(job.source, job.options, PICTURES)
    if not len(drawn.rows):
        narrowed = f" that fits --only {job.options.only}" if job.options.only else ""
        raise UserError(f"{job.source.path} holds no row{narrowed}")
    record = out.read_json(RUN)
    if record is not None and differences_from(as_recorded(job, record), record):
        record = None  # of another run
    held = sum(file.rows for file in OutputTable(out / job.table).files()) if record else 0
    rows = drawn.total - held
    if rows <= 0 and drawn.is_exact:
        return f"{drawn.total:,} pictures in {job.source.path}: {out} holds all of them\n"
    rows = max(0, rows)
    with Machines(job.cluster) as machines:
        machines.check_visible(local_source(job.source))
        job = resolve_precision(job, record, out, machines.choose_precision)
        write_err(
            f"raycap: captions {len(drawn.rows)} pictures, drawn over the whole source; nothing "
            "is written\n"
        )
        deployment, measured = machines.on_worker(job, drawn.rows, rows)
    estimate = extrapolate(measured, deployment, rows, prices, limits)
    return text_of(job, out, drawn, held, measured, deployment, estimate, prices)
