"""How the machinery around the model scales: workers that only sleep, on GPUs in name.

    python benchmarks/scale.py [--workers 8 32] [--load 5] [--rest 2] [--batches 20] [--rows 0]

A model takes --load seconds to load, and --rest seconds for a batch of 64 rows, and sleeps
meanwhile. All processes run on this machine, however many GPUs there are in name: starting them
takes processor time, which on a cluster the nodes have in parallel. What this machine takes is
measured apart, in the same Ray: as many bare actors that sleep as long, and of which each always
has two batches. Then the same as a table job of raycap.

Busy is when the last worker has begun its first batch, counted from the start of the run in a Ray
that is up. Efficiency is the rate from then on, beside that of so many sleepers. Rows have no
pixels. `--rows` then go through with the last number of workers and batches of 1,024, for memory
over a long run.
"""

import argparse
import functools
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from json_figures import add_json, write_figures
from million import Numbers, captioned  # beside this file
from ray._private.internal_api import node_stats

from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FileLayout
from raycap.images import Square
from raycap.schema import CAPTIONS

BATCH = 64
# Tasks that load rows, at one time. Ray starts a process for each processor in name at its start.
CPUS = 4
AHEAD = 2  # batches of a bare actor
# Where workers start one after the other, the first ones need work until the last one has begun.
SPARE = 2.5
LAST_SHARE = 0.95  # of the batches: then workers run dry


class Batch(NamedTuple):
    """What one worker has done, and when."""

    worker: int
    loading: float  # its model begins to load
    loaded: float
    began: float
    ended: float

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Self:
        worker, *times = text.split()
        return cls(int(worker), *map(float, times))


class Sleeper:
    """Sleeps as long as a model would load, and for each batch."""

    def __init__(self, load: float, rest: float) -> None:
        self._rest, self._loading = rest, time.time()
        time.sleep(load)
        self._loaded = time.time()

    def sleep(self) -> Batch:
        began = time.time()
        time.sleep(self._rest)
        return Batch(os.getpid(), self._loading, self._loaded, began, time.time())


class SleepingModel(Sleeper):
    """The same in a table job. When it did so stands in its captions."""

    def __init__(self, load: float, rest: float, _options: BulkOptions, _threads: int) -> None:
        super().__init__(load, rest)

    def __call__(self, table: pa.Table) -> pa.Table:
        made: pa.Table = captioned(table, str(self.sleep()))
        return made


@dataclass
class Found:
    """What a run of so many workers has shown."""

    batches: Sequence[Batch]
    began: float

    def _first(self) -> dict[int, Batch]:
        """Of each worker."""
        first: dict[int, Batch] = {}
        for batch in sorted(self.batches, key=lambda batch: batch.began):
            first.setdefault(batch.worker, batch)
        return first

    @property
    def loading(self) -> list[float]:
        """When models began to load, in seconds from the start."""
        return sorted(batch.loading - self.began for batch in self._first().values())

    @property
    def busy(self) -> float:
        return max(batch.began for batch in self._first().values()) - self.began

    def rate(self) -> float:
        """Batches a second while all were busy; not a number if they never were."""
        ends = np.array(sorted(batch.ended for batch in self.batches))
        steady = ends[(ends > self.began + self.busy) & (ends < np.quantile(ends, LAST_SHARE))]
        if len(steady) < 2:
            return math.nan
        return float((len(steady) - 1) / max(steady[-1] - steady[0], 1e-9))


def bare(workers: int, load: float, rest: float, each: int) -> Found:
    """Actors of Ray alone, kept busy by a loop."""
    began = time.time()
    actor: Any = ray.remote(num_gpus=1, num_cpus=0)(Sleeper)
    actors = [actor.remote(load, rest) for _ in range(workers)]
    asked = {one.sleep.remote(): one for one in actors for _ in range(AHEAD)}
    left = each * workers - len(asked)
    batches: list[Batch] = []
    while asked:
        [done], _ = ray.wait(list(asked), num_returns=1)
        worker = asked.pop(done)
        batches.append(ray.get(done))
        if left > 0:
            left -= 1
            asked[worker.sleep.remote()] = worker
    for one in actors:
        ray.kill(one)
    return Found(batches, began)


def work(out: Path, rows: int, batch: int, workers: int, load: float, rest: float) -> TableJob:
    options = CaptionOptions(out=str(out), batch=batch, actors=workers, threads=1, gpus=1.0)
    return TableJob(
        command="caption",
        table="captions",
        source=Numbers(rows),
        options=options,
        identity={"rows": "numbers"},
        layout=FileLayout(options.part_rows, CAPTIONS, (), {}),
        intake=Square(1),
        open_model=functools.partial(SleepingModel, load, rest),
        pictures_per_second=batch / rest,
    )


def with_raycap(
    folder: Path, rows: int, batch: int, workers: int, load: float, rest: float
) -> Found:
    began = time.time()
    run_job(work(folder, rows, batch, workers, load, rest), {})
    said = pq.read_table(folder / "captions", columns=["caption"])["caption"].unique()
    return Found([Batch.parse(text) for text in said.to_pylist()], began)


@dataclass
class Watch:
    """The driver and the object store, looked at twice a second."""

    memory: list[int] = field(default_factory=list)  # MiB
    stored: list[int] = field(default_factory=list)  # MiB
    on: bool = True

    def look(self) -> None:
        node = ray.nodes()[0]  # type: ignore[no-untyped-call]
        while self.on:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * 4096 // 2**20)
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)  # type: ignore[no-untyped-call]
            self.stored.append(stats.store_stats.object_store_bytes_used // 2**20)
            time.sleep(0.5)


def compare(folder: Path, workers: int, given: argparse.Namespace) -> dict[str, float]:
    """Bare actors, then raycap."""
    load, rest, could = given.load, given.rest, workers / given.rest
    alone = bare(workers, load, rest, given.batches)
    late = max(0.0, alone.loading[-1] - alone.loading[0])
    each = given.batches + math.ceil(SPARE * late / rest)
    rows = each * workers * BATCH
    used, began = time.process_time(), time.time()
    ours = with_raycap(folder / str(workers), rows, BATCH, workers, load, rest)
    share = (time.process_time() - used) / (time.time() - began)
    print(
        f"{workers:4} workers, {rows:,} rows; models begin to load after "
        f"{ours.loading[0]:.1f} to {ours.loading[-1]:.1f} s (bare actors "
        f"{alone.loading[0]:.1f} to {alone.loading[-1]:.1f}); {len(ours.loading)} busy after "
        f"{ours.busy:.1f} s ({alone.busy:.1f}); {BATCH * ours.rate():,.0f} rows/s of "
        f"{BATCH * could:,.0f}, {ours.rate() / could:.2f} ({alone.rate() / could:.2f}); the "
        f"driver {share:.2f} of a processor",
        flush=True,
    )
    return {
        f"busy_{workers}": ours.busy,
        f"bare_busy_{workers}": alone.busy,
        f"efficiency_{workers}": ours.rate() / could,
        f"bare_efficiency_{workers}": alone.rate() / could,
        f"driver_{workers}": share,
    }


def long_run(folder: Path, workers: int, given: argparse.Namespace) -> None:
    """Memory over many rows."""
    watch = Watch()
    looking = threading.Thread(target=watch.look)
    looking.start()
    try:
        found = with_raycap(folder / "long", given.rows, 1024, workers, given.load, given.rest)
    finally:
        watch.on = False
        looking.join()
    print(
        f"{workers:4} workers, {given.rows:,} rows in batches of 1,024: "
        f"{1024 * found.rate():,.0f} rows/s; driver {watch.memory[0]} -> {max(watch.memory)} MiB; "
        f"object store at most {max(watch.stored)} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--load", type=float, default=5.0, help="seconds to load a model")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds for a batch")
    parser.add_argument("--batches", type=int, default=20, help="for each worker, at least")
    parser.add_argument("--rows", type=int, default=0)
    add_json(parser)
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="raycap-scale-"))
    figures: dict[str, float] = {}
    try:
        for workers in given.workers:
            ray.init(
                "local",
                num_cpus=CPUS,
                num_gpus=workers,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
            try:
                figures |= compare(home, workers, given)
                if given.rows and workers == given.workers[-1]:
                    long_run(home, workers, given)
            finally:
                ray.shutdown()
        write_figures(given, figures)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
