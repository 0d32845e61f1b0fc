"""--overwrite: the new table grows beside the old one and takes its place when it is whole."""

from raycap.bulk import retried
from raycap.bulk.run_precision import as_recorded
from raycap.bulk.work import FACTS, RUN, Work, strangeness
from raycap.errors import UserError
from raycap.sinks import sink_outputs
from raycap.storage import RunFolder

NEW, OLD = "_new", "_old"


def begin(work: Work, out: RunFolder) -> RunFolder:
    """The folder where the new table grows. What an earlier try made of the same rows stays in it."""
    if not out.is_local:
        raise UserError(
            f"--overwrite cannot swap tables of an object store at once: give another --out than {out}"
        )
    new = out / NEW
    of_unknown_precision = work.runs_model and "precision" not in (new.read_json(RUN) or {}).get(
        "identity", {}
    )
    if of_unknown_precision or strangeness(as_recorded(work, new), new):
        out.remove(NEW)
    return new


def finish(out: RunFolder) -> None:
    """Swap if a new table is whole. Every step can be done again after a crash: the new facts move last."""
    if out.read(f"{NEW}/{FACTS}") is None:
        if out.exists(OLD):  # all has moved, and only this was not cleared away
            out.remove(NEW)
            out.remove(OLD)
        return
    run = out.read_json(f"{NEW}/{RUN}") or out.read_json(RUN) or {}
    out.remove(FACTS)
    out.remove(retried.TABLE)  # rows that an interrupted --retry made for the old table
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
