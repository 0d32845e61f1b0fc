r"""The start of raycap and small jobs: seconds of the whole command, each in a cold process.

    python benchmarks/start.py [--rounds 3] [--pictures 1000] [--photos DIR] [--only one,samples]

In turn: one photo; the folder samples/; so many photos (those of FOLDER, of RAYCAP_DATA or of
samples/, again and again); the same photos on Ray, until the first rows are committed. Beside
them, in a process of its own, the model alone: the same photos, decoded before, in the same
batches and threads. Figures are medians over the rounds, with the processor time of the command
and of the processes that it waited for; on Ray, of all its processes until the first rows.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from processor_time import processor_of

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "samples"
PHOTO = SAMPLES / "beach.jpg"
BATCH = 64
SECONDS_BETWEEN_LOOKS = 0.02


class Took(NamedTuple):
    """What a command has taken."""

    seconds: float
    processor: float
    """Seconds of processor time."""


def run(*arguments: str | Path) -> Took:
    """A whole command."""
    process, started = start(*arguments)
    return ended(process, started)


def start(*arguments: str | Path) -> tuple["subprocess.Popen[bytes]", float]:
    command = [sys.executable, *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    return process, started


def ended(process: "subprocess.Popen[bytes]", started: float) -> Took:
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command failed:\n{said.decode(errors='replace')}")
    return Took(seconds, used.ru_utime + used.ru_stime)


def caption(source: Path, out: Path | None = None, *more: str) -> list[str | Path]:
    where: list[str | Path] = [] if out is None else ["--out", out]
    return ["-m", "raycap", "caption", source, *where, *more]


def first_rows_on_ray(photos: Path, out: Path) -> Took:
    """Until the first rows are committed; then the command is interrupted."""
    process, started = start(*caption(photos, out, "--cluster.local-rows", "1"))
    log = out / "captions" / "_delta_log"
    used: dict[int, float] = {}  # of each process, the last that was seen
    while process.poll() is None:
        used |= processor_of(process.pid)
        if any('"add"' in path.read_text() for path in sorted(log.glob("*.json"))):
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    return Took(seconds, sum(used.values()))


def make_photos(source: Path, folder: Path, pictures: int) -> None:
    """The photos of `source` under so many names."""
    folder.mkdir()
    photos = sorted(path for path in source.iterdir() if path.suffix == ".jpg")
    for number in range(pictures):
        photo = photos[number % len(photos)]
        (folder / f"{number:06d}.jpg").symlink_to(photo)


def model_alone(photos: Path) -> None:
    """Print the seconds of encoding and searching alone, and their processor time."""
    import numpy as np

    from raycap.captioners.trained import TrainedCaptioner
    from raycap.images import read_picture

    captioner = TrainedCaptioner.read(batch=BATCH)
    captioner.fixed_batch = True
    read = [
        read_picture(path.read_bytes(), captioner.reading, captioner.intake).pixels
        for path in sorted(photos.iterdir())
    ]
    pixels = [np.array(each) for each in read if each is not None]
    rows: list[dict[str, str]] = [{}] * BATCH
    captioner.predict(pixels[:BATCH], rows)  # warms up
    start, used = time.perf_counter(), time.process_time()
    for first in range(0, len(pixels), BATCH):
        some = pixels[first : first + BATCH]
        captioner.predict(some, rows[: len(some)])
    sys.stdout.write(f"{time.perf_counter() - start} {time.process_time() - used}\n")


def time_of_model(photos: Path) -> Took:
    command = [sys.executable, __file__, "--model-alone", str(photos)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return Took(*map(float, done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--only", default="one,samples,many,model,ray", help="which of them")
    parser.add_argument("--model-alone", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model_alone:
        model_alone(given.model_alone)
        return
    shared = Path(os.environ.get("RAYCAP_DATA", "")) / "flickr8k-original"
    source = given.photos or (shared if os.environ.get("RAYCAP_DATA") else SAMPLES)
    home = Path(tempfile.mkdtemp(prefix="raycap-start-"))
    try:
        photos = home / "photos"
        make_photos(source.resolve(), photos, given.pictures)
        kinds: dict[str, Callable[[int], Took]] = {
            "one": lambda _: run(*caption(PHOTO)),
            "samples": lambda turn: run(*caption(SAMPLES, home / f"samples{turn}")),
            "many": lambda turn: run(*caption(photos, home / f"many{turn}")),
            "model": lambda _: time_of_model(photos),
            "ray": lambda turn: first_rows_on_ray(photos, home / f"ray{turn}"),
        }
        chosen = {name: kinds[name] for name in given.only.split(",")}
        found: dict[str, list[Took]] = {name: [] for name in chosen}
        for turn in range(given.rounds):
            for name, act in chosen.items():
                found[name].append(act(turn))
                took = found[name][-1]
                print(f"{turn} {name}: {took.seconds:.2f} s, {took.processor:.2f} s of processor")
        report(found, given.pictures)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def report(found: dict[str, list[Took]], pictures: int) -> None:
    middle = {
        name: statistics.median(took.seconds for took in each) for name, each in found.items()
    }
    titles = {
        "one": "one photo (goal 2.5 s)",
        "samples": "samples/ (goal: one photo and 2 s)",
        "many": f"{pictures} photos (goal: 1.3 times the model alone)",
        "model": "the model alone, loaded",
        "ray": "on Ray, until the first rows are committed (goal 8 s)",
    }
    for name, seconds in middle.items():
        spread = ", ".join(f"{took.seconds:.2f}" for took in found[name])
        print(f"{titles[name]:56}{seconds:8.2f} s   ({spread})")
    if {"one", "samples"} <= set(middle):
        print(f"samples/ takes {middle['samples'] - middle['one']:.2f} s more than one photo")
    if {"many", "model"} <= set(middle):
        print(f"{pictures} photos take {middle['many'] / middle['model']:.2f} times the model")


if __name__ == "__main__":
    main()
