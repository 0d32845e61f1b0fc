"""What a run costs that hardly computes: millions of rows through a captioner that answers at
once, so what remains is the work of listing, planning, scheduling, commits and joins.

    python benchmarks/million.py [--rows 1000000] [--ray]    a run, and the same again
    python benchmarks/million.py --parts [--rows 1000000]    planning, commits and joins each alone
    python benchmarks/million.py --parts --s3 [--rows 50000] the same on moto, a stand-in for S3
    python benchmarks/million.py --scaling                   1, 2 and 4 workers that only sleep

The whole run prints the memory of the driver while the table grows. Without --ray, this process
does all of it: it also lists the source and writes the rows of chunks. The second run finds
nothing to do. Times are those of a clock, and processor times of this process, which depend less
on what else the machine does.
"""

import argparse
import functools
import os
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from json_figures import add_json, write_figures

from raycap.bulk.counts import RowCounts
from raycap.bulk.finish import join_part, part_name, parts_of
from raycap.bulk.job import TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.plan import Chunk, Plan, read_shard, write_plan, write_shards
from raycap.bulk.run import run_job
from raycap.bulk.table import ChunkFile, DataFile, OutputTable, chunk_path
from raycap.bulk.taken_keys import TakenKeys
from raycap.bulk.work import FileLayout, FinishedChunk, WorkOrder, write_rows
from raycap.bulk.worker_pool import Answered, Failed, Worker, WorkerPool
from raycap.cluster import Cluster
from raycap.cluster.local_ray import local_ray
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.images import Square
from raycap.schema import CAPTIONS, MANIFEST, SUCCESS
from raycap.sources import Notes, SourceDefaults
from raycap.sources.manifest import MOST_ROWS
from raycap.storage import output_folder
from raycap.storage.retry import with_retries

ROWS_IN_UNIT = 150_000
ROWS_IN_CHUNK = 960  # half a minute of a worker that makes 32 captions a second
ROWS_IN_PART = 10_000
CHUNKS_PER_COMMIT = 20


@dataclass(frozen=True)
class Numbers(SourceDefaults):
    """A source of so many rows without pictures, in units."""

    rows: int
    path: str = "numbers"
    trust: Trust = ONLY_WEB

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def units(self) -> tuple[str, ...]:
        starts = range(0, self.rows, ROWS_IN_UNIT)
        return tuple(f"{start} {min(start + ROWS_IN_UNIT, self.rows)}" for start in starts)

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        return True

    def tables_of_unit(self, unit: str, notes: Notes) -> Iterator[pa.Table]:
        start, stop = map(int, unit.split())
        for first in range(start, stop, MOST_ROWS):
            numbers = range(first, min(first + MOST_ROWS, stop))
            names = pa.array([f"folder/{number:012d}.jpg" for number in numbers])
            same = {"split": "", "references": [], "bytes": b"", "error": "none"}
            columns = [
                names
                if name in ("key", "uri")
                else pa.repeat(pa.scalar(same[name], kind), len(names))
                for name, kind in zip(MANIFEST.names, MANIFEST.types, strict=True)
            ]
            yield pa.table(columns, MANIFEST)

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        for unit in self.units():
            yield from self.tables_of_unit(unit, notes or Notes())

    def embedded_pictures(self, rows: pa.Table) -> Sequence[bytes | None]:
        return [b""] * len(rows)


def captioned(table: pa.Table, caption: str) -> pa.Table:
    """The rows with the same caption for each, as if they had pictures."""
    said = {"caption": caption, "score": -1.0, "alternatives": []}
    said |= {"status": SUCCESS, "error_message": ""}
    said |= {"flags": [], "raw_caption": None, "attempt": 0}
    table = table.drop_columns(["pixels", "status", "error_message"])
    for name, value in said.items():
        column = pa.array([value] * len(table), CAPTIONS.field(name).type)
        table = table.append_column(name, column)
    return table


class Pretends:
    """A model that says the same of every picture, after a rest."""

    def __init__(self, rest: float, _options: BulkOptions, _threads: int) -> None:
        self._rest = rest

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self._rest)
        return captioned(table, "a dog on grass")


def job(out: Path, rows: int, batch: int, actors: int, rest: float) -> TableJob:
    options = CaptionOptions(
        out=str(out), batch=batch, actors=actors, threads=1, part_rows=ROWS_IN_PART
    )
    return TableJob(
        command="caption",
        table="captions",
        source=Numbers(rows),
        options=options,
        identity={"rows": "numbers"},
        layout=FileLayout(options.part_rows, CAPTIONS, (), {}),
        intake=Square(1),
        open_model=functools.partial(Pretends, rest),
        pictures_per_second=batch / 30.0,
    )


class InstantPool:
    """A worker that answers at once: a thread writes the rows of each chunk."""

    def __init__(self, order: WorkOrder, events: "queue.SimpleQueue[Any]") -> None:
        self.workers: list[Worker] = []
        self._order, self._events = order, events
        self._thread = ThreadPoolExecutor(1)
        self._shard = functools.lru_cache(1)(read_shard)

    def start_workers(self, rows: int | None) -> None:
        if not self.workers:
            self.workers.append(Worker(is_ready=True))

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)
        self._thread.submit(self._make, worker, chunk)

    def _make(self, worker: Worker, chunk: Chunk) -> None:
        try:
            rows = self._shard(self._order.out, chunk.operation, chunk.unit, chunk.shard)
            table = captions_of(rows.slice(chunk.start, chunk.rows))
            counts = RowCounts()
            counts.statuses[SUCCESS] = chunk.rows
            order = self._order
            file = write_rows(order.table, chunk_path(chunk), table, order.layout, counts)
            answer = FinishedChunk(ChunkFile(*file, chunk), counts, table.schema)
            self._events.put(Answered(worker, chunk, answer))
        except Exception as error:  # noqa: BLE001 - the run raises it
            self._events.put(Failed(worker, chunk, error))

    def ask_progress(self) -> None: ...

    def pause(self, seconds: float) -> None: ...

    def stop_worker(self, worker: Worker) -> None: ...

    def has_free_processors(self) -> bool:
        return True

    def close(self) -> None:
        self._thread.shutdown()


def captions_of(rows: pa.Table) -> pa.Table:
    """A caption for each row of the plan."""
    same = {"caption": "a dog on grass", "score": -1.0, "status": SUCCESS, "error_message": ""}
    columns = [
        rows[field.name]
        if field.name in rows.column_names
        else pa.repeat(pa.scalar(same.get(field.name), field.type), len(rows))
        for field in CAPTIONS
    ]
    return pa.table(columns, CAPTIONS)


class Here(Machines):
    """Runs everything in this process, with a worker that answers at once."""

    def worker_pool(self, job: TableJob, order: WorkOrder, events: Any, rows: Any) -> WorkerPool:
        return InstantPool(order, events)


class Memory(threading.Thread):
    """What this process holds, in MiB, looked at each second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(pages * 4096 // 2**20)
            if self._is_over.wait(1):
                return

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def tenths(self) -> list[int]:
        """The most in each tenth of the time."""
        step = max(1, -(-len(self.seen) // 10))
        return [max(self.seen[at : at + step]) for at in range(0, len(self.seen), step)]


def whole(folder: Path, rows: int, on_ray: bool) -> None:
    """A run, and the same command again."""
    for title in ("made", "again, with nothing to do"):
        machines = None if on_ray else Here(Cluster())
        memory, began, used = Memory(), time.monotonic(), time.process_time()
        run_job(job(folder / "out", rows, ROWS_IN_CHUNK, 1, 0.0), {}, machines)
        took, used = time.monotonic() - began, time.process_time() - used
        memory.stop()
        print(
            f"{rows:,} rows {title}: {took:.1f} s, {rows / took:,.0f} rows/s; processor time of "
            f"the driver {used:.1f} s; its memory {memory.seen[0]} MiB at first, then by tenths "
            f"{memory.tenths()}",
            flush=True,
        )


def parts(uri: str, rows: int) -> None:
    """Each step in this process, without Ray."""
    out, source = output_folder(uri), Numbers(rows)
    layout = FileLayout(ROWS_IN_PART, CAPTIONS, (), {})
    plan = Plan(1, "first", {}, ROWS_IN_CHUNK, ROWS_IN_CHUNK, units=source.units())

    def measured(step: Callable[[], int], what: str) -> None:
        began, used = time.monotonic(), time.process_time()
        count = step()
        took, used = time.monotonic() - began, time.process_time() - used
        print(
            f"{what}: {count:,} in {took:.1f} s, {rows / took:,.0f} rows/s; processor time "
            f"{used:.1f} s, {1000 * used / count:.2f} ms each",
            flush=True,
        )

    def write_down() -> int:
        write_plan(out, plan)
        shards = 0
        for number, unit in enumerate(plan.units):
            notes = Notes()
            listed = source.tables_of_unit(unit, notes)
            shards += len(list(write_shards(out, plan, number, listed, notes, TakenKeys())))
        return shards

    def find_chunks() -> int:
        chunks.extend(each for shard in plan.shards(out) for each in shard.chunks(1))
        return len(chunks)

    def write_chunks() -> int:
        shard, rows = (-1, -1), CAPTIONS.empty_table()
        for chunk in chunks:
            if (chunk.unit, chunk.shard) != shard:
                shard = chunk.unit, chunk.shard
                rows = read_shard(out, 1, *shard)
            content = captions_of(rows.slice(chunk.start, chunk.rows))
            counts = RowCounts()
            counts.statuses[SUCCESS] = chunk.rows
            file = write_rows(table.folder, chunk_path(chunk), content, layout, counts)
            files.append(ChunkFile(*file, chunk))
        return len(files)

    def commit() -> int:
        commits = 0
        for start in range(0, len(files), CHUNKS_PER_COMMIT):
            table.commit_chunks(files[start : start + CHUNKS_PER_COMMIT], 1, CAPTIONS)
            commits += 1
        return commits

    def look() -> int:
        held = OutputTable(table.folder).chunks()
        assert all(each in held for shard in plan.shards(out) for each in shard.chunks(1))
        return len(held)

    def join() -> int:
        pieces = enumerate(parts_of(files, ROWS_IN_PART))
        joined.extend(
            join_part(table.folder, table.folder, part_name(1, number), some, layout)
            for number, some in pieces
        )
        return len(joined)

    def complete() -> int:
        table.replace(1, joined, files)
        return 1

    chunks: list[Chunk] = []
    files: list[ChunkFile] = []
    joined: list[DataFile] = []
    table = OutputTable(out / "captions")
    measured(write_down, "write the plan, shards")
    measured(find_chunks, "read the plan, chunks")
    measured(write_chunks, "write chunks")
    measured(commit, f"commits of {CHUNKS_PER_COMMIT} chunks")
    measured(look, "find out what is left after a crash, chunks")
    measured(join, "join, parts")
    measured(complete, "the last commit")


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """A bucket of a stand-in for S3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "moto.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        with_retries(lambda: fsspec.filesystem("s3").mkdir("bucket"), "reach moto")
        yield "s3://bucket/out"
    finally:
        server.terminate()


def scaling(folder: Path, rounds: int, most: int) -> dict[str, float]:
    """Batches of 16 that take 0.4 s each, so many for each actor; the start of a run is taken off
    by a run of one batch for each of them. Gives the efficiencies."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for number in range(rounds):
        for actors, found in rates.items():
            seconds = []
            for batches in (actors, most * actors):
                began = time.monotonic()
                run_job(
                    job(folder / f"{number}-{actors}-{batches}", 16 * batches, 16, actors, 0.4), {}
                )
                seconds.append(time.monotonic() - began)
            found.append(16 * (most - 1) * actors / (seconds[1] - seconds[0]))
    one = statistics.median(rates[1])
    efficiencies = {}
    for actors, found in rates.items():
        rate = statistics.median(found)
        print(f"{actors} sleeping actors: {rate:.1f} rows/s, efficiency {rate / one / actors:.2f}")
        efficiencies[f"efficiency_{actors}"] = rate / one / actors
    return efficiencies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ray", action="store_true", help="the whole run on Ray")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--s3", action="store_true", help="with --parts: on moto")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="with --scaling")
    parser.add_argument("--batches", type=int, default=60, help="with --scaling, of each actor")
    add_json(parser)
    parser.add_argument(
        "--folder", type=Path, help="where to write; a temporary folder by default"
    )
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="raycap-million-", dir=given.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if given.parts:
            uri = stack.enter_context(moto(folder)) if given.s3 else str(folder)
            return parts(uri, given.rows)
        if given.ray or given.scaling:
            stack.enter_context(local_ray(None, log_to_driver=False))
        if given.scaling:
            write_figures(given, scaling(folder, given.rounds, given.batches))
        else:
            whole(folder, given.rows, given.ray)


if __name__ == "__main__":
    main()
