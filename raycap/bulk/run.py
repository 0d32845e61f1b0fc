"""Runs a table job: `run_job` shows the steps in the order in which they happen.

A run carries out operations, one after the other. Each has a plan, which is written down before
the work starts:

    first      all rows of the source
    append     the rows that the source has in addition to those of earlier plans
    retry      failed or flagged rows, which are made again and replaced
    overwrite  all rows, which replace the table
    finish     captions and flags of files, which are made again without the model
"""

import contextlib
import functools
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from raycap.bulk.clean_up import SIDE, clean_up, remove_old_files
from raycap.bulk.counts import RowCounts
from raycap.bulk.facts import counts_in, summary, update_facts, write_facts
from raycap.bulk.file_tasks import FileTasks
from raycap.bulk.forecast import earlier_rate_lines, forecast
from raycap.bulk.identity import check_same, differences_from, origin, write_record
from raycap.bulk.job import FACTS, RUN, RunResult, TableJob, local_source
from raycap.bulk.last_commit import (
    lacks_columns,
    replace_all,
    replace_chunks,
    replace_finished,
    replace_rows,
)
from raycap.bulk.listing import Lister, UnitLister, list_failed, lister
from raycap.bulk.machines import Machines
from raycap.bulk.operations import REPLACEMENTS, Operations
from raycap.bulk.options import CaptionOptions
from raycap.bulk.outdated_files import outdated_files
from raycap.bulk.plan import (
    Kind,
    Plan,
    give_up_plan,
    newest_plan,
    plans_of_table,
)
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.scheduler import ChunkScheduler
from raycap.bulk.selection import chosen_units
from raycap.bulk.selection_checks import (
    check_only,
    check_retried_flags,
    check_selection,
    chooses_retried_rows,
    is_same_only,
)
from raycap.bulk.table import OutputTable, TakenOverError
from raycap.errors import UserError
from raycap.schema import ANY_FLAG
from raycap.sources import Notes
from raycap.sources.notes import may_be_there_now
from raycap.storage import Lease, RunFolder, output_folder
from raycap.storage.lease import LEASE
from raycap.terminal import write_out

log = logging.getLogger(__name__)

SECONDS_PER_CHUNK = 30.0


def run_job(job: TableJob, more_facts: dict[str, Any], machines: Machines | None = None) -> int:
    """Make the table of a job. Returns 0 if all rows succeeded and nothing was left out, else 1.

    `more_facts` are added to facts.json. `machines` is given by a caller that runs several jobs.
    """
    out = output_folder(job.options.out, job.options.has_one_writer)
    check_only(job, out)
    if job.options.dry_run:
        text, rows = forecast(job, out)
        write_out(text)
        if isinstance(job.options, CaptionOptions):
            lines = earlier_rate_lines(job, out, rows, job.options)
            write_out("\n".join(lines) + "\n")
        return 0
    context = Machines(job.cluster) if machines is None else contextlib.nullcontext(machines)
    with context as machines, Lease(out):
        lease = {out.path(LEASE): "--out"} if out.is_local else {}
        machines.check_visible(local_source(job.source) | lease)
        run = _Run(job, out, OutputTable(out / job.table), machines)
        try:
            result = run.make_table()
        except TakenOverError:
            with contextlib.suppress(UserError):
                remove_old_files(run.table)  # which this run may have written after the other one
            raise
        job.export(out, machines.run)
        run.write_facts(result, more_facts)
    write_out(summary(job, out, result))
    return 1 if result.held.failed or result.left_out else 0


@dataclass
class _Run:
    """The operations of one run, and what they did."""

    job: TableJob
    out: RunFolder
    table: OutputTable
    machines: Machines
    began: float = field(default_factory=time.monotonic)
    made: RowCounts = field(default_factory=RowCounts)
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # from the last listing of the source

    def __post_init__(self) -> None:
        self.operations = Operations(self.out, self.table)

    def make_table(self) -> RunResult:
        """All steps up to the finished table."""
        options = self.job.options
        if chooses_retried_rows(options):
            facts = self.out.read_json(FACTS) or {}
            self.notes = {name: facts.get(name, []) for name in ("left_out", "notes")}
        self.refuse_other_formats()
        self.out.check_creates()
        if options.overwrite:
            self.overwrite()
        else:
            self.complete_earlier_work()
            if not chooses_retried_rows(options):
                self.add_rows()
            statuses, flags = options.to_retry()
            if flags:
                self.finish_captions()
                check_retried_flags(flags, self.held())
            if statuses or flags:
                self.retry(statuses, flags)
        self.finish_captions()
        self.operations.check_unchanged()
        clean_up(self.out, self.table)
        return self.result()

    @property
    def files(self) -> FileTasks:
        return FileTasks(self.table, self.machines)

    def refuse_other_formats(self) -> None:
        """Raise UserError for a table that an older version of raycap wrote."""
        is_old = not self.table.exists and self.out.names(self.job.table)
        if is_old and not self.job.options.overwrite:
            raise UserError(
                f"{self.out} was written by raycap 0.1.0, whose tables cannot be continued: they "
                "can still be read. Give another --out, or --overwrite to make the rows again"
            )

    def _record(self) -> dict[str, Any] | None:
        """Whose rows the table holds. The plan says it, and run.json is brought up to date: the
        run that replaced the table may have been killed after its commit and before it wrote
        run.json, and of two runs that began at the same time the other one may have written it."""
        plans = plans_of_table(self.out, self.table.completed)
        if plans:
            write_record(self.job, self.out, plans[0].identity)
            return {"identity": plans[0].identity}
        return self.out.read_json(RUN)

    def overwrite(self) -> None:
        """Make all rows again, or resume an interrupted --overwrite. The old table stays until the
        new one is complete."""
        plan = self.operations.unfinished()
        is_resumed = plan is not None and plan.kind == "overwrite"
        earlier = {"identity": plan.identity} if plan is not None and is_resumed else None
        job = as_recorded(self.job, earlier)
        if plan is not None and earlier is not None:
            # The interrupted --overwrite may have been for other rows.
            is_same = is_same_only(plan, job.options) and not differences_from(job, earlier)
            earlier = earlier if is_same else None
        batch = plan.batch if plan is not None and earlier is not None else None
        self.job = resolve_precision(self.job, earlier, self.out, self.machines, batch)
        if earlier is None:
            self._remove_pending_replacements()
            # Where there is a plan, another run may be about to create the table.
            has_plan = newest_plan(self.out) is not None
            is_new = not (self.table.exists or has_plan or self.out.names(self.job.table))
            if is_new:
                write_record(self.job, self.out, origin(self.job))
            plan = self._new_plan("first" if is_new else "overwrite")
        assert plan is not None
        self._run_operation(plan)

    def complete_earlier_work(self) -> None:
        """Complete the operation of an interrupted run, if there is one."""
        plan = self.operations.unfinished()
        record = self._record()
        batch = None if plan is None else plan.batch
        self.job = resolve_precision(self.job, record, self.out, self.machines, batch)
        if plan is not None and plan.kind == "overwrite":
            if not differences_from(self.job, record):  # this run continues the old table
                self.operations.give_up(plan)
                plan = self.operations.unfinished()
            elif differences_from(self.job, {"identity": plan.identity}):
                check_same(self.job, record, self.out)
        else:
            check_same(self.job, record, self.out)
        if plan is None:
            return
        if plan.kind == "finish":
            if self.job.finishing is not None and plan.finishing == self.job.finishing.digest():
                self._finish(plan)
            else:
                self.operations.give_up(plan)
            return
        if plan.kind != "retry":
            check_selection(plan, self.job.options, self.out)
        self._run_operation(plan)

    def add_rows(self) -> None:
        """Make the rows of the source that no plan has yet."""
        plans = plans_of_table(self.out, self.table.completed)
        if not plans:
            write_record(self.job, self.out, origin(self.job))
        units = chosen_units(self.job.source, self.job.options)
        if not self._is_listed(units, plans):
            self._run_operation(self._new_plan("append" if plans else "first", units))

    def _is_listed(self, units: tuple[str, ...], plans: list[Plan]) -> bool:
        """Whether the table has all rows of these units. Then the source is not listed again."""
        if not self.job.source.units_tell_changes(units):
            return False
        if not self.notes:  # of the run that has listed it
            facts = self.out.read_json(FACTS)
            if facts is None:
                return False
            self.notes = {"left_out": facts.get("left_out", []), "notes": facts.get("notes", [])}
        if may_be_there_now(self.notes["left_out"]):
            return False
        return any(
            plan.units == units
            and plan.selection == self._selection
            and plan.operation <= self.table.completed
            for plan in plans
        )

    @property
    def _selection(self) -> dict[str, Any]:
        options = self.job.options
        return {"limit": options.limit, "sample": options.sample, "only": options.only}

    def retry(self, statuses: tuple[str, ...], flags: tuple[str, ...]) -> None:
        """Make the rows with one of these statuses or flags again, and replace them."""
        counts = self.files.counts()
        # The units of a retry are the files of the table with such rows.
        units = [
            path
            for path, found in counts.items()
            if any(found.statuses[status] for status in statuses)
            or any(found.flags[flag] for flag in flags)
            or (ANY_FLAG in flags and found.flagged)
        ]
        if units:
            self._run_operation(self._new_plan("retry", tuple(units), statuses, flags))

    def finish_captions(self) -> None:
        """Make captions and flags again in files whose captions were finished with other options,
        and the flag of captions that many pictures have."""
        finishing = self.job.finishing
        if finishing is None or self._is_finished():
            return
        paths = [file.path for file in self.table.files()]
        outdated, many = outdated_files(self.files, paths, finishing)
        if outdated and lacks_columns(self.job, self.table):
            outdated = set(paths)
        if outdated:
            units, digest = tuple(sorted(outdated)), finishing.digest()
            self._finish(
                self._new_plan("finish", units, finishing=digest, many=tuple(sorted(many)))
            )

    def _is_finished(self) -> bool:
        """Whether facts.json says that this version of the table is finished as this run does
        it."""
        facts = self.out.read_json(FACTS) or {}
        assert self.job.finishing is not None
        is_same = facts.get("finishing") == self.job.finishing.identity()
        return is_same and facts.get("table_version") == self.table.version

    def _finish(self, plan: Plan) -> None:
        """Carry out an operation that makes captions and flags of some files again."""
        number = self.operations.number_of(plan)
        self.out.remove(FACTS)
        self.table.begin(number)
        if not replace_finished(self.job, self.machines, self.table, plan, number):
            remove_old_files(self.table)

    def _remove_pending_replacements(self) -> None:
        """Remove interrupted operations that have changed nothing in the table yet."""
        while (plan := self.operations.unfinished()) is not None:
            if plan.kind not in REPLACEMENTS:
                return
            self.operations.give_up(plan)

    def _new_plan(
        self,
        kind: Kind,
        units: tuple[str, ...] | None = None,
        statuses: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
        finishing: str = "",
        many: tuple[str, ...] = (),
    ) -> Plan:
        """Write a new plan. `units` are those of the source by default."""
        if units is None:
            units = chosen_units(self.job.source, self.job.options)
        number = self.operations.newest + 1
        options = self.job.options
        batches = self.job.pictures_per_second * SECONDS_PER_CHUNK / options.batch_size
        plan = Plan(
            operation=number,
            kind=kind,
            identity=origin(self.job),
            batch=options.batch_size,
            chunk_rows=max(1, round(batches)) * options.batch_size,
            selection=self._selection,
            units=units,
            statuses=statuses,
            flags=flags,
            finishing=finishing,
            many=many,
            keys="unique" if kind in ("retry", "finish") else self.job.source.unit_keys,
        )
        self.operations.add(plan)
        return plan

    def _run_operation(self, plan: Plan) -> None:
        """Carry out one operation, from the listing of its rows to its last commit."""
        has_side_table = plan.kind in ("retry", "overwrite")
        side = self.out / f"{SIDE}/{plan.operation:04}"
        target = OutputTable(side) if has_side_table else self.table
        number = self.operations.number_of(plan)
        scheduler = ChunkScheduler(
            self.job,
            self.out,
            plan,
            number,
            self.table,
            target,
            self._shard_lister(plan),
            self.machines,
        )
        try:
            scheduler.run()
        finally:
            self.made.add(scheduler.made)
            self.faults += scheduler.faults
        if plan.kind != "retry":
            self.notes = scheduler.notes()
        if scheduler.planned == 0:  # there are no new rows
            give_up_plan(self.out, plan.operation)
            if plan.kind in ("first", "overwrite"):
                next(self.job.source.tables(Notes()), None)  # raises UserError if it knows why
                if self.job.options.only:
                    raise UserError(
                        f"no row of {self.job.source.path} fits --only {self.job.options.only}"
                    )
                raise UserError(f"{self.job.source.path} holds no rows")
            return
        try:
            if plan.kind == "retry":
                is_ours = replace_rows(self.job, self.machines, self.table, plan, target, number)
            elif plan.kind == "overwrite":
                is_ours = replace_all(self.job, self.machines, self.table, target, number)
                write_record(self.job, self.out, plan.identity)
            else:
                is_ours = replace_chunks(self.job, self.machines, self.table, number)
            if not is_ours:  # readers of plain Parquet files see what this run has written
                remove_old_files(self.table)
        except UserError:
            # Who has completed it, or given it up, has removed its chunks.
            self.table.check_open(plan.operation)
            self.operations.check_unchanged()
            raise

    def _shard_lister(self, plan: Plan) -> Lister:
        """Returns what lists units of a plan."""
        if plan.kind == "retry":
            failed = functools.partial(list_failed, self.out, self.table.folder, plan)
            return UnitLister(failed)
        known = () if plan.kind != "append" else plans_of_table(self.out, self.table.completed)
        earlier = [each for each in known if each.operation < plan.operation]
        options = self.job.options
        if chooses_retried_rows(options):
            # The rows are those of the interrupted run; this run's options are about the table's.
            options = replace(options, **{"only": ""} | plan.selection, retry="")
        return lister(self.job.source, options, self.out, plan, earlier)

    def write_facts(self, result: RunResult, more_facts: dict[str, Any]) -> None:
        """Write facts.json, unless another run has changed the table since `result`."""
        version = self.table.version
        self.operations.check_unchanged(version)
        if result.made.rows or counts_in(self.out.read_json(FACTS), version) is None:
            write_facts(self.job, self.out, result, version, more_facts)
        else:
            update_facts(self.out, result)
        try:
            self.operations.check_unchanged(version)
        except TakenOverError:
            if counts_in(self.out.read_json(FACTS), version) is not None:
                self.out.remove(FACTS)
            raise

    def result(self) -> RunResult:
        held = counts_in(self.out.read_json(FACTS), self.table.version) or self.held()
        seconds = time.monotonic() - self.began
        return RunResult(self.made, held, seconds, self.faults, **self.notes)

    def held(self) -> RowCounts:
        """The counts of the rows of the table."""
        held = RowCounts()
        for counts in self.files.counts().values():
            held.add(counts)
        return held
