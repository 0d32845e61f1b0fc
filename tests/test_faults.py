"""Processes really killed in the middle of `raycap caption`: nothing lost, nothing doubled, and an
end in words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from PIL import Image
from sessions import start_ray
from small_captioner import photos, save_captioner

from raycap.bulk import ray_pool, scheduler
from raycap.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "benchmarks"))

import faults_on_ray as faults  # noqa: E402 - the long version of these tests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("no_ray")]

# Stands where a decoder with a fault of its own would: these bytes in a PNG kill the process that
# opens it.
POISON = b"kills its reader"
POISONED_DECODER = f"""
import os
from PIL import PngImagePlugin

whole = PngImagePlugin.PngImageFile._open

def _open(self):
    place = self.fp.tell()
    if {POISON!r} in self.fp.read():
        os.kill(os.getpid(), 9)
    self.fp.seek(place)
    whole(self)

PngImagePlugin.PngImageFile._open = _open
"""


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> faults.Pile:
    return faults.make_pile(tmp_path_factory.mktemp("pile"), 160)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["driver", "actor", "decoder", "node"])
def test_a_kill_costs_nothing(kind: str, pile: faults.Pile, tmp_path: Path) -> None:
    tally = faults.Tally()
    faults.disturb(pile, tmp_path / "out", kind, [4], tally)
    assert (tally.kills, tally.lost, tally.doubled, tally.changed) == (1, 0, 0, 0)
    assert tally.resumed == (kind == "driver"), "only the death of the driver ends a run"


@pytest.mark.slow
def test_workers_that_die_together_are_one_fault(pile: faults.Pile, tmp_path: Path) -> None:
    """As all workers of a node do when it goes. Three faults in a row would end the run."""
    process = faults.start(pile, tmp_path / "out", "--actors", "4", "--threads", "1")
    end = time.monotonic() + 200
    workers: list[int] = []
    while len(workers) < 4 and process.poll() is None and time.monotonic() < end:
        workers = faults.victims(faults.TITLES["actor"], process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert len(workers) == 4
    assert process.wait(200) in faults.ANSWERS, faults.process_error(tmp_path / "out")
    assert faults.read(tmp_path / "out") == pile.expected
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert len(facts["faults"]) == 4


def run(
    folder: Path, model: Path, out: Path, *flags: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "raycap", "caption", str(folder), "--model", str(model)]
    small = ["--batch", "8", "--cluster.cpus", "2", "--actors", "1"]
    return subprocess.run(
        [*command, "--out", str(out), *small, *flags],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


ON_RAY = ("--cluster.local-rows", "0")


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), marks=pytest.mark.thorough),
        pytest.param(ON_RAY, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_picture_that_kills_its_reader_has_a_reason_and_costs_no_other(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    folder, model = photos(tmp_path / "photos", range(40)), tmp_path / "model"
    save_captioner(model)
    for number in (7, 21):
        with (folder / f"{number:05d}.png").open("ab") as file:
            file.write(POISON)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(POISONED_DECODER)
    path = f"{tmp_path / 'hook'}{os.pathsep}{REPOSITORY}"
    answer = run(folder, model, tmp_path / "out", *flags, PYTHONPATH=path)
    assert answer.returncode == 1, answer.stderr
    found = faults.read(tmp_path / "out")
    assert len(found) == 40
    assert {key for key, (_, status) in found.items() if status != "success"} == {
        "00007.png",
        "00021.png",
    }
    assert "2  failed_to_decode: reading it kills the process" in answer.stdout


FLAKY_DISK = """
import errno
import os

whole = os.fsync
failed = set()

def fsync(file):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
    if name not in failed:  # once for each file, in each process
        failed.add(name)
        os.ftruncate(file, 0)
        raise OSError(errno.EIO, "Input/output error")
    whole(file)

os.fsync = fsync
"""


@pytest.mark.slow
def test_a_disk_that_fails_once_for_each_file_costs_nothing(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", range(20)), tmp_path / "model"
    save_captioner(model)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FLAKY_DISK)
    path = f"{tmp_path / 'hook'}{os.pathsep}{REPOSITORY}"
    answer = run(folder, model, tmp_path / "out", *ON_RAY, "--part-rows", "8", PYTHONPATH=path)
    assert answer.returncode == 0, answer.stderr
    assert "Input/output error): trying again" in answer.stderr
    found = faults.read(tmp_path / "out")
    assert len(found) == 20 and {status for _, status in found.values()} == {"success"}
    assert (tmp_path / "out" / "facts.json").stat().st_size


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_the_run_can_be_resumed(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        folder, model = photos(tmp_path / "photos", range(60)), tmp_path / "model"
        save_captioner(model)
        answer = run(folder, model, disk / "out", "--part-rows", "8", *ON_RAY)
        assert answer.returncode == 2, answer.stderr
        # It may be a file of raycap for which there was no room, or one of the log.
        message = r"No space left on device( \(os error 28\))?; free some space"
        assert re.search(message, answer.stderr) and "Traceback" not in answer.stderr
        some = faults.read(disk / "out")
        assert len(some) < 60
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert run(folder, model, disk / "out").returncode == 0
        assert (
            some.items() <= faults.read(disk / "out").items()
            and len(faults.read(disk / "out")) == 60
        )
    finally:
        subprocess.run(["umount", disk], check=True)


# Stands where decoders that hang would: a PNG is read in the worker at first, a BMP in a child at
# once. Each read that hangs is noted. In C with the GIL held, no thread of Python can help.
HANGING_DECODERS = """
import ctypes, os
from pathlib import Path
from raycap.images import formats

def hanging(plain):
    def read(data, limits):
        if b"hangs its reader" in data:
            with (Path(__file__).parent / "notes").open("a") as notes:
                notes.write(f"{os.getpid()} ")
            ctypes.PyDLL(None).sleep(1000)
        return plain(data, limits)
    return read

for kind in ("png", "bmp"):
    formats.READERS[kind] = hanging(formats.READERS[kind])
"""


@pytest.mark.slow
def test_pictures_that_hang_their_readers_cost_only_their_rows(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", range(24)), tmp_path / "model"
    save_captioner(model)
    Image.open(folder / "00003.png").save(folder / "00003.bmp")
    hanging = ("00003.bmp", "00007.png", "00021.png")
    for name in hanging:
        with (folder / name).open("ab") as file:
            file.write(b"hangs its reader")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HANGING_DECODERS)
    flags = ("--reading.timeout", "4", *ON_RAY)
    path = f"{hook}{os.pathsep}{REPOSITORY}"
    answer = run(folder, model, tmp_path / "out", *flags, PYTHONPATH=path)
    assert answer.returncode == 1, answer.stderr
    found = faults.read(tmp_path / "out")
    assert len(found) == 25
    assert {key for key, (_, status) in found.items() if status != "success"} == set(hanging)
    reason = "3  failed_to_decode: reading it took longer than 4 s (--reading.timeout)"
    assert reason in answer.stdout
    tries = (hook / "notes").read_text().split()
    assert len(tries) <= 3 + 2 * 2, (
        "each of the two PNGs may hang its worker and one child, and the BMP two children"
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in tries)
    (hook / "notes").unlink()
    again = run(folder, model, tmp_path / "out", *flags, PYTHONPATH=path)
    assert again.returncode == 1 and "25 rows, 3 failed; 0 made now" in again.stdout
    assert not (hook / "notes").exists(), "a rerun has nothing to do"


# Makes the reading of one local file stand still, once: a disk on the network that does not
# answer.
DISK_THAT_HANGS = """
import time
from pathlib import Path
from raycap.fetch import files

plain = files._read_local
note = Path(__file__).parent / "note"

def read(path, *more):
    if path.endswith("00005.png") and not note.exists():
        note.touch()
        time.sleep(1000)
    return plain(path, *more)

files._read_local = read
"""


@pytest.mark.slow
def test_a_pass_that_stops_making_progress_keeps_its_rows_and_another_pass_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = photos(tmp_path / "photos", range(24)), tmp_path / "model"
    save_captioner(model)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(DISK_THAT_HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{REPOSITORY}")
    monkeypatch.setattr(scheduler, "SECONDS_WITHOUT_PROGRESS", 15)
    flags = ["--batch", "8", "--cluster.cpus", "2", "--actors", "1", "--reading.timeout", "3"]
    command = ["caption", str(folder), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*command, *flags, *ON_RAY]) == 0
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    [lost] = facts["faults"]
    assert lost == "nothing was finished for 39 s, though processors were free"
    assert len(faults.read(tmp_path / "out")) == 24


@ray.remote(num_cpus=1)
class Neighbour:
    """Somebody else's work on the only processor."""

    def is_there(self) -> bool:
        return True


@pytest.mark.slow
def test_a_run_waits_for_a_processor_however_long_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = photos(tmp_path / "photos", range(8)), tmp_path / "model"
    save_captioner(model)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(scheduler, "SECONDS_WITHOUT_PROGRESS", 2)
    monkeypatch.setattr(ray_pool, "SECONDS_TO_FREE", 1)
    monkeypatch.setattr(scheduler, "MOST_FAULTS_IN_A_ROW", 1)
    has_free = ray_pool.RayPool.has_free_processors
    answers = []

    def has_free_until_the_neighbour_leaves(pool: ray_pool.RayPool) -> bool:
        answers.append(has_free(pool))
        if len(answers) == 2:
            monkeypatch.setattr(scheduler, "SECONDS_WITHOUT_PROGRESS", 900)
            ray.kill(neighbour)
        return answers[-1]

    monkeypatch.setattr(
        ray_pool.RayPool, "has_free_processors", has_free_until_the_neighbour_leaves
    )
    flags = ["--batch", "8", "--actors", "1", "--reading.timeout", "0.5"]
    command = ["caption", str(folder), "--model", str(model), "--out", str(tmp_path / "out")]
    command += flags
    start_ray(1)
    try:
        neighbour = Neighbour.remote()  # holds the processor until it ends
        ray.get(neighbour.is_there.remote())
        assert main(command) == 0
    finally:
        ray.shutdown()
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert len(facts["faults"]) == 2 > scheduler.MOST_FAULTS_IN_A_ROW
    assert all("the cluster has no free processor for it" in it for it in facts["faults"])
    assert len(faults.read(tmp_path / "out")) == 8
