"""Addresses fetched, decoded and resized per second: raycap beside img2dataset, on one list, from
a server here, of which some hosts never answer, or hardly.

    python benchmarks/urls.py --peer VENV/bin/img2dataset --photos FOLDER [--rows 10000]
        [--rounds 3] [--dead 0 1 5] [--drip 60] [--latency 0.05] [--connections 8]
        [--keep] [--shard 1000] [--whole] [--floor] [--processes]

Both fetch each address, decode it and bring it to 224 pixels. raycap does so as a captioning job
does, with all its checks of addresses, sizes and pictures, for a worker that has no model;
img2dataset with a process for each processor and 64 threads in each. With --keep both write the
resized pictures as JPEG files (raycap into its table), otherwise neither does. Both have their
default limits: img2dataset gives a picture 10 seconds, raycap up to 30 with retries.

In turn, each in a process of its own. The steady rate is that of the answers between the first
half and the last tenth, so without the start and the wait for the last dead hosts. A program is
ended a little later; with --whole it may finish. Processor time is that of all processes of a
program over the same stretch, for each answer. Medians over the rounds. --shard is img2dataset's
number of rows in a file; by default each of its processes has one.

--drip lets the dead hosts answer, in so many seconds, a few bytes at a time. --latency is how long
each other answer takes, and --connections how many both have at a time, in all: with both, hosts
are the limit and not processors. --floor also measures what a plain loop takes that fetches with a
session of `requests` in threads and resizes with Pillow, without any checks.
"""

import argparse
import concurrent.futures
import contextlib
import http.server
import io
import multiprocessing
import os
import random
import shutil
import signal
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from json_figures import add_json, write_figures
from PIL import Image

from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FileLayout
from raycap.cluster import Cluster
from raycap.fetch import Fetch
from raycap.images import Encoded, Square
from raycap.schema import CAPTIONS
from raycap.sources import Urls

REPOSITORY = Path(__file__).resolve().parent.parent
GOOD_HOSTS, ROWS_OF_DEAD_HOST = 50, 10
# When a program is ended, as a share of the answers.
ENOUGH = 0.95
DRIPS = 30  # parts in which a slow host sends a picture
SECONDS_TO_END = 60
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def bodies(photos: Path) -> list[bytes]:
    """What is served."""
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() == ".jpg")
    return [path.read_bytes() for path in files[:100]]


def serve(photos: Path, pipe: Any, latency: float, drip: float) -> None:
    """The photos under as many names as one likes, from memory, on connections that stay. Hosts
    127.0.1.x accept connections and never answer, or in `drip` seconds."""
    held = bodies(photos)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            is_dead = self.connection.getsockname()[0].startswith("127.0.1.")
            if is_dead and not drip:
                time.sleep(120)
                self.close_connection = True
                return
            if self.path == "/robots.txt":
                self.send_error(404)
                return
            body = held[int(self.path[1:-4]) % len(held)]
            if latency:
                time.sleep(latency)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_dead:
                part = -(-len(body) // DRIPS)
                with contextlib.suppress(OSError):  # the client may have gone
                    for start in range(0, len(body), part):
                        self.wfile.write(body[start : start + part])
                        time.sleep(drip / DRIPS)
                return
            self.wfile.write(body)
            answered.append(time.monotonic())

        def log_message(self, *_: object) -> None:
            """Nothing: it would cost more than the answers."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 1024

        def handle_error(self, *_: object) -> None:
            """A program was ended while it read."""

    server = Server(("0.0.0.0", 0), Handler)
    answered: list[float] = []
    pipe.send(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        if pipe.recv() == "count":
            pipe.send(len(answered))
        else:  # since the last time
            pipe.send(list(answered))
            answered.clear()


def addresses(rows: int, dead: float, port: int) -> list[str]:
    """A list in which that share of the rows, drawn at random, names a host that never answers."""
    draw = random.Random(rows)
    dead_rows = round(rows * dead)
    hosts = [f"127.0.0.{1 + number % GOOD_HOSTS}" for number in range(rows - dead_rows)]
    hosts += [f"127.0.1.{1 + number // ROWS_OF_DEAD_HOST % 250}" for number in range(dead_rows)]
    draw.shuffle(hosts)
    return [f"http://{host}:{port}/{number}.jpg" for number, host in enumerate(hosts)]


def ours(urls: Path, out: Path, keep: bool, connections: int) -> list[str]:
    return [
        sys.executable,
        __file__,
        "--child",
        str(urls),
        str(out),
        f"--connections={connections}",
        *(["--keep"] if keep else []),
    ]


def theirs(
    peer: str, urls: Path, out: Path, keep: bool, shard: int, connections: int
) -> list[str]:
    processes = os.cpu_count() or 1
    rows = len(urls.read_text().splitlines())
    return [
        peer,
        f"--url_list={urls}",
        f"--output_folder={out}",
        f"--processes_count={processes}",
        f"--number_sample_per_shard={shard or -(-rows // processes)}",
        "--resize_mode=keep_ratio",
        "--image_size=224",
        f"--output_format={'files' if keep else 'dummy'}",
        f"--thread_count={connections // processes if connections else 64}",
    ]


SAID = {"score": -1.0, "flags": [], "raw_caption": None, "attempt": 0}


class NoModel:
    """In the place of a model."""

    def __init__(self, _options: BulkOptions, _threads: int) -> None:
        """Nothing is to be loaded."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if isinstance(table["pixels"].type, pa.FixedShapeTensorType):
            table = table.drop_columns(["pixels"])  # as a captioner does
        table = table.append_column("caption", table["format"])
        for name, value in {**SAID, "alternatives": []}.items():
            kind = CAPTIONS.field(name).type
            table = table.append_column(name, pa.array([value] * len(table), kind))
        return table.rename_columns(
            ["picture" if name == "pixels" else name for name in table.column_names]
        )


def child(urls: Path, out: Path, keep: bool, connections: int) -> None:
    """A captioning job without a model."""
    options = CaptionOptions(out=str(out), actors=1, threads=1, gpus=0)
    kept = [pa.field("picture", pa.large_binary())] if keep else []
    job = TableJob(
        command="caption",
        table="captions",
        source=Urls(path=str(urls)),
        options=options,
        identity={},
        layout=FileLayout(options.part_rows, pa.schema([*CAPTIONS, *kept]), (), {}),
        intake=Encoded(224) if keep else Square(224, "squash", "bilinear"),
        open_model=NoModel,
        fetch=Fetch(allow_private=True, threads=connections or Fetch.threads),
        cluster=Cluster(local_rows=0),
    )
    run_job(job, {})


class ProcessorTime(threading.Thread):
    """Processor seconds of a process and all below it, looked at again and again."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._ticks: dict[int, int] = {}
        self._by_name: dict[str, float] = {}
        self._seen: list[tuple[float, dict[str, float]]] = []  # seconds so far, by name
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(0.1):
            self._look()

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Seconds used in that time, by the name of processes."""
        moments = [moment for moment, _ in self._seen]
        found = {}
        for name in self._seen[-1][1]:
            used = [by_name.get(name, 0.0) for _, by_name in self._seen]
            found[name] = float(np.diff(np.interp((begin, end), moments, used))[0])
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _look(self) -> None:
        parents, ticks = {}, {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                # The second field is the name, in parentheses: it may hold anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                process = int(entry.name)
                parents[process] = int(fields[1])
                ticks[process] = int(fields[11]) + int(fields[12])
        ours, waiting = {self._process}, True
        while waiting:
            below = {each for each, parent in parents.items() if parent in ours}
            waiting = not below <= ours
            ours |= below
        for process in ours & ticks.keys():
            name = "idle"  # Ray renames its workers while they work
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                name = words[0].decode().rpartition("/")[2][:40]
            more = (ticks[process] - self._ticks.get(process, 0)) / TICKS_PER_SECOND
            self._by_name[name] = self._by_name.get(name, 0.0) + more
            self._ticks[process] = ticks[process]
        self._seen.append((time.monotonic(), dict(self._by_name)))


def run(command: list[str], has_enough: Callable[[], bool]) -> tuple[float, ProcessorTime]:
    """Run a program until it has enough; the seconds that it took, and its processor time."""
    start = time.perf_counter()
    # Ray gives its workers a low priority: beside other work they would hardly run.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        used = ProcessorTime(process.pid)
        while process.poll() is None and not has_enough():
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        used.stop()
        if process.poll() is None:
            end(process, command)
        elif process.returncode:
            said.seek(0)
            sys.stdout.write(said.read()[-5000:].decode(errors="replace"))
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, used


def end(process: "subprocess.Popen[bytes]", command: list[str]) -> None:
    """End a program and all its processes: raycap removes what its Ray has written."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_END if "--child" in command else 1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def floor(urls: Path) -> None:
    """Fetches and resizes in one process, with no checks at all."""
    import requests

    local = threading.local()

    def fetch(url: str) -> bytes:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        content: bytes = local.session.get(url, timeout=10).content
        return content

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for body in pool.map(fetch, urls.read_text().split()):
            picture = Image.open(io.BytesIO(body))
            picture.draft("RGB", (224, 224))
            picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)


def measure(
    given: argparse.Namespace, home: Path, pipe: Any, port: int, dead: float
) -> dict[str, float]:
    """All rounds with that share of dead rows; the ratios."""
    programs = ["raycap", "img2dataset", *(["floor"] if given.floor and not dead else [])]
    whole: dict[str, list[float]] = {name: [] for name in programs}
    steady: dict[str, list[float]] = {name: [] for name in programs}
    cost: dict[str, list[float]] = {name: [] for name in programs}
    urls = home / "urls.txt"
    urls.write_text("\n".join(addresses(given.rows, dead, port)) + "\n")
    good = given.rows - round(given.rows * dead)

    def has_enough() -> bool:
        pipe.send("count")
        return bool(pipe.recv() >= ENOUGH * good) and not given.whole

    for turn in range(given.rounds):
        for name in whole:
            out = home / f"{name}{turn}"
            command = ours(urls, out, given.keep, given.connections)
            if name == "img2dataset":
                how = (given.keep, given.shard, given.connections)
                command = theirs(given.peer, urls, out, *how)
            elif name == "floor":
                command = [sys.executable, __file__, "--floor-child", str(urls)]
            seconds, used = run(command, has_enough)
            pipe.send("answers")
            answers = pipe.recv()
            whole[name].append(len(answers) / seconds)
            first, last = good // 2, good * 9 // 10
            steady[name].append((last - first) / (answers[last] - answers[first]))
            spent = used.between(answers[first], answers[last])
            spent = {each: 1000 * took / (last - first) for each, took in spent.items()}
            cost[name].append(sum(spent.values()))
            shutil.rmtree(out, ignore_errors=True)
            print(
                f"{turn} {name}: {len(answers):,} answers, "
                f"with the start {whole[name][-1]:.1f}/s, steady {steady[name][-1]:.1f}/s, "
                f"{cost[name][-1]:.2f} ms of a processor each",
                flush=True,
            )
            if given.processes:
                for title, milliseconds in spent.items():
                    print(f"    {milliseconds:7.2f} ms  {title}")
    ratios: dict[str, float] = {}
    for name, title, unit, rates in (
        ("whole", "with the start", "/s", whole),
        ("steady", "steady", "/s", steady),
        ("processor", "processor time", " ms", cost),
    ):
        pairs = zip(rates["raycap"], rates["img2dataset"], strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        medians = (f"{side} {statistics.median(each):.2f}{unit}" for side, each in rates.items())
        print(f"{dead:.0%} dead, {title}: {', '.join(medians)}, ratio {ratio:.2f}", flush=True)
        ratios[f"{name}_{100 * dead:g}"] = ratio
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--peer", help="img2dataset, in an environment of its own")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dead", type=float, nargs="+", default=[0, 1, 5], help="percent of rows")
    parser.add_argument("--drip", type=float, default=0.0, help="seconds of an answer")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a good answer")
    parser.add_argument("--connections", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="let programs finish")
    parser.add_argument("--keep", action="store_true", help="write the resized pictures")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--floor", action="store_true", help="measure a plain loop too")
    parser.add_argument("--processes", action="store_true", help="print time of each process")
    parser.add_argument("--floor-child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    add_json(parser)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], given.child[1], given.keep, given.connections)
        return
    if given.floor_child:
        floor(given.floor_child)
        return
    if not (given.photos and given.peer):
        parser.error("give --photos FOLDER and --peer VENV/bin/img2dataset")
    pipe, its_pipe = multiprocessing.Pipe()
    how = (given.photos, its_pipe, given.latency, given.drip)
    server = multiprocessing.Process(target=serve, args=how, daemon=True)
    server.start()
    home, port = Path(tempfile.mkdtemp(prefix="raycap-urls-")), pipe.recv()
    try:
        figures = {"kilobytes": statistics.mean(map(len, bodies(given.photos))) / 1000}
        for percent in given.dead:
            figures |= measure(given, home, pipe, port, percent / 100)
        write_figures(given, figures)
    finally:
        server.terminate()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
