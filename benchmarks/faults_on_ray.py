"""Kill -9 a captioning run at random moments, over and over, resume it, and compare the table with
the source.

    python benchmarks/faults_on_ray.py --kills 40 --pictures 2000

In turn the driver, a captioning actor, a decode worker and a whole node of a cluster on this
machine are killed. During the run the table is read as any reader of Delta tables would, and must
hold whole files and no key twice; in the end readers of Parquet folders must see the same.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests"))

from small_captioner import photos, save_captioner  # type: ignore[import-not-found]  # noqa: E402

KINDS = ("driver", "actor", "decoder", "node")
# What Ray calls a process while it works.
TITLES = {
    "actor": "ray::ChunkActor",
    "decoder": "ray::load_table",
}
COLUMNS = ["key", "caption", "status"]
ANSWERS = (0, 1)  # of a run that came to its end: all rows good, or some failed


@dataclass(frozen=True)
class Pile:
    """Pictures, a captioner, and what an undisturbed run says of them."""

    photos: Path
    model: Path
    expected: dict[str, tuple[str, str]]


@dataclass
class Tally:
    """What came of the kills of one kind."""

    kills: int = 0
    missed: int = 0  # the run had ended before
    resumed: int = 0  # runs that had to be started again
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    seconds: list[float] = field(default_factory=list)


def make_pile(folder: Path, pictures: int) -> Pile:
    """Pictures of 500 pixels, every fiftieth of them broken, and a small captioner."""
    model = folder / "model"
    save_captioner(model)
    source = photos(folder / "photos", range(pictures), size=8)
    for number in range(0, pictures, 50):
        (source / f"{number:05d}.png").write_bytes(b"broken")
    pile = Pile(source, model, {})
    code = start(pile, folder / "undisturbed").wait(timeout=600)
    assert code in ANSWERS, process_error(folder / "undisturbed")
    table = read(folder / "undisturbed")
    assert set(table) == {path.name for path in source.iterdir()}
    return Pile(source, model, table)


def start(pile: Pile, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """A captioning run in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "raycap",
        "caption",
        str(pile.photos),
        "--model",
        str(pile.model),
    ]
    quick = ["--batch", "16", "--part-rows", "32", "--source.glob", "*"]
    quick += ["--cluster.local-rows", "0"]
    with Path(f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--out", str(out), *quick, *flags], stdout=log, stderr=log, cwd=REPOSITORY
        )


def process_error(out: Path) -> str:
    return Path(f"{out}.log").read_text(errors="replace")[-3000:]


def read(out: Path) -> dict[str, tuple[str, str]]:
    """The table as it is now; fails on a torn file and on a key that is there twice."""
    while True:
        version = DeltaTable(str(out / "captions"))
        try:
            return by_key(pq.read_table(file, columns=COLUMNS) for file in version.file_uris())
        except FileNotFoundError:  # the next version is there, and does without that file
            assert DeltaTable(str(out / "captions")).version() > version.version()


def by_key(tables: Iterable[pa.Table]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for table in tables:
        for row in table.to_pylist():
            assert row["key"] not in found, f"{row['key']} stands twice"
            found[row["key"]] = (row["caption"], row["status"])
    return found


def rows_now(out: Path) -> int:
    return len(read(out)) if DeltaTable.is_deltatable(str(out / "captions")) else 0


def wait_for_rows(
    process: "subprocess.Popen[bytes]", out: Path, rows: int, seconds: float = 120
) -> None:
    """Until the table holds so many, or the run has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and rows_now(out) < rows and time.monotonic() < end:
        time.sleep(0.02)


def victims(title: str, parent: int) -> list[int]:
    """Processes of that name below a run."""
    parents, named = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if (entry / "cmdline").read_text().startswith(title):
                named.append(int(entry.name))

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != parent:
            pid = parents.get(pid, 0)
        return pid == parent

    return [pid for pid in named if is_below(pid)]


def kill_one(process: "subprocess.Popen[bytes]", kind: str) -> bool:
    """Kill -9 the driver, or a worker of it; whether one was found."""
    if kind == "driver":
        process.kill()
        return True
    while process.poll() is None:
        if found := victims(TITLES[kind], process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(found), signal.SIGKILL)
                return True
        time.sleep(0.005)
    return False


def disturb(pile: Pile, out: Path, kind: str, moments: Sequence[int], tally: Tally) -> None:
    """A run that is killed each time its table has so many rows, and what comes of it."""
    began = time.monotonic()
    with _cluster(len(moments)) if kind == "node" else contextlib.nullcontext() as cluster:
        flags = cluster.flags if cluster else ()
        process = start(pile, out, *flags)
        for rows in sorted(moments):
            if kind == "decoder":  # they run ahead of the table
                time.sleep(0.3 * random.random())
            else:
                wait_for_rows(process, out, rows)
            killed = process.poll() is None and (
                cluster.kill() if cluster else kill_one(process, kind)
            )
            tally.kills += killed
            tally.missed += not killed
            rows_now(out)  # whole and single right after the kill
            if killed and kind == "driver":
                process.wait()
                tally.resumed += 1
                process = start(pile, out)
        wait_for_rows(process, out, len(pile.expected), 300)
        if process.wait(timeout=300) not in ANSWERS:
            tally.resumed += 1
            process = start(pile, out, *flags)
            assert process.wait(timeout=300) in ANSWERS, process_error(out)
    tally.seconds.append(time.monotonic() - began)
    compare(pile, out, tally)


@dataclass
class _Nodes:
    """A head that stays, and nodes that can be killed."""

    cluster: Any
    nodes: list[Any]

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--cluster.address", self.cluster.address, "--actors", "3", "--threads", "1")

    def kill(self) -> bool:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        return True


@contextlib.contextmanager
def _cluster(kills: int) -> Iterator[_Nodes]:
    from ray.cluster_utils import Cluster

    memory: dict[str, Any] = {"object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    try:
        nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(kills + 1)]
        cluster.wait_for_nodes()
        yield _Nodes(cluster, nodes)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def compare(pile: Pile, out: Path, tally: Tally) -> None:
    """The table against the source and the undisturbed run."""
    keys: Counter[str] = Counter()
    for part in (out / "captions").glob("*.parquet"):
        keys.update(pq.read_table(part, columns=["key"])["key"].to_pylist())
    tally.lost += len(pile.expected.keys() - keys.keys())
    tally.doubled += sum(count - 1 for count in keys.values())
    found = read(out)
    parts = (out / "captions").glob("*.parquet")
    assert by_key(pq.read_table(part, columns=COLUMNS) for part in parts) == found
    tally.changed += sum(
        found.get(key) != row for key, row in pile.expected.items() if key in found
    )
    left = [
        path.name
        for path in out.iterdir()
        if path.name.startswith("_") and path.name not in ("_lease.lock", "_plan")
    ]
    assert not left, f"left behind: {left}"
    assert (out / "facts.json").exists()


def parser_of_kills(about: str, kills: int, each: int, pictures: int) -> argparse.ArgumentParser:
    """Options of a campaign that kills the runs of one table after the other."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--each", type=int, default=each, help="kills of one table")
    parser.add_argument("--pictures", type=int, default=pictures)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of_kills(__doc__ or "", kills=40, each=4, pictures=2000)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no kill after so long"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    chosen = parser.parse_args(arguments)
    random.seed(chosen.seed)
    folder = Path(tempfile.mkdtemp(prefix="raycap-faults-"))
    tallies: dict[str, Any] = {kind: Tally() for kind in chosen.kinds}
    try:
        pile = make_pile(folder, chosen.pictures)
        end = time.monotonic() + 60 * chosen.minutes
        for number in range(-(-chosen.kills // chosen.each)):
            if time.monotonic() > end:
                break
            kind = chosen.kinds[number % len(chosen.kinds)]
            out = folder / f"run{number}"
            moments = [random.randrange(chosen.pictures * 9 // 10) for _ in range(chosen.each)]
            disturb(pile, out, kind, moments, tallies[kind])
            shutil.rmtree(out)
            print(f"run {number}, {kind}: {tallies[kind]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    head = f"{'killed':10}{'kills':>8}{'too late':>10}{'resumed':>9}"
    print(f"\n{head}{'lost':>6}{'doubled':>9}{'changed':>9}")
    for kind, tally in tallies.items():
        row = (tally.kills, tally.missed, tally.resumed, tally.lost, tally.doubled, tally.changed)
        print(f"{kind:10}{row[0]:>8}{row[1]:>10}{row[2]:>9}{row[3]:>6}{row[4]:>9}{row[5]:>9}")
    return int(any(tally.lost or tally.doubled or tally.changed for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
