"""A run from its first look at what stands to its facts: passes over what the table lacks, until it is whole."""

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raycap.bulk import anew, retried
from raycap.bulk.publish import Pass
from raycap.bulk.run_precision import as_recorded, settled
from raycap.bulk.standing import Counts, Standing, standing
from raycap.bulk.todo import Survey, Todo, survey
from raycap.bulk.work import (
    FACTS,
    Outcome,
    Work,
    identify,
    noted_lines,
    reasons,
    strangeness,
    summary,
    update_facts,
    write_facts,
)
from raycap.cluster.nodes import capacity, check_visible, has_free
from raycap.cluster.session import find_user_error, root_cause
from raycap.errors import UserError
from raycap.progress import Progress
from raycap.schema import FAILED_TO_CAPTION, FAILED_TO_DECODE, FAILED_TO_FETCH
from raycap.storage import Lease, RunFolder, output_folder
from raycap.storage.folder import STAGED
from raycap.storage.lease import LEASE
from raycap.storage.location import locate
from raycap.terminal import write_out

log = logging.getLogger(__name__)

# Passes in a row that brought nothing before the run ends: a fault that stays is not mended by trying.
FRUITLESS_PASSES = 3
SECONDS_AFTER_A_FAULT = 2.0  # before the next pass, and four times as long before the one after it
# Ray takes some time to end the tasks of a pass.
SECONDS_TO_FREE = 20
# So many keep any pool busy.
BATCHES_ARE_MANY = 64
# A share of failures says something only of so many rows.
ROWS_TO_JUDGE = 200


def perform(work: Work, more: dict[str, Any]) -> int:
    """Make the table of a work, in a session of Ray; 0 when every row is good, 1 when some failed."""
    out = output_folder(work.options.out)
    if work.options.dry_run:
        write_out(_forecast(work, out))
        return 0
    with Lease(out) as lease:
        check_visible(_local(work, out))
        try:
            anew.finish(out)
            folder = anew.begin(work, out) if work.options.overwrite else out
            work = settled(work, folder)
            identify(work, folder)
            outcome = _Run(work, folder, lease).make()
            lease.check()
            if outcome.made.rows or not folder.exists(FACTS):
                write_facts(work, folder, outcome, more)
            else:
                update_facts(folder, outcome)
            anew.finish(out)
            work.also(out)
        finally:
            with contextlib.suppress(
                UserError
            ):  # what made it impossible is said already, or does no harm
                # A run that has lost its lease leaves alone what its successor has staged.
                out.remove(STAGED if lease.is_ours() else f"{STAGED}/{lease.run}")
    write_out(summary(work, out, outcome))
    return 1 if outcome.held.failed or outcome.left_out else 0


def _local(work: Work, out: RunFolder) -> dict[str, str]:
    """What is on a disc, and all machines must see."""
    source = locate(work.source.path)
    here = {source.path: "the source"} if source.filesystem is None and source.exists() else {}
    return here | ({out.path(LEASE): "--out"} if out.is_local else {})


@dataclass
class _Run:
    work: Work
    folder: RunFolder
    lease: Lease
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # of the last listing that came to its end

    def make(self) -> Outcome:
        began, made = time.monotonic(), Counts()
        retried.merge(self.work, self.folder, self.lease)  # what a crash left
        wanted = _statuses(self.work.options.retry)
        before = standing(self.folder, self.work.table, wanted)
        held = self._fill(self.work.table, before, made, None)
        if wanted and any(ray.get(failed).size for failed in before.failed):
            retried.begin(self.work, self.folder)
            self._fill(retried.TABLE, standing(self.folder, retried.TABLE), made, before.failed)
            retried.merge(self.work, self.folder, self.lease)
            held = standing(self.folder, self.work.table).counts
        return Outcome(made, held, time.monotonic() - began, self.faults, **self.notes)

    def _fill(
        self, table: str, there: Standing, made: Counts, only: tuple[Any, ...] | None
    ) -> Counts:
        """Passes until the table has all rows (or all of `only`); the answer is what it holds then."""
        fruitless = 0
        while True:
            todo, fresh, fault = (
                Todo(self.work.source, self.work.options, there.done, only),
                Counts(),
                "",
            )
            waited = False
            try:
                first_look = _first_look(todo)
            except RayError as error:
                fault = _fault(error)
            if not fault:
                if first_look.rows == 0:
                    self.notes = first_look.notes
                    return there.counts
                few = first_look.rows < _most_looked_at(todo)
                todo = replace(todo, few=first_look.rows if few else None)
                self.folder.remove(FACTS)  # unfinished again
                fresh, fault, waited = self._pass(table, todo)
                made.add(fresh)
            if not fault:
                there.counts.add(fresh)
                return there.counts
            self.faults.append(fault)
            # Waiting for a cluster that is full or has no nodes yet is no fault, however long it takes.
            fruitless = 0 if fresh.rows or waited else fruitless + 1
            if fruitless == FRUITLESS_PASSES:
                raise UserError(
                    f"the work fails each time it is tried ({fault}); what is made stays in {self.folder}, and the "
                    "same command goes on from there"
                )
            log.warning("some work was lost (%s): going on with what the table lacks", fault)
            if fruitless:  # a store or a server that restarts is given some time
                time.sleep(SECONDS_AFTER_A_FAULT * 4 ** (fruitless - 1))
            there = standing(self.folder, table)

    def _pass(self, table: str, todo: Todo) -> tuple[Counts, str, bool]:
        """What was made of what is to do; why not all of it; and whether that is because nothing could run."""
        total = ray.remote(num_cpus=0)(survey).remote(todo, None)
        with Progress(self.work.act, total=lambda: _if_ready(total)) as progress:

            def published(counts: Counts) -> None:
                progress.add(counts.rows, counts.reasons)
                self._judge(one.counts)

            one = Pass(self.folder, table, self.lease, self.work.parts, published)
            try:
                rows = self.work.stream(todo)
                check_visible(
                    _local(self.work, RunFolder(self.work.options.out))
                )  # by nodes that came for it
                whole = one.run(rows)
                self.notes = one.notes or {}
                return (
                    one.counts,
                    "" if whole else "blocks were lost with a worker or a node",
                    False,
                )
            except ExecutionTimeoutError:
                stood_still = f"nothing was finished for {_timeout():,.0f} s"
                if _has_free_processors(self.work):
                    return one.counts, f"{stood_still}, though processors were free", False
                return one.counts, f"{stood_still}: the cluster has no free processor for it", True
            except RayError as error:
                return one.counts, _fault(error), False
            finally:
                ray.cancel(total)

    def _judge(self, counts: Counts) -> None:
        allowed = self.work.options.failures_allowed(max(counts.rows, ROWS_TO_JUDGE))
        if counts.failed > allowed:
            raise UserError(
                f"{counts.failed:,} of {counts.rows:,} rows failed, more than --max-failed "
                f"{self.work.options.max_failed}; what is made stays, and can be gone on with:\n"
                + "\n".join(reasons(counts))
            )


def _fault(error: RayError) -> str:
    """What went wrong, in one line; a refusal is raised as itself."""
    if refusal := find_user_error(error):
        raise refusal from error
    return root_cause(error)


def _first_look(todo: Todo) -> Survey:
    """Through the whole source where little is to do, else until that is known."""
    found: Survey = ray.get(ray.remote(num_cpus=0)(survey).remote(todo, _most_looked_at(todo)))
    if not found.rows and not found.skipped:
        raise UserError(f"{todo.source.path} holds no rows")
    return found


def _most_looked_at(todo: Todo) -> int:
    return BATCHES_ARE_MANY * todo.choice.batch


def _timeout() -> float:
    return DataContext.get_current().execution_no_progress_timeout_s


def _has_free_processors(work: Work) -> bool:
    """Whether a task and a model could run now, after those of the last pass have ended. If they
    could, they ran and made nothing. If not, the processors are gone, or other work uses them."""
    cluster, gpus = work.config.cluster, work.options.gpus
    needs = [(cluster.decode_on, "CPU", 1.0)]
    if gpus is None:
        gpus = min(1.0, capacity(cluster.model_on).get("GPU", 0.0))
    if work.runs_model and gpus:
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
    failed = (FAILED_TO_FETCH, FAILED_TO_DECODE, FAILED_TO_CAPTION)
    return failed if retry == "failed" else (retry,) if retry else ()


def _forecast(work: Work, out: RunFolder) -> str:
    """What a run would do, without a trace."""
    if wrong := strangeness(as_recorded(work, out), out):
        held = f"{out} holds rows of another run: {'; '.join(wrong)}"
        there = Counts()
        done: tuple[Any, ...] = ()
    else:
        stands = standing(out, work.table)
        there, done = stands.counts, stands.done
        held = f"{out} holds {there.rows:,} rows, {there.failed:,} failed"
    todo = Todo(work.source, work.options, done)
    found: Survey = ray.get(ray.remote(num_cpus=0)(survey).remote(todo, None))
    lines = [
        f"{found.rows + found.skipped:,} rows in {work.source.path}",
        *noted_lines(**found.notes),
        held,
        f"{found.rows:,} rows would be made",
    ]
    return "\n".join(lines) + "\n"
