"""Whether --only, --limit, --sample and --retry fit the rows of a source, of a table or of an
interrupted run."""

from collections.abc import Collection

from raycap.bulk.counts import RowCounts
from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Plan
from raycap.bulk.selection import filter_of_source
from raycap.bulk.table import OutputTable
from raycap.errors import UserError
from raycap.expressions import parse
from raycap.options import nearest
from raycap.row_filter import RowFilter
from raycap.schema import ANY_FLAG, FLAGS
from raycap.storage import RunFolder


def chooses_retried_rows(options: BulkOptions) -> bool:
    """Whether --only is about rows of the output table that are made again. Then the source is not
    listed: its rows do not have these columns."""
    return bool(options.only and options.retry and not options.overwrite)


def check_only(job: TableJob, out: RunFolder) -> None:
    """Raise UserError if --only does not fit the rows that it is about."""
    if not chooses_retried_rows(job.options):
        filter_of_source(job.source, job.options.only)
        return
    table = OutputTable(out / job.table)
    if not table.exists:
        raise UserError(
            f"--retry {job.options.retry} --only is about rows of {out / job.table}, and there "
            "are none yet: run without --retry first"
        )
    RowFilter(job.options.only, table.schema())


def check_retried_flags(flags: Collection[str], held: RowCounts) -> None:
    """Raise UserError for a flag that no row has and raycap does not know."""
    known = dict.fromkeys([*FLAGS, *held.flags])
    for flag in flags:
        if flag != ANY_FLAG and flag not in known:
            raise UserError(
                f"--retry flagged:{flag}: there is no flag '{flag}'{nearest(flag, known)}"
            )


def check_selection(plan: Plan, options: BulkOptions, out: RunFolder) -> None:
    """Raise UserError if this run selects fewer rows than the interrupted run had planned."""
    if chooses_retried_rows(options):
        return  # the interrupted run is completed with the rows that it has planned
    planned = plan.selection
    is_smaller_sample = options.sample < planned["sample"]
    is_lower_limit = options.limit is not None and (
        planned["limit"] is None or options.limit < planned["limit"]
    )
    is_other_only = bool(options.only) and not is_same_only(plan, options)
    if is_smaller_sample or is_lower_limit or is_other_only:
        only = planned.get("only")
        had = f"--limit {planned['limit']}, --sample {planned['sample']}"
        had += f", --only {only!r}" if only else ", no --only"
        raise UserError(
            f"an interrupted run in {out} is about more or other rows than this one (it had "
            f"{had}): run it again with those options, or give another --out"
        )


def is_same_only(plan: Plan, options: BulkOptions) -> bool:
    """Whether a plan has the --only of this run."""
    only = plan.selection.get("only", "")  # older versions had none
    if not (only and options.only):
        return bool(only) == bool(options.only)
    return parse(only) == parse(options.only)
