"""How many rows a worker is given at a time."""

from types import SimpleNamespace
from typing import Any

import pytest

from raycap.bulk.plan import Chunk
from raycap.bulk.scheduler import SECONDS_AHEAD, ChunkScheduler
from raycap.bulk.work import WorkerProgress
from raycap.bulk.worker_pool import Worker

BATCH, CHUNK_ROWS = 64, 64


class Pool:
    """Notes what its worker is given."""

    def __init__(self) -> None:
        self.workers = [Worker(is_ready=True)]

    def ask_progress(self) -> None: ...

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)


def scheduler() -> Any:
    job: Any = SimpleNamespace(options=SimpleNamespace(batch_size=BATCH))
    made: Any = ChunkScheduler(job, *[None] * 7)  # type: ignore[arg-type]
    made._chunks = (
        Chunk(1, 0, 0, start, start + CHUNK_ROWS) for start in range(0, 10**6, CHUNK_ROWS)
    )
    return made


@pytest.mark.parametrize("pace", [0, 10, 100, 1_000])
def test_a_quick_worker_is_given_what_it_makes_in_some_seconds(
    pace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each chunk waits for a slow row, no chunk is finished that would bring a new one."""
    pool, now = Pool(), [100.0]
    [worker] = pool.workers
    monkeypatch.setattr("raycap.bulk.worker_pool.time.monotonic", lambda: now[0])
    chunks = scheduler()
    chunks._assign_chunks(pool)
    assert worker.rows == 4 * BATCH, "its pace is not known yet"
    for rows_done in (0, pace, 2 * pace):
        worker.note_progress(WorkerProgress(rows_done, worker.rows, 0))
        now[0] += 1.0
    chunks._assign_chunks(pool)
    given = worker.rows_to_do
    wanted = max(4 * BATCH, SECONDS_AHEAD * pace)
    assert wanted <= given < wanted + CHUNK_ROWS
