"""The run of a table job, from its first look at the folder to its facts, in the order in which
things happen."""

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raycap.bulk.commit import Committer
from raycap.bulk.contents import RowCounts, TableContents, read_contents
from raycap.bulk.facts import note_lines, reason_lines, summary, update_facts, write_facts
from raycap.bulk.identity import claim_folder, differences_from
from raycap.bulk.job import FACTS, RunResult, TableJob
from raycap.bulk.overwrite import begin_overwrite, finish_overwrite
from raycap.bulk.pending import PendingCount, PendingRows, count_pending
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.retry import SIDE_TABLE, begin_side_table, merge_side_table
from raycap.cluster.nodes import capacity, check_visible, has_free
from raycap.cluster.session import find_user_error, root_cause
from raycap.errors import UserError
from raycap.progress import Progress
from raycap.schema import FAILURES
from raycap.storage import Lease, RunFolder, output_folder
from raycap.storage.folder import STAGED
from raycap.storage.lease import LEASE
from raycap.storage.location import locate
from raycap.terminal import write_out

log = logging.getLogger(__name__)

# Passes in a row that brought nothing before the run ends: a fault that stays is not mended by
# trying again.
FRUITLESS_PASSES = 3
SECONDS_AFTER_A_FAULT = 2.0  # before the next pass, and four times as long before the one after it
# Ray takes some time to end the tasks of a pass.
SECONDS_TO_FREE = 20
# So many keep any pool busy.
BATCHES_ARE_MANY = 64
# A share of failures says something only of so many rows.
ROWS_TO_JUDGE = 200


def run_job(job: TableJob, more_facts: dict[str, Any]) -> int:
    """Make the table of a job, in a session of Ray. Returns 0 if every row is good, 1 if some
    failed."""
    out = output_folder(job.options.out)
    if job.options.dry_run:
        write_out(_forecast(job, out))
        return 0

    with Lease(out) as lease:
        check_visible(_local_paths(job, out))
        try:
            # An interrupted --overwrite may have left a new table that is whole.
            finish_overwrite(out)
            folder = begin_overwrite(job, out) if job.options.overwrite else out
            job = resolve_precision(job, folder)
            claim_folder(job, folder)

            run = _Run(job, folder, lease)
            # An interrupted --retry may have left rows that replace failed ones.
            merge_side_table(job, folder, lease)
            contents = read_contents(folder, job.table, _statuses(job.options.retry))
            held = run.fill(job.table, contents)
            if any(ray.get(failed).size for failed in contents.failed):
                begin_side_table(job, folder)
                run.fill(SIDE_TABLE, read_contents(folder, SIDE_TABLE), only=contents.failed)
                merge_side_table(job, folder, lease)
                held = read_contents(folder, job.table).counts

            result = run.result(held)
            lease.check()
            if result.made.rows or not folder.exists(FACTS):
                write_facts(job, folder, result, more_facts)
            else:
                update_facts(folder, result)
            finish_overwrite(out)
            job.export(out)
        finally:
            # What makes this impossible is reported already, or does no harm. A run that has lost
            # its lease leaves alone what its successor has staged.
            with contextlib.suppress(UserError):
                out.remove(STAGED if lease.is_ours() else f"{STAGED}/{lease.run}")

    write_out(summary(job, out, result))
    return 1 if result.held.failed or result.left_out else 0


@dataclass
class _Run:
    """Fills tables, and remembers what happened on the way."""

    job: TableJob
    folder: RunFolder
    lease: Lease
    began: float = field(default_factory=time.monotonic)
    made: RowCounts = field(default_factory=RowCounts)
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # of the last listing that came to its end

    def result(self, held: RowCounts) -> RunResult:
        seconds = time.monotonic() - self.began
        return RunResult(self.made, held, seconds, self.faults, **self.notes)

    def fill(
        self, table: str, contents: TableContents, only: tuple[Any, ...] | None = None
    ) -> RowCounts:
        """Make what the table lacks of the source, or of the keys in `only`; returns what it holds
        then.

        A pass lists the source and makes the rows that the table does not have. Usually one is
        enough. After a fault (a lost worker, a store that restarts) another pass makes what is
        still missing.
        """
        fruitless = 0
        while True:
            pending = PendingRows(self.job.source, self.job.options, contents.keys, only)
            result = self._pass(table, pending)
            self.made.add(result.counts)
            if not result.fault:
                contents.counts.add(result.counts)
                return contents.counts

            self.faults.append(result.fault)
            # Waiting for a cluster that is full or has no nodes yet is no fault, however long it
            # takes.
            fruitless = 0 if result.counts.rows or result.waited else fruitless + 1
            if fruitless == FRUITLESS_PASSES:
                raise UserError(
                    f"the work fails each time it is tried ({result.fault}); what is made stays "
                    f"in {self.folder}, and the same command goes on from there"
                )
            log.warning(
                "some work was lost (%s): going on with what the table lacks", result.fault
            )
            if fruitless:
                time.sleep(SECONDS_AFTER_A_FAULT * 4 ** (fruitless - 1))
            contents = read_contents(self.folder, table)

    def _pass(self, table: str, pending: PendingRows) -> "_PassResult":
        """One listing of the source, and everything that is pending of it through the model into
        the table."""
        try:
            found = _look(pending)
        except RayError as error:
            return _PassResult(RowCounts(), _fault(error))
        if found.rows == 0:
            self.notes = found.notes
            return _PassResult(RowCounts())
        if found.rows < _most_looked_at(pending):
            pending = replace(pending, few=found.rows)
        self.folder.remove(FACTS)  # the table is unfinished again

        count = ray.remote(num_cpus=0)(count_pending).remote(pending, None)
        committer = Committer(self.folder, table, self.lease, self.job.layout)
        fault, waited = "", False
        with Progress(self.job.command, total=lambda: _if_ready(count)) as progress:
            try:
                rows = self.job.rows(self.job, pending)
                # Nodes that an autoscaler has brought must see the folders too.
                check_visible(_local_paths(self.job, RunFolder(self.job.options.out)))
                with contextlib.closing(committer.commit(rows)) as committed:
                    for counts in committed:
                        progress.add(counts.rows, counts.reasons)
                        _check_failures(self.job, committer.counts)
                self.notes = committer.notes or {}
                if not committer.is_whole:
                    fault = "blocks were lost with a worker or a node"
            except ExecutionTimeoutError:
                seconds = DataContext.get_current().execution_no_progress_timeout_s
                waited = not _has_free_processors(self.job)
                fault = f"nothing was finished for {seconds:,.0f} s"
                fault += (
                    ": the cluster has no free processor for it"
                    if waited
                    else ", though processors were free"
                )
            except RayError as error:
                fault = _fault(error)
            finally:
                ray.cancel(count)
        return _PassResult(committer.counts, fault, waited)


@dataclass(frozen=True)
class _PassResult:
    counts: RowCounts
    fault: str = ""  # why not everything was made
    waited: bool = False  # the fault is that nothing could run


def _look(pending: PendingRows) -> PendingCount:
    """Look through the source until it is known whether much is pending."""
    look = ray.remote(num_cpus=0)(count_pending)
    found: PendingCount = ray.get(look.remote(pending, _most_looked_at(pending)))
    if not found.rows and not found.skipped:
        raise UserError(f"{pending.source.path} holds no rows")
    return found


def _most_looked_at(pending: PendingRows) -> int:
    return BATCHES_ARE_MANY * pending.options.batch


def _fault(error: RayError) -> str:
    """What went wrong, in one line. A UserError within is raised as itself."""
    if user_error := find_user_error(error):
        raise user_error from error
    return root_cause(error)


def _check_failures(job: TableJob, counts: RowCounts) -> None:
    allowed = job.options.failures_allowed(max(counts.rows, ROWS_TO_JUDGE))
    if counts.failed > allowed:
        raise UserError(
            f"{counts.failed:,} of {counts.rows:,} rows failed, more than --max-failed "
            f"{job.options.max_failed}; what is made stays, and the same command goes on with "
            "it:\n" + "\n".join(reason_lines(counts))
        )


def _has_free_processors(job: TableJob) -> bool:
    """Whether a task and a model could run now, after those of the last pass have ended. If they
    could, they ran and made nothing. If not, the processors are gone, or other work uses them."""
    cluster, gpus = job.cluster, job.options.gpus
    needs = [(cluster.decode_on, "CPU", 1.0)]
    if gpus is None:
        gpus = min(1.0, capacity(cluster.model_on).get("GPU", 0.0))
    if job.runs_model and gpus:
        needs.append((cluster.model_on, "GPU", gpus))
    end = time.monotonic() + SECONDS_TO_FREE
    while not all(has_free(*need) for need in needs):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def _if_ready(answer: Any) -> int | None:
    ready, _ = ray.wait([answer], timeout=0)
    return int(ray.get(answer).rows) if ready else None


def _statuses(retry: str) -> tuple[str, ...]:
    if retry == "failed":
        return FAILURES
    return (retry,) if retry else ()


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
    if different := differences_from(as_recorded(job, out), out):
        held = f"{out} holds rows of another run: {'; '.join(different)}"
        keys: tuple[Any, ...] = ()
    else:
        contents = read_contents(out, job.table)
        keys = contents.keys
        held = f"{out} holds {contents.counts.rows:,} rows, {contents.counts.failed:,} failed"
    pending = PendingRows(job.source, job.options, keys)
    found: PendingCount = ray.get(ray.remote(num_cpus=0)(count_pending).remote(pending, None))
    lines = [
        f"{found.rows + found.skipped:,} rows in {job.source.path}",
        *note_lines(**found.notes),
        held,
        f"{found.rows:,} rows would be made",
    ]
    return "\n".join(lines) + "\n"
