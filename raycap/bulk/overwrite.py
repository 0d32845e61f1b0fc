"""--overwrite: the new table grows beside the old one and takes its place when it is whole."""

from raycap.bulk.identity import differences_from
from raycap.bulk.job import FACTS, RUN, TableJob
from raycap.bulk.precision import as_recorded
from raycap.bulk.retry import SIDE_TABLE
from raycap.errors import UserError
from raycap.sinks import sink_outputs
from raycap.storage import RunFolder

NEW, OLD = "_new", "_old"


def begin_overwrite(job: TableJob, out: RunFolder) -> RunFolder:
    """The folder in which the new table grows. What an interrupted run made of the same rows stays
    in it."""
    if not out.is_local:
        raise UserError(
            "--overwrite cannot swap the tables of an object store in one step: "
            f"give another --out than {out}"
        )
    new = out / NEW
    identity = (new.read_json(RUN) or {}).get("identity", {})
    precision_is_unknown = job.runs_model and "precision" not in identity
    if precision_is_unknown or differences_from(as_recorded(job, new), new):
        out.remove(NEW)
    return new


def finish_overwrite(out: RunFolder) -> None:
    """Swap the tables if the new one is whole. Every step can be repeated after a crash: the new
    facts move last."""
    if out.read(f"{NEW}/{FACTS}") is None:
        if out.exists(OLD):  # all has moved, and only the old table is left to remove
            out.remove(NEW)
            out.remove(OLD)
        return
    run = out.read_json(f"{NEW}/{RUN}") or out.read_json(RUN) or {}
    out.remove(FACTS)
    out.remove(SIDE_TABLE)  # rows that an interrupted --retry made for the old table
    for name in sink_outputs():  # made of the old rows
        out.remove(name)
    for name in (str(run["table"]), RUN):
        if out.exists(f"{NEW}/{name}"):
            out.remove(OLD)
            if out.exists(name):
                out.rename(name, f"{OLD}/{name}")
            out.rename(f"{NEW}/{name}", name)
    out.rename(f"{NEW}/{FACTS}", FACTS)
    out.remove(NEW)
    out.remove(OLD)
