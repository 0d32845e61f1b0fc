"""The run of a table job, from its first look at the folder to its facts, in the order in which
things happen."""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raycap.bulk.counts import RowCounts
from raycap.bulk.facts import note_lines, summary, update_facts, write_facts
from raycap.bulk.fill import Filling
from raycap.bulk.finish import (
    counts_of_files,
    failed_rows,
    join_part,
    part_name,
    parts_of,
    replace_failed,
)
from raycap.bulk.identity import check_same, differences_from, origin, write_record
from raycap.bulk.job import ANSWERS, FACTS, RUN, RunResult, TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import (
    PLANS,
    Kind,
    Plan,
    Shard,
    newest_plan,
    plans_of_table,
    write_plan,
    write_shards,
)
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.selection import chosen_rows, chosen_units
from raycap.bulk.table import CHUNKS, DataFile, OutputTable, chunk_of, operation_of
from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.schema import FAILURES
from raycap.sources import Notes, Source
from raycap.storage import Lease, RunFolder, output_folder
from raycap.storage.filesystem import REMOVED_AT_ONCE
from raycap.storage.folder import STAGED
from raycap.storage.lease import LEASE
from raycap.storage.location import locate
from raycap.terminal import write_out

log = logging.getLogger(__name__)

# Tables of retries and overwrites grow here, and then replace rows of the output table.
SIDE = "_side"
SECONDS_PER_CHUNK = 30.0
FILES_PER_TASK = 64


def run_job(job: TableJob, more_facts: dict[str, Any], machines: Machines | None = None) -> int:
    """Make the table of a job. Returns 0 if every row is good, 1 if some failed. `machines` are
    those that the caller has already."""
    out = output_folder(job.options.out)
    if job.options.dry_run:
        write_out(_forecast(job, out))
        return 0
    own = Machines(job.cluster) if machines is None else contextlib.nullcontext(machines)
    with own as machines, Lease(out):
        machines.check_visible(_local_paths(job, out))
        run = _Run(job, out, OutputTable(out / job.table), machines)
        run.refuse_other_formats()
        if not run.table.exists:
            out.check_creates()
        run.repair_record()
        if job.options.overwrite:
            run.overwrite()
        else:
            run.complete_earlier_work()
            run.add_rows()
            if job.options.retry:
                run.retry(FAILURES if job.options.retry == "failed" else (job.options.retry,))
        clean_up(out, run.table)
        result = run.result()
        job.export(out, machines.run)
        if result.made.rows or not out.exists(FACTS):
            write_facts(run.job, out, result, run.table.version, more_facts)
        else:
            update_facts(out, result)
    write_out(summary(job, out, result))
    return 1 if result.held.failed or result.left_out else 0


@dataclass
class _Run:
    """One run: its operations one after the other, and what happened on the way."""

    job: TableJob
    out: RunFolder
    table: OutputTable
    machines: Machines
    began: float = field(default_factory=time.monotonic)
    made: RowCounts = field(default_factory=RowCounts)
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # of the last listing of the source

    def refuse_other_formats(self) -> None:
        """Refuse a table that another version has begun."""
        is_old = not self.table.exists and self.out.names(self.job.table)
        if is_old and not self.job.options.overwrite:
            raise UserError(
                f"{self.out} was written by raycap 0.1.0, whose tables cannot be continued: they "
                "can still be read. Give another --out, or --overwrite to make the rows again"
            )

    def repair_record(self) -> None:
        """A run may have been killed between the commit that replaced the table and its record."""
        plans = plans_of_table(self.out, self.table.completed)
        if plans and plans[0].kind == "overwrite":
            write_record(self.job, self.out, plans[0].identity)

    def overwrite(self) -> None:
        """Make the whole table again. The old one stays until the new one is complete."""
        plan = self._unfinished()
        is_again = plan is not None and plan.kind == "overwrite"
        earlier = {"identity": plan.identity} if plan is not None and is_again else None
        job = as_recorded(self.job, earlier)
        if earlier is not None and differences_from(job, earlier):
            earlier = None  # another captioner than that of the interrupted --overwrite
        self.job = resolve_precision(self.job, earlier, self.out, self.machines.choose_precision)
        if earlier is None:
            is_new = not self.table.exists and not self.out.names(self.job.table)
            self._begin_over()
            if is_new:
                write_record(self.job, self.out, origin(self.job))
            plan = self._new_plan("first" if is_new else "overwrite")
        assert plan is not None
        self._operate(plan)

    def complete_earlier_work(self) -> None:
        """Complete the operation that an interrupted run has begun."""
        record = self.out.read_json(RUN)
        self.job = resolve_precision(self.job, record, self.out, self.machines.choose_precision)
        plan = self._unfinished()
        if plan is not None and plan.kind == "overwrite":
            if not differences_from(self.job, record):  # the old table goes on
                self._remove_operation(plan)
                plan = self._unfinished()
            elif differences_from(self.job, {"identity": plan.identity}):
                check_same(self.job, record, self.out)
        else:
            check_same(self.job, record, self.out)
        if plan is None:
            return
        if plan.kind != "retry":
            _check_selection(plan, self.job.options, self.out)
        self._operate(plan)

    def add_rows(self) -> None:
        """Make the rows that no plan has yet: all of them, or those that are new in the source."""
        kind: Kind = "append" if plans_of_table(self.out, self.table.completed) else "first"
        if not self.out.exists(RUN):
            write_record(self.job, self.out, origin(self.job))
        self._operate(self._new_plan(kind))

    def retry(self, statuses: tuple[str, ...]) -> None:
        """Make failed rows again, and replace them."""
        counts = self._counts_by_file()
        units = [
            path
            for path, found in counts.items()
            if any(found.statuses[status] for status in statuses)
        ]
        if units:
            self._operate(self._new_plan("retry", tuple(units), statuses))

    def _unfinished(self) -> Plan | None:
        plan = newest_plan(self.out)
        return plan if plan is not None and plan.operation > self.table.completed else None

    def _begin_over(self) -> None:
        """Forget operations that an interrupted run has begun, if they change nothing in the
        table."""
        while (plan := self._unfinished()) is not None and plan.kind in ("overwrite", "retry"):
            self._remove_operation(plan)

    def _remove_operation(self, plan: Plan) -> None:
        self.out.remove(FACTS)  # they describe the version before the next line
        self.table.begin(plan.operation + 1)  # nobody goes on with it
        self.out.remove(f"{SIDE}/{plan.operation:04}")
        self.out.remove(plan.folder)

    def _new_plan(
        self, kind: Kind, units: tuple[str, ...] | None = None, statuses: tuple[str, ...] = ()
    ) -> Plan:
        newest = newest_plan(self.out)
        if units is None:
            units = chosen_units(self.job.source, self.job.options)
        number = max(newest.operation if newest else 0, self.table.operation) + 1
        options = self.job.options
        batches = self.job.pictures_per_second * SECONDS_PER_CHUNK / options.batch
        plan = Plan(
            operation=number,
            kind=kind,
            identity=origin(self.job),
            batch=options.batch,
            chunk_rows=max(1, round(batches)) * options.batch,
            selection={"limit": options.limit, "sample": options.sample},
            units=units,
            statuses=statuses,
        )
        write_plan(self.out, plan)
        return plan

    def _operate(self, plan: Plan) -> None:
        """One operation, from its listing to its last commit."""
        is_aside = plan.kind in ("retry", "overwrite")
        side = self.out / f"{SIDE}/{plan.operation:04}"
        target = OutputTable(side) if is_aside else self.table
        # An operation that was given up may have begun after this one.
        number = plan.operation
        if self.table.operation > number:
            number = self.table.operation + 1

        filling = Filling(
            self.job, self.out, plan, number, self.table, target, self._lister(plan), self.machines
        )
        try:
            filling.run()
        finally:
            self.made.add(filling.made)
            self.faults += filling.faults
        if plan.kind != "retry":
            self.notes = filling.notes()
        if filling.planned == 0:  # nothing is new
            self.out.remove(plan.folder)
            if plan.kind in ("first", "overwrite"):
                next(self.job.source.tables(Notes()), None)  # says why there is nothing
                raise UserError(f"{self.job.source.path} holds no rows")
        elif plan.kind == "retry":
            self._replace_retried(plan, number, target)
        elif plan.kind == "overwrite":
            self._replace_all(plan, number, target)
        else:
            self._join_chunks(number)

    def _lister(self, plan: Plan) -> Callable[[Sequence[int]], Iterator[Shard]]:
        """What lists the shards of some units of a plan, in a task."""
        if plan.kind == "retry":
            return functools.partial(list_failed, self.out, self.table.folder, plan)
        known = () if plan.kind != "append" else plans_of_table(self.out, self.table.completed)
        earlier = [each for each in known if each.operation < plan.operation]
        job = self.job
        return functools.partial(list_source, job.source, job.options, self.out, plan, earlier)

    def _join_chunks(self, number: int) -> None:
        """Files of chunks become files of the table's own size, which all readers see."""
        chunks = [file for file in self.table.files() if file.path.startswith(f"{CHUNKS}/")]
        parts = self._joined(self.table.folder, chunks, number)
        self.table.replace(number, parts, chunks)

    def _replace_all(self, plan: Plan, number: int, side: OutputTable) -> None:
        parts = self._joined(side.folder, side.files(), number)
        self.table.replace(number, parts, (), side.schema())
        write_record(self.job, self.out, plan.identity)

    def _joined(self, source: RunFolder, files: list[DataFile], number: int) -> list[DataFile]:
        layout, target = self.job.layout, self.table.folder
        arguments = [
            (source, target, part_name(number, index), pieces, layout)
            for index, pieces in enumerate(parts_of(files, layout.rows))
        ]
        return list(self.machines.run(join_part, arguments))

    def _replace_retried(self, plan: Plan, number: int, side: OutputTable) -> None:
        old = {file.path: file for file in self.table.files()}
        made: dict[int, list[str]] = {}
        for file in side.files():
            made.setdefault(chunk_of(file.path).unit, []).append(file.path)
        replaced = [plan.units[unit] for unit in made]
        arguments = [
            (self.table.folder, path, side.folder, made[unit], part_name(number, index))
            for index, (unit, path) in enumerate(zip(made, replaced, strict=True))
        ]
        replace = functools.partial(replace_failed, layout=self.job.layout)
        new = list(self.machines.run(replace, arguments))
        self.table.replace(number, new, [old[path] for path in replaced if path in old])

    def _counts_by_file(self) -> dict[str, RowCounts]:
        paths = [file.path for file in self.table.files()]
        groups = [paths[at : at + FILES_PER_TASK] for at in range(0, len(paths), FILES_PER_TASK)]
        answers = self.machines.run(
            counts_of_files, [(self.table.folder, group) for group in groups]
        )
        return dict(zip(paths, [counts for group in answers for counts in group], strict=True))

    def result(self) -> RunResult:
        held = RowCounts()
        for counts in self._counts_by_file().values():
            held.add(counts)
        seconds = time.monotonic() - self.began
        return RunResult(self.made, held, seconds, self.faults, **self.notes)


def clean_up(out: RunFolder, table: OutputTable) -> None:
    """Remove files that were never committed or are replaced, and plans whose rows are gone. What
    may still be committed stays: if this run was suspended, another one may be at work."""
    table.load()
    completed, folder = table.completed, table.folder
    active = {file.path for file in table.files()}
    old = [
        name
        # Chunks have the number of their plan, parts that of the commit.
        for names, newest in (
            (folder.names(CHUNKS, hidden=True), completed),
            (folder.names(hidden=True), max(completed, table.operation - 1)),
        )
        for name in names
        if name not in active and operation_of(name) <= newest
    ]
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(folder.remove_file, old))
    folder.remove_empty(CHUNKS)

    needed = {plan.operation for plan in plans_of_table(out, completed)}
    for name in out.folders(PLANS):
        if int(name) not in needed and int(name) <= completed:
            out.remove(f"{PLANS}/{name}")
    for name in out.folders(SIDE):
        if int(name) <= completed:
            out.remove(f"{SIDE}/{name}")
    out.remove_empty(SIDE)
    out.remove(STAGED)
    out.remove(ANSWERS)


def list_source(
    source: Source,
    options: BulkOptions,
    out: RunFolder,
    plan: Plan,
    earlier: Sequence[Plan],
    units: Sequence[int],
) -> Iterator[Shard]:
    """Write down the rows of some units of a source that the table's earlier plans do not have."""
    for unit in units:
        name = plan.units[unit] if len(plan.units) > 1 else None  # None: the whole source
        notes, taken = Notes(), TakenKeys()
        for each in earlier:
            each.add_keys(out, taken, name)
        rows = chosen_rows(source, options, notes, name)
        yield from write_shards(out, plan, unit, rows, notes, taken)


def list_failed(
    out: RunFolder, table: RunFolder, plan: Plan, units: Sequence[int]
) -> Iterator[Shard]:
    """Write down the rows of some files of the table that are to be made again."""
    for unit in units:
        rows = failed_rows(out, table, plan.units[unit], plan.statuses)
        yield from write_shards(out, plan, unit, rows, Notes(), TakenKeys())


def _check_selection(plan: Plan, options: BulkOptions, out: RunFolder) -> None:
    """Refuse to go on with fewer rows than an interrupted run has planned."""
    planned = plan.selection
    limits = [planned["limit"], options.limit]
    fewer = options.sample < planned["sample"]
    if options.limit is not None and (limits[0] is None or options.limit < limits[0]):
        fewer = True
    if fewer:
        raise UserError(
            f"an interrupted run in {out} is about more rows than this one (it had --limit "
            f"{planned['limit']}, --sample {planned['sample']}): run it again with those options, "
            "or give another --out"
        )


def _local_paths(job: TableJob, out: RunFolder) -> dict[str, str]:
    """What is on a local disk and must be seen by all machines."""
    paths = {}
    source = locate(job.source.path)
    if source.filesystem is None and source.exists():
        paths[source.path] = "the source"
    if out.is_local:
        paths[out.path(LEASE)] = "--out"
    return paths


def _forecast(job: TableJob, out: RunFolder) -> str:
    """--dry-run: what a run would do, without a trace."""
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
    return "\n".join([*first, *lines, f"{pending:,} rows would be made"]) + "\n"
