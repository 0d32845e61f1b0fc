"""How the machinery around the model scales: decoding and captioning that only sleep, on GPUs in
name.

    python benchmarks/scale.py [--workers 1 2 4 8 16 32] [--batches 25] [--rows 1000000]

A batch of 64 pictures sleeps 0.2 s on a GPU and 0.2 s on each of two processors that decode for
it. For each number of GPUs: rows per second once all work, beside what so many sleepers could do;
when the last of them got its first batch, counted from the start of the run in a Ray that is up;
the driver's share of a processor and its memory; and the most that lay in the object store. Rows
have no pixels here: a real block of 64 pictures has 10 MB. `--rows` then goes through with the
last number of workers and batches of 1,024, for memory over a long run.
"""

import argparse
import logging
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from million import Numbers, captioned  # beside this file
from ray._private.internal_api import node_stats

from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FileLayout
from raycap.images import Square
from raycap.schema import CAPTIONS

BATCH, REST = 64, 0.2


class Sleeps:
    """A GPU: who it is and when it was done stands in the caption."""

    def __init__(self, _options: BulkOptions, _threads: int) -> None:
        """Nothing is to be loaded."""

    def __call__(self, table: pa.Table) -> pa.Table:
        began = time.time()
        time.sleep(REST)
        made: pa.Table = captioned(table, f"{os.getpid()} {began} {time.time()}")
        return made


def work(out: Path, rows: int, batch: int, gpus: int) -> TableJob:
    options = CaptionOptions(out=str(out), batch=batch, actors=gpus, threads=1, gpus=1.0)
    return TableJob(
        command="caption",
        table="captions",
        source=Numbers(rows),
        options=options,
        identity={"rows": "numbers"},
        layout=FileLayout(options.part_rows, CAPTIONS, (), {}),
        intake=Square(1),
        open_model=Sleeps,
        pictures_per_second=batch / REST,
    )


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


def measured(folder: Path, gpus: int, rows: int, batch: int) -> str:
    watch = Watch()
    looking = threading.Thread(target=watch.look)
    looking.start()
    began, used = time.time(), time.process_time()
    run_job(work(folder, rows, batch, gpus), {})
    seconds, used = time.time() - began, time.process_time() - used
    watch.on = False
    looking.join()
    said = pq.read_table(folder / "captions", columns=["caption"])["caption"].unique().to_pylist()
    batches = [
        (pid, float(start), float(end)) for pid, start, end in (each.split() for each in said)
    ]
    first: dict[str, float] = {}
    for pid, start, _ in sorted(batches, key=lambda each: each[1]):
        first.setdefault(pid, start)
    busy = max(first.values()) - began
    ends = np.array(sorted(end for _, _, end in batches))
    steady = ends[(ends > max(first.values())) & (ends < np.quantile(ends, 0.95))]
    rate = (
        batch * (len(steady) - 1) / max(steady[-1] - steady[0], 1e-9)
        if len(steady) > 1
        else float("nan")
    )
    could = gpus * batch / REST
    return (
        f"{gpus:4} GPUs, {rows:9,} rows: {rate:9,.0f} rows/s of {could:7,.0f} "
        f"({rate / could:.2f}); {len(first)} busy after {busy:5.1f} s; driver "
        f"{used / seconds:.2f} of a processor, {watch.memory[0]} -> {max(watch.memory)} MiB; "
        f"object store at most {max(watch.stored)} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, default=25, help="for each worker")
    parser.add_argument("--rows", type=int, default=1_000_000)
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="raycap-scale-"))
    try:
        for gpus in chosen.workers:
            runs = [(chosen.batches * BATCH * gpus, BATCH)]
            if gpus == chosen.workers[-1] and chosen.rows:
                runs.append((chosen.rows, 1024))
            ray.init(
                "local",
                num_cpus=2 * gpus,
                num_gpus=gpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
            try:
                for rows, batch in runs:
                    print(measured(home / f"{gpus}-{rows}", gpus, rows, batch), flush=True)
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
