"""What a run costs that hardly computes: a million rows without pictures through a captioner that
pretends, and sleeping actors.

    python benchmarks/million.py [--rows 1000000] [--scaling]

Prints the driver's memory while the table grows, rows per second of all the machinery around the
model, how long a run takes that finds nothing to do, and (--scaling) how 1, 2 and 4 actors that
only sleep share the work.
"""

import argparse
import functools
import logging
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FileLayout
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.images import Square
from raycap.schema import CAPTIONS, SUCCESS
from raycap.sources import Notes, SourceDefaults
from raycap.sources.manifest import Row, tables

ROWS_IN_BATCH = 4096


@dataclass(frozen=True)
class Numbers(SourceDefaults):
    """A source of so many rows without pictures. To load some of them takes so many seconds."""

    rows: int
    seconds: float = 0.0
    path: str = "numbers"
    trust: Trust = ONLY_WEB
    names_urls: bool = False
    carried: tuple[str, ...] = ()

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        names = (f"folder/{number:012d}.jpg" for number in range(self.rows))
        rows = (Row(name, f"/nowhere/{name}", picture=b"", error="none") for name in names)
        return tables(rows, lambda: "no rows")

    def embedded_pictures(self, rows: pa.Table) -> Sequence[bytes | None]:
        time.sleep(self.seconds)
        return [b""] * len(rows)


def captioned(table: pa.Table, caption: str) -> pa.Table:
    """The rows with the same caption for each, as if they had pictures."""
    said = {"caption": caption, "score": -1.0, "alternatives": []}
    said |= {"status": SUCCESS, "error_message": ""}
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


def work(out: Path, rows: int, batch: int, actors: int, rest: float) -> TableJob:
    options = CaptionOptions(out=str(out), batch=batch, actors=actors, threads=1, part_rows=10_000)
    return TableJob(
        command="caption",
        table="captions",
        source=Numbers(rows),
        options=options,
        identity={"rows": "numbers"},
        layout=FileLayout(options.part_rows, CAPTIONS, (), {}),
        intake=Square(1),
        open_model=functools.partial(Pretends, rest),
        pictures_per_second=batch / max(rest, 0.1),
    )


class Memory(threading.Thread):
    """What this process holds, looked at each second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self.start()

    def run(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(pages * 4096 // 2**20)
            time.sleep(1)


def million(folder: Path, rows: int) -> None:
    memory = Memory()
    for count in (rows // 10, rows):
        memory.seen.clear()
        began = time.monotonic()
        run_job(work(folder / "out", count, ROWS_IN_BATCH, 1, 0.0), {})
        took = time.monotonic() - began
        print(
            f"{count:,} rows in {took:.1f} s; driver {memory.seen[0]} MiB at first, "
            f"{max(memory.seen)} MiB at most"
        )
    began = time.monotonic()
    run_job(work(folder / "out", rows, ROWS_IN_BATCH, 1, 0.0), {})
    print(f"again, with nothing to do: {time.monotonic() - began:.1f} s")


def scaling(folder: Path, rounds: int = 3) -> None:
    """Batches of 16 that take 0.4 s each; the start of a run is taken off by a run of one batch
    for each actor."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for number in range(rounds):
        for actors, found in rates.items():
            seconds = []
            for batches in (actors, 60 * actors):
                began = time.monotonic()
                run_job(
                    work(folder / f"{number}-{actors}-{batches}", 16 * batches, 16, actors, 0.4),
                    {},
                )
                seconds.append(time.monotonic() - began)
            found.append(16 * 59 * actors / (seconds[1] - seconds[0]))
    one = statistics.median(rates[1])
    for actors, found in rates.items():
        rate = statistics.median(found)
        print(f"{actors} sleeping actors: {rate:.1f} rows/s, efficiency {rate / one / actors:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scaling", action="store_true")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raycap-million-"))
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
    try:
        scaling(folder) if chosen.scaling else million(folder, chosen.rows)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
