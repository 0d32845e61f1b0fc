"""Processes really killed in the middle of `raycap caption`: nothing lost, nothing doubled, and an end in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_captioner import photos, save_captioner

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "benchmarks"))

import faults  # noqa: E402 - the long version of these tests

pytestmark = pytest.mark.ray

# Stands where a decoder with a fault of its own would: these bytes in a PNG kill the process that opens it.
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
    return faults.make_pile(tmp_path_factory.mktemp("pile"), 300)


@pytest.mark.parametrize("kind", faults.KINDS)
def test_a_kill_costs_nothing(kind: str, pile: faults.Pile, tmp_path: Path) -> None:
    tally = faults.Tally()
    faults.disturb(pile, tmp_path / "out", kind, [60], tally)
    assert (tally.kills, tally.lost, tally.doubled, tally.changed) == (1, 0, 0, 0)
    assert tally.resumed == (kind == "driver"), "only the death of the driver ends a run"


def run(
    folder: Path, model: Path, out: Path, *flags: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "raycap", "caption", str(folder), "--model", str(model), "--out", str(out)]
    return subprocess.run(
        [*command, "--batch", "8", "--cluster.cpus", "2", "--actors", "1", *flags],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_picture_that_kills_its_reader_has_a_reason_and_costs_no_other(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", range(40)), tmp_path / "model"
    save_captioner(model)
    for number in (7, 21):
        with (folder / f"{number:05d}.png").open("ab") as file:
            file.write(POISON)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(POISONED_DECODER)
    path = f"{tmp_path / 'hook'}{os.pathsep}{REPOSITORY}"
    answer = run(folder, model, tmp_path / "out", PYTHONPATH=path)
    assert answer.returncode == 1, answer.stderr
    found = faults.read(tmp_path / "out")
    assert len(found) == 40
    assert {key for key, (_, status) in found.items() if status != "success"} == {"00007.png", "00021.png"}
    assert "2  failed_to_decode: reading it kills the process" in answer.stdout


FLAKY_DISC = """
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


def test_a_disc_that_fails_once_for_each_file_costs_nothing(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", range(20)), tmp_path / "model"
    save_captioner(model)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FLAKY_DISC)
    path = f"{tmp_path / 'hook'}{os.pathsep}{REPOSITORY}"
    answer = run(folder, model, tmp_path / "out", "--part-rows", "8", PYTHONPATH=path)
    assert answer.returncode == 0, answer.stderr
    assert "Input/output error): trying again" in answer.stderr
    found = faults.read(tmp_path / "out")
    assert len(found) == 20 and {status for _, status in found.values()} == {"success"}
    assert (tmp_path / "out" / "facts.json").stat().st_size


def test_a_model_that_cannot_start_ends_the_run_in_words(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", range(4)), tmp_path / "model"
    save_captioner(model)
    answer = run(folder, model, tmp_path / "out", "--device", "cuda:7")
    assert answer.returncode == 2
    assert "device cuda:7 was asked for" in answer.stderr and "Traceback" not in answer.stderr
    assert run(folder, model, tmp_path / "out").returncode == 0, "the run can be gone on with"
    assert len(faults.read(tmp_path / "out")) == 4


def test_a_full_disc_ends_the_run_in_words_and_can_be_resumed(tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    disc.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disc], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disc")
    try:
        folder, model = photos(tmp_path / "photos", range(60)), tmp_path / "model"
        save_captioner(model)
        answer = run(folder, model, disc / "out", "--part-rows", "8")
        assert answer.returncode == 2, answer.stderr
        assert "No space left on device; free some space" in answer.stderr and "Traceback" not in answer.stderr
        some = faults.read(disc / "out")
        assert len(some) < 60
        subprocess.run(["mount", "-o", "remount,size=10m", disc], check=True)
        assert run(folder, model, disc / "out").returncode == 0
        assert some.items() <= faults.read(disc / "out").items() and len(faults.read(disc / "out")) == 60
    finally:
        subprocess.run(["umount", disc], check=True)
