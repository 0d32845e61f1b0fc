"""Addresses fetched, decoded and resized per second: raycap beside img2dataset, on one list, from
a server here.

    python benchmarks/urls.py --photos FOLDER --peer img2dataset [--rows 3000] [--rounds 3]

Both fetch each address, decode it and bring it to 224 pixels: raycap as a captioning job does,
with all its checks of addresses, sizes and pictures, for an actor that says of each picture how
bright it is, into a table of captions; img2dataset into JPEG files, with a process for each
processor and 64 threads in each. In turn, each in a process of its own, start included; and again
on a tenth of the list, so that the difference is the steady rate. Medians over the rounds.
"""

import argparse
import http.server
import multiprocessing
import os
import shutil
import socketserver
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FileLayout
from raycap.cluster import Cluster
from raycap.fetch import Fetch
from raycap.images import Square
from raycap.schema import CAPTIONS
from raycap.sources import Urls

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = dict[str, list[tuple[float, float]]]


def serve(photos: Path, port: Any) -> None:
    """The photos under as many names as one likes, from memory, on connections that stay."""
    held = [
        path.read_bytes() for path in sorted(photos.iterdir()) if path.suffix.lower() == ".jpg"
    ]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/robots.txt":
                self.send_error(404)
                return
            body = held[int(self.path[1:-4]) % len(held)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: it would cost more than the answers."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 1024

    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


def ours(addresses: Path, out: Path) -> list[str]:
    return [sys.executable, __file__, "--child", str(addresses), str(out)]


def theirs(peer: str, addresses: Path, out: Path) -> list[str]:
    processes = f"--processes_count={os.cpu_count()}"
    how = [
        "--resize_mode=keep_ratio",
        "--image_size=224",
        "--output_format=files",
        "--thread_count=64",
    ]
    return [peer, f"--url_list={addresses}", f"--output_folder={out}", processes, *how]


class Brightness:
    """In the place of a model."""

    def __init__(self, _options: BulkOptions, _threads: int) -> None:
        """Nothing is to be loaded."""

    def __call__(self, table: pa.Table) -> pa.Table:
        bright = table["pixels"].combine_chunks().to_numpy_ndarray()[:, ::8, ::8].mean((1, 2, 3))
        table = table.append_column(
            "caption", pa.array([f"brightness {each:.0f}" for each in bright])
        )
        for name, value in {"score": -1.0, "alternatives": []}.items():
            table = table.append_column(
                name, pa.array([value] * len(table), CAPTIONS.field(name).type)
            )
        return table.drop_columns(["pixels"])


def child(addresses: Path, out: Path) -> None:
    """A captioning job without a model."""
    options = CaptionOptions(out=str(out), actors=1, threads=1, gpus=0)
    job = TableJob(
        command="caption",
        table="captions",
        source=Urls(path=str(addresses)),
        options=options,
        identity={},
        layout=FileLayout(options.part_rows, CAPTIONS, (), {}),
        square=Square(224, "squash", "bilinear"),
        open_model=Brightness,
        fetch=Fetch(allow_private=True, per_host=128),
        cluster=Cluster(local_rows=0),
    )
    run_job(job, {})


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--peer", help="img2dataset, in an environment of its own")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    if not (given.photos and given.peer):
        parser.error("give --photos FOLDER and --peer VENV/bin/img2dataset")
    port: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(given.photos, port), daemon=True)
    server.start()
    home, place = Path(tempfile.mkdtemp(prefix="raycap-urls-")), port.get()
    try:
        found: SECONDS = {"raycap": [], "img2dataset": []}
        counts = (given.rows, given.rows // 10)
        for rows in counts:
            names = (f"http://127.0.0.1:{place}/{number}.jpg\n" for number in range(rows))
            (home / f"{rows}.txt").write_text("".join(names))
        for turn in range(given.rounds):
            for name in found:
                taken = []
                for rows in counts:
                    addresses, out = home / f"{rows}.txt", home / f"{name}{turn}-{rows}"
                    command = (
                        ours(addresses, out)
                        if name == "raycap"
                        else theirs(given.peer, addresses, out)
                    )
                    taken.append(seconds(command))
                    shutil.rmtree(out)
                found[name].append((taken[0], taken[1]))
                print(
                    f"{turn} {name}: {taken[0]:.1f} s, a tenth of it {taken[1]:.1f} s", flush=True
                )
        whole = {
            name: given.rows / statistics.median(all for all, _ in each)
            for name, each in found.items()
        }
        steady = {
            name: (given.rows - counts[1]) / statistics.median(all - tenth for all, tenth in each)
            for name, each in found.items()
        }
        for title, rates in (("whole run", whole), ("steady", steady)):
            print(
                f"{title}: raycap {rates['raycap']:.1f}/s, img2dataset "
                f"{rates['img2dataset']:.1f}/s, ratio "
                f"{rates['raycap'] / rates['img2dataset']:.2f} (wanted 1.0)"
            )
    finally:
        server.terminate()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
