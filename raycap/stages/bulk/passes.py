"""A run from its first look at what stands to its facts: passes over what the table lacks, until it is whole."""

import logging
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from raycap.progress import Progress
from raycap.refusal import Refusal
from raycap.runs import Lease, RunFolder, output_folder
from raycap.runs.folder import STAGED
from raycap.runs.lease import LEASE
from raycap.sources.place import locate
from raycap.stages.bulk import anew, retried
from raycap.stages.bulk.publish import Pass
from raycap.stages.bulk.standing import Counts, Standing, standing
from raycap.stages.bulk.todo import Todo, survey
from raycap.stages.bulk.work import FACTS, Outcome, Work, identify, reasons, strangeness, summary, write_facts
from raycap.stages.nodes import check_seen
from raycap.stages.session import innermost, refusal_within
from raycap.tables import FAILED_TO_CAPTION, FAILED_TO_DECODE, FAILED_TO_FETCH

log = logging.getLogger(__name__)

# Passes in a row that brought nothing before the run ends: a fault that stays is not mended by trying.
FRUITLESS_PASSES = 3
# So many keep any pool busy.
BATCHES_ARE_MANY = 64
# A share of failures says something only of so many rows.
ROWS_TO_JUDGE = 200


def perform(work: Work, more: dict[str, Any]) -> int:
    """Make the table of a work, in a session of Ray; 0 when every row is good, 1 when some failed."""
    out = output_folder(work.options.out)
    if work.options.dry_run:
        sys.stdout.write(_forecast(work, out))
        return 0
    with Lease(out) as lease:
        check_seen(_local(work, out))
        try:
            anew.finish(out)
            folder = anew.begin(work, out) if work.options.overwrite else out
            identify(work, folder)
            outcome = _Run(work, folder, lease).make()
            if outcome.made.rows or not folder.exists(FACTS):
                write_facts(work, folder, outcome, more)
            anew.finish(out)
            work.also(out)
        finally:
            out.remove(STAGED)
    sys.stdout.write(summary(work, out, outcome))
    return 1 if outcome.held.failed else 0


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

    def make(self) -> Outcome:
        began, made = time.monotonic(), Counts()
        retried.merge(self.folder, self.work.table, self.lease)  # what a crash left
        wanted = _statuses(self.work.options.retry)
        before = standing(self.folder, self.work.table, wanted)
        held = self._fill(self.work.table, before, made, None)
        if wanted and any(ray.get(failed).size for failed in before.failed):
            self._fill(retried.TABLE, standing(self.folder, retried.TABLE), made, before.failed)
            retried.merge(self.folder, self.work.table, self.lease)
            held = standing(self.folder, self.work.table).counts
        return Outcome(made, held, time.monotonic() - began, self.faults)

    def _fill(self, table: str, there: Standing, made: Counts, only: tuple[Any, ...] | None) -> Counts:
        """Passes until the table has all rows (or all of `only`); the answer is what it holds then."""
        fruitless = 0
        while True:
            todo = Todo(self.work.source, self.work.options, there.done, only)
            todo = replace(todo, few=_counted(todo))
            if todo.few == 0:
                return there.counts
            self.folder.remove(FACTS)  # unfinished again
            fresh, fault = self._pass(table, todo)
            made.add(fresh)
            if not fault:
                there.counts.add(fresh)
                return there.counts
            self.faults.append(fault)
            fruitless = 0 if fresh.rows else fruitless + 1
            if fruitless == FRUITLESS_PASSES:
                raise Refusal(
                    f"the work fails each time it is tried ({fault}); what is made stays in {self.folder}, and the "
                    "same command goes on from there"
                )
            log.warning("some work was lost (%s): going on with what the table lacks", fault)
            there = standing(self.folder, table)

    def _pass(self, table: str, todo: Todo) -> tuple[Counts, str]:
        """What was made of what is to do, and why not all of it."""
        total = ray.remote(num_cpus=0)(survey).remote(todo, None)
        with Progress(self.work.act, total=lambda: _if_ready(total)) as progress:

            def published(counts: Counts) -> None:
                progress.add(counts.rows, counts.reasons)
                self._judge(one.counts)

            one = Pass(self.folder, table, self.lease, self.work.parts, published)
            try:
                rows = self.work.stream(todo)
                check_seen(_local(self.work, RunFolder(self.work.options.out)))  # by nodes that came for it
                whole = one.run(rows)
                return one.counts, "" if whole else "blocks were lost with a worker or a node"
            except RayError as error:
                if refusal := refusal_within(error):
                    raise refusal from error
                return one.counts, innermost(error)
            finally:
                ray.cancel(total)

    def _judge(self, counts: Counts) -> None:
        allowed = self.work.options.failures_allowed(max(counts.rows, ROWS_TO_JUDGE))
        if counts.failed > allowed:
            raise Refusal(
                f"{counts.failed:,} of {counts.rows:,} rows failed, more than --max-failed "
                f"{self.work.options.max_failed}; what is made stays, and can be gone on with:\n"
                + "\n".join(reasons(counts))
            )


def _counted(todo: Todo) -> int | None:
    """The rows to do, where they are few."""
    most = BATCHES_ARE_MANY * todo.choice.batch
    rows, skipped = ray.get(ray.remote(num_cpus=0)(survey).remote(todo, most))
    if not rows and not skipped:
        raise Refusal(f"{todo.source.path} holds no rows")
    return rows if rows < most else None


def _if_ready(answer: Any) -> int | None:
    ready, _ = ray.wait([answer], timeout=0)
    return int(ray.get(answer)[0]) if ready else None


def _statuses(retry: str) -> tuple[str, ...]:
    failed = (FAILED_TO_FETCH, FAILED_TO_DECODE, FAILED_TO_CAPTION)
    return failed if retry == "failed" else (retry,) if retry else ()


def _forecast(work: Work, out: RunFolder) -> str:
    """What a run would do, without a trace."""
    if wrong := strangeness(work, out):
        held = f"{out} holds rows of another run: {'; '.join(wrong)}"
        there = Counts()
        done: tuple[Any, ...] = ()
    else:
        stands = standing(out, work.table)
        there, done = stands.counts, stands.done
        held = f"{out} holds {there.rows:,} rows, {there.failed:,} failed"
    rows, skipped = ray.get(ray.remote(num_cpus=0)(survey).remote(Todo(work.source, work.options, done), None))
    return f"{rows + skipped:,} rows in {work.source.path}\n{held}\n{rows:,} rows would be made\n"
