"""The work of one operation: its plan is listed, its chunks go to workers, and what they finish is
committed. All three happen at the same time."""

import logging
import queue
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raycap.bulk.counts import RowCounts
from raycap.bulk.facts import reason_lines
from raycap.bulk.job import ANSWERS, FACTS, TableJob
from raycap.bulk.listing import Lister
from raycap.bulk.machines import Machines
from raycap.bulk.plan import Chunk, Plan, Shard, read_plan
from raycap.bulk.table import OutputTable, taken_over
from raycap.bulk.work import FinishedChunk, WorkerProgress
from raycap.bulk.worker_pool import (
    MOST_CHUNKS,
    Answered,
    Failed,
    PlanFailed,
    Planned,
    Worker,
    WorkerPool,
)
from raycap.errors import UserError
from raycap.progress import Progress
from raycap.sources.notes import MOST_EXAMPLES
from raycap.storage import RunFolder

log = logging.getLogger(__name__)

# Faults without a finished chunk between them, after which the run ends: a fault that stays is not
# mended by trying again.
MOST_FAULTS_IN_A_ROW = 3
SECONDS_AFTER_A_FAULT = 2.0  # and four times as long after the next one
# So many batches keep any number of workers busy.
BATCHES_ARE_MANY = 64
# A share of failures says something only of so many rows.
ROWS_TO_JUDGE = 200
# If nothing is finished for so long, plus what the pictures may take, something hangs.
SECONDS_WITHOUT_PROGRESS = 900.0
SECONDS_BETWEEN_COMMITS, FILES_PER_COMMIT = 2.0, 500
SECONDS_BETWEEN_LOOKS = 1.0
# A worker that is quick is given as many rows as it makes in so long: where most chunks wait for a
# slow row, few answers come that would bring it new ones.
SECONDS_AHEAD = 4.0
# Rows of one worker that may wait for slow servers.
MOST_ROWS_IDLE = 20_000


@dataclass
class ChunkScheduler:
    """Makes the chunks of a plan that its table does not have."""

    job: TableJob
    out: RunFolder
    plan: Plan
    number: int  # under which the operation commits
    table: OutputTable  # of the run
    target: OutputTable  # the same, or the side table of a retry or an overwrite
    lister: Lister
    machines: Machines

    planned: int = 0  # rows of the plan
    made: RowCounts = field(default_factory=RowCounts)  # rows that are committed
    faults: list[str] = field(default_factory=list)

    _shards: set[tuple[int, int]] = field(default_factory=set)
    _last_shards: dict[int, Shard] = field(default_factory=dict)  # by unit
    # What is to be made: chunks that were lost, then shards that are not cut into chunks yet.
    _lost: deque[Chunk] = field(default_factory=deque)
    _waiting: deque[tuple[Shard, int]] = field(default_factory=deque)  # and their missing rows
    _chunks: Iterator[Chunk] = field(default_factory=lambda: iter(()))  # of the shard in hand
    _next_chunk: Chunk | None = None
    _rows_left: int = 0
    _finished: dict[Chunk, FinishedChunk] = field(default_factory=dict)  # not yet committed
    _counts: RowCounts = field(default_factory=RowCounts)  # of finished and of committed rows
    _schema: pa.Schema | None = None
    _faults_in_a_row: int = 0
    _fault_at: float = 0.0  # when the last fault happened that was counted
    _listed_at: float = 0.0
    _events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _committed_at: float = 0.0
    _progressed_at: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Returns when every chunk of the plan is in the table."""
        self._list()
        self._wait_for_work()
        if not self.planned:
            return
        self.table.check_open(self.plan.operation)
        if read_plan(self.out, self.plan.operation) is None:
            # Another run has listed the source when it had no new rows, and given the plan up.
            raise taken_over(self.table.folder)
        self.out.remove(FACTS)  # the table is unfinished again
        if self.table.exists:
            self.table.begin(self.number, self.plan.operation)
        if not self._rows_left:
            return
        order = self.job.order(self.out, self.target.folder)
        rows = self._rows_left if self._is_planned else None
        pool = self.machines.worker_pool(self.job, order, self._events, rows)
        try:
            with Progress(self.job.command, total=self._rows_to_make) as progress:
                self._work(pool, progress)
        finally:
            # Also after an interrupt or a fault: what is finished is kept.
            pool.close()
            self._commit_finished()

    @property
    def _is_planned(self) -> bool:
        return len(self._last_shards) == len(self.plan.units)

    def _rows_to_make(self) -> int | None:
        if not self._is_planned:
            return None
        held = sum(chunk.rows for chunk in self.target.chunks())
        return self.planned - held + self.made.rows

    def _wait_for_work(self) -> None:
        """Read the plan until it is known whether there is much to do."""
        many = BATCHES_ARE_MANY * self.job.options.batch_size
        while not self._is_planned and self._rows_left < many:
            event = self._events.get()
            if isinstance(event, Planned):
                self._add_shard(event.shard)
            else:
                self._plan_again(event.error)

    def _work(self, pool: WorkerPool, progress: Progress) -> None:
        self._progressed_at = time.monotonic()
        while True:
            # Before workers are started, which may take seconds.
            is_due = time.monotonic() - self._committed_at > SECONDS_BETWEEN_COMMITS
            if is_due or len(self._finished) > FILES_PER_COMMIT:
                self._commit_finished()
            if self._rows_left:
                pool.start_workers(self._rows_left if self._is_planned else None)
            self._assign_chunks(pool)
            is_busy = any(worker.chunks for worker in pool.workers)
            if not (self._rows_left or is_busy):
                self._commit_finished()
                if self._is_planned:
                    return
            try:
                self._handle(pool, self._events.get(timeout=SECONDS_BETWEEN_LOOKS), progress)
            except queue.Empty:
                self._check_progress(pool)

    def _assign_chunks(self, pool: WorkerPool) -> None:
        """Give each worker so much that its next pictures are loaded while the model works. Rows
        that only wait for a server do not count."""
        pool.ask_progress()
        while (chunk := self._peek()) is not None:
            least = max(2 * chunk.rows, 4 * self.job.options.batch_size)
            able = [
                worker
                for worker in pool.workers
                if worker.is_ready
                and not worker.is_leaving
                and worker.rows_to_do < max(least, SECONDS_AHEAD * worker.pace)
                and worker.rows < least + MOST_ROWS_IDLE
                and len(worker.chunks) < MOST_CHUNKS
            ]
            if not able:
                return
            worker = min(able, key=lambda worker: worker.rows_to_do)
            self._next_chunk = None
            self._rows_left -= chunk.rows
            pool.make(worker, chunk)

    def _peek(self) -> Chunk | None:
        """The next chunk to be made."""
        while self._next_chunk is None:
            if self._lost:
                self._next_chunk = self._lost.popleft()
            elif (chunk := next(self._chunks, None)) is not None:
                self._next_chunk = chunk
            elif self._waiting:
                shard, rows = self._waiting.popleft()
                missing = self._missing(shard)
                self._rows_left += sum(chunk.rows for chunk in missing) - rows
                self._chunks = iter(missing)
            else:
                return None
        return self._next_chunk

    def _missing(self, shard: Shard) -> list[Chunk]:
        """The chunks of a shard that the table does not have."""
        held = self.target.chunks()
        return [chunk for chunk in shard.chunks(self.plan.operation) if chunk not in held]

    def _stop_and_requeue(self, pool: WorkerPool, worker: Worker) -> None:
        """End a worker; its chunks are made again."""
        self._rows_left += worker.rows
        self._lost.extend(sorted(worker.chunks))
        pool.stop_worker(worker)

    # What happens.

    def _handle(self, pool: WorkerPool, event: Any, progress: Progress) -> None:
        if isinstance(event, Planned):
            self._add_shard(event.shard)
        elif isinstance(event, PlanFailed):
            self._plan_again(event.error)
        elif event.worker not in pool.workers:
            pass  # its chunks were given to others already
        elif isinstance(event, Failed):
            self._handle_lost_worker(pool, event)
        elif isinstance(event, Answered):
            self._take_answer(event, progress)

    def _add_shard(self, shard: Shard) -> None:
        if (shard.unit, shard.number) not in self._shards:
            self._shards.add((shard.unit, shard.number))
            self.planned += shard.rows
            rows = sum(chunk.rows for chunk in self._missing(shard))
            if rows:
                self._rows_left += rows
                self._waiting.append((shard, rows))
        if shard.is_last:
            self._last_shards[shard.unit] = shard

    def _plan_again(self, error: BaseException) -> None:
        reason, is_first = self.machines.reason_of(error), self._listed_at >= self._fault_at
        pause = self._note_fault(reason, self._listed_at)
        if is_first:  # of several tasks that fail together
            time.sleep(pause)
            self._list()

    def _list(self) -> None:
        self._listed_at = time.monotonic()
        units = [unit for unit in range(len(self.plan.units)) if unit not in self._last_shards]
        self.machines.list_shards(self.lister, units, self._events)

    def notes(self) -> dict[str, Any]:
        """What the source has noted, of all its units."""
        left_out: dict[str, dict[str, Any]] = {}
        lines: list[str] = []
        for shard in self._last_shards.values():
            noted = shard.parsed_notes()
            for item in noted["left_out"]:
                known = left_out.setdefault(item["what"], {**item, "count": 0, "examples": []})
                known["count"] += item["count"]
                known["examples"] = [*known["examples"], *item["examples"]][:MOST_EXAMPLES]
            lines += noted["notes"]
        return {"left_out": list(left_out.values()), "notes": list(dict.fromkeys(lines))}

    def _take_answer(self, event: Answered, progress: Progress) -> None:
        worker, answer = event.worker, event.answer
        if isinstance(answer, FinishedChunk):
            assert event.chunk is not None
            worker.chunks.discard(event.chunk)
            worker.rows_idle = max(0, worker.rows_idle - event.chunk.rows)
            self._finished[event.chunk] = answer
            self._schema = answer.schema
            self._faults_in_a_row = 0
            progress.add(answer.counts.rows, answer.counts.reasons)
            self._counts.add(answer.counts)
            self._check_failures()
        elif isinstance(answer, WorkerProgress):
            worker.is_asked = False
            rows_before = worker.rows_done
            worker.note_progress(answer)
            if worker.rows_done == rows_before:
                return
        else:
            worker.is_ready = True
        self._progressed_at = time.monotonic()

    def _handle_lost_worker(self, pool: WorkerPool, event: Failed) -> None:
        """A worker is lost, or could not make a chunk: its chunks are made again."""
        self._stop_and_requeue(pool, event.worker)
        reason = self.machines.reason_of(event.error)
        if event.worker.is_leaving:  # the notice was too short for its chunks
            self.faults.append(reason)
            log.warning("a node was taken away (%s): its work is done again", reason)
            return
        pool.pause(self._note_fault(reason, event.worker.started_at))

    def _note_fault(self, reason: str, began: float) -> float:
        """Returns for how many seconds to wait before the next try. `began` is when began what has
        failed: a node that dies takes all its workers with it, and that is one fault."""
        self.faults.append(reason)
        if began >= self._fault_at:
            self._faults_in_a_row += 1
            self._fault_at = time.monotonic()
        if self._faults_in_a_row == MOST_FAULTS_IN_A_ROW:
            raise UserError(
                f"the work fails each time it is tried ({reason}); what is made stays in "
                f"{self.out}, and the same command goes on from there"
            )
        log.warning("some work was lost (%s): it is done again", reason)
        return SECONDS_AFTER_A_FAULT * 4.0 ** max(0, self._faults_in_a_row - 1)

    def _check_failures(self) -> None:
        counts = self._counts
        allowed = self.job.options.failures_allowed(max(counts.rows, ROWS_TO_JUDGE))
        if counts.failed > allowed:
            raise UserError(
                f"{counts.failed:,} of {counts.rows:,} rows failed, more than --max-failed "
                f"{self.job.options.max_failed}; what is made stays, and the same command goes on "
                "with it:\n" + "\n".join(reason_lines(counts))
            )

    def _check_progress(self, pool: WorkerPool) -> None:
        """Start over with new workers if nothing is finished for a long time."""
        rows_per_task = self.job.order(self.out, self.target.folder).rows_per_task
        limit = SECONDS_WITHOUT_PROGRESS + rows_per_task * self.job.reading.timeout
        if time.monotonic() - self._progressed_at < limit:
            return
        reason = f"nothing was finished for {limit:,.0f} s"
        for worker in list(pool.workers):
            self._stop_and_requeue(pool, worker)
        self._progressed_at = time.monotonic()
        if pool.has_free_processors():
            pool.pause(
                self._note_fault(f"{reason}, though processors were free", time.monotonic())
            )
        else:  # waiting for a cluster that is full is no fault, however long it takes
            self.faults.append(f"{reason}: the cluster has no free processor for it")
            log.warning("%s", self.faults[-1])

    def _commit_finished(self) -> None:
        """Bring what is finished into the table."""
        if not self._finished:
            return
        self._committed_at = time.monotonic()
        assert self._schema is not None
        files = [finished.file for finished in self._finished.values()]
        for file in self.target.commit_chunks(files, self.number, self._schema):
            self.made.add(self._finished[file.chunk].counts)
        if self.job.keeps_answers:
            for chunk in self._finished:
                self.out.remove(f"{ANSWERS}/{chunk}")
        self._finished.clear()
