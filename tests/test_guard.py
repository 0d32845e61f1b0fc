"""Pictures that hang, eat memory or kill their decoder fail alone, in real child processes."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hostile import HEIC
from PIL import Image

from raycap.errors import UserError
from raycap.images import Reading, Square, guard, read_picture
from raycap.images.guard import (
    is_ordinary,
    needs_guard,
    read_guarded,
    read_in_child,
    read_together,
)

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="the limits of child processes are POSIX"
)

ALL = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif", "jpeg2000", "ppm")
READING = Reading(formats=ALL, timeout=60)
SQUARE = Square(32)

# Replaces the readers of BMP and PNG in child processes, and does what the word at the end of a
# file says.
HOSTILE_READER = """
import ctypes, os, sys, time
from pathlib import Path
from raycap.images import formats

plain = dict(formats.READERS)
notes = Path(__file__).parent / "notes"

def hostile(data, limits):
    end = data[-12:]  # that of a PNG never holds the mark
    word = end.rpartition(b"|")[2].decode() if b"|" in end else ""
    if word:
        with notes.open("a") as log:
            log.write(f"{word} {os.getpid()}\\n")
    if word == "sleep":
        time.sleep(1000)
    elif word == "hold":  # in C, with the GIL: no thread of Python runs any more
        ctypes.PyDLL(None).sleep(1000)
    elif word == "die":
        os.kill(os.getpid(), 9)
    elif word == "die once" and notes.read_text().count("die once") == 1:
        os.kill(os.getpid(), 11)
    elif word == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(2**24))
    elif word == "leak":
        hostile.leaked = bytearray(200 * 2**20)
    elif word == "modules":
        raise ValueError(str(sorted({"ray", "torch"} & set(sys.modules))))
    elif word == "environment":
        raise ValueError(f"{os.environ['OMP_NUM_THREADS']} {os.getpriority(os.PRIO_PROCESS, 0)}")
    return plain["png" if data.startswith(b"\\x89PNG") else "bmp"](data, limits)

formats.READERS["bmp"] = formats.READERS["png"] = hostile
"""


def saved(kind: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options) -> bytes:
    """A picture with some detail."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).convert(mode).save(
        file, kind, **options
    )
    return file.getvalue()


BMP, PNG = saved("bmp"), saved("png")


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Child processes with the hostile reader, none of them before and after; yields its log."""
    close_all()
    (tmp_path / "sitecustomize.py").write_text(HOSTILE_READER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "notes"
    close_all()


def close_all() -> None:
    while guard._idle:
        guard._idle.pop().close()


def read_word(word: str, **changes):
    return read_in_child(BMP + b"|" + word.encode(), Reading(formats=ALL, **changes), SQUARE)


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def wait_for(condition) -> None:
    """Fails by the time limit of the test alone."""
    while not condition():
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("word", "tries", "reason"),
    [
        ("sleep", 1, "reading it took longer than 1.5 s (--reading.timeout)"),
        ("hold", 1, "reading it took longer than 1.5 s (--reading.timeout)"),
        ("die", 2, "reading it kills the process"),
        ("eat", 1, "reading it takes more than 100 MiB of memory (--reading.max-memory)"),
    ],
)
def test_a_bad_picture_has_its_reason_and_the_next_one_is_read(
    notes: Path, word: str, tries: int, reason: str
):
    picture = read_word(word, timeout=1.5, max_memory=100)
    assert (picture.error, picture.pixels, picture.format) == (reason, None, "bmp")
    pids = {int(line.split()[-1]) for line in lines(notes)}
    assert len(pids) == len(lines(notes)) == tries, "each try has a new child process"
    assert not any(is_running(pid) for pid in pids)
    assert np.array_equal(
        read_in_child(BMP, READING, SQUARE).pixels, read_picture(BMP, READING, SQUARE).pixels
    )


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("hold", "reading it took longer than 1.5 s (--reading.timeout)"),
        ("die", "reading it kills the process"),
        ("eat", "reading it takes more than 100 MiB of memory (--reading.max-memory)"),
    ],
)
def test_of_pictures_read_together_a_bad_one_alone_has_the_reason(
    notes: Path, word: str, reason: str
):
    """Large ones, suspicious ones and broken ones are among them."""
    large = PNG + bytes(guard.BYTES_TOGETHER)
    good = [PNG, saved("jpeg", (9, 7)), BMP, large, b"", b"GIF89a", saved("png", (3, 3))]
    bodies = [*good, PNG + b"|" + word.encode(), *good]
    found = read_together(bodies, Reading(formats=ALL, timeout=1.5, max_memory=100), SQUARE)
    bad = found.pop(len(good))
    assert (bad.error, bad.pixels, bad.format) == (reason, None, "png")
    for data, picture in zip([*good, *good], found, strict=True):
        alone = read_picture(data, READING, SQUARE)
        assert (picture.error, picture.width, picture.height, picture.format) == (
            alone.error,
            alone.width,
            alone.height,
            alone.format,
        )
        assert np.array_equal(picture.pixels, alone.pixels)


def test_ordinary_pictures_are_read_in_one_child_without_waiting_for_each(
    notes: Path, monkeypatch: pytest.MonkeyPatch
):
    bodies = [PNG + b"|a"] * (2 * guard.PICTURES_TOGETHER + 1)
    asked: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda *what: asked.append(what[0]) or write(*what))
    found = read_together(bodies, READING, SQUARE)
    assert {picture.error for picture in found} == {""} and len(found) == len(bodies)
    assert len({line.split()[-1] for line in lines(notes)}) == 1
    assert len(asked) == 3


def test_a_picture_that_eats_memory_is_tried_again_where_others_were_read_before(notes: Path):
    assert read_word("", max_memory=100).error == ""
    assert read_word("eat", max_memory=100).error.startswith("reading it takes more than 100 MiB")
    assert len(lines(notes)) == 2


def test_a_child_that_was_started_early_reads_the_first_picture(notes: Path):
    guard.start_early(READING)
    guard.start_early(READING)
    [child] = guard._idle
    assert read_word("die").error == "reading it kills the process"
    assert lines(notes)[0] == f"die {child._process.pid}"


def test_a_child_that_was_started_early_and_ended_is_replaced(notes: Path):
    guard.start_early(READING)
    [child] = guard._idle
    child._process.kill()
    child._process.wait()
    assert read_word("").error == ""


def test_a_child_that_dies_once_costs_no_picture(notes: Path):
    assert read_word("die once").error == ""
    assert len(lines(notes)) == 2


def test_a_child_killed_from_outside_costs_no_picture(notes: Path):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read_word, "sleep", timeout=6)
        for tries in (1, 2):
            wait_for(lambda tries=tries: len(lines(notes)) == tries)
            os.kill(int(lines(notes)[-1].split()[-1]), signal.SIGKILL)
        assert answer.result().error == "reading it kills the process"
    assert read_word("").error == ""
    idle = guard._idle[-1]
    os.kill(idle._process.pid, signal.SIGKILL)  # between two pictures it counts for neither
    wait_for(lambda: not idle.is_alive())
    assert read_word("die once").error == ""


def test_a_child_is_used_again_until_it_has_leaked(notes: Path):
    read_word("a"), read_word("b"), read_word("leak"), read_word("c")
    pids = [line.split()[-1] for line in lines(notes)]
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_children_import_neither_ray_nor_torch(notes: Path):
    # What this process has loaded makes no difference.
    sys.modules.setdefault("torch", sys.modules["os"])
    assert read_word("modules").error == "broken bmp: []"


def test_children_use_one_thread(notes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert read_word("environment").error == f"broken bmp: 1 {os.getpriority(os.PRIO_PROCESS, 0)}"


@pytest.mark.parametrize("word", ["sleep", "hold", ""])
def test_children_end_with_their_parent(notes: Path, word: str):
    program = (
        "import sys, time; from raycap.images import Reading, Square, guard\n"
        "guard.read_in_child(open(sys.argv[1], 'rb').read(), Reading(), Square(8)); "
        "time.sleep(1000)"
    )
    (notes.parent / "picture").write_bytes(BMP + b"|" + (word or "idle").encode())
    path = os.pathsep.join([str(notes.parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(notes.parent / "picture")],
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_for(lambda: lines(notes))
    child = int(lines(notes)[0].split()[-1])
    assert is_running(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(child))


def test_a_child_ends_itself_when_its_parent_does_not_get_to_it(notes: Path):
    program = "import sys; from raycap.images import Reading, Square, guard\n"
    program += (
        "guard.read_in_child(open(sys.argv[1], 'rb').read(), Reading(timeout=0.5), Square(8))"
    )
    (notes.parent / "picture").write_bytes(BMP + b"|hold")
    path = os.pathsep.join([str(notes.parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(notes.parent / "picture")],
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_for(lambda: lines(notes))
    parent.send_signal(signal.SIGSTOP)
    wait_for(lambda: not is_running(int(lines(notes)[0].split()[-1])))
    parent.send_signal(signal.SIGCONT)
    assert parent.wait() == 0


def test_many_threads_read_at_once(notes: Path):
    sizes = range(20, 60)
    files = [saved("webp", (size, size), lossless=True) for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: read_in_child(data, READING, SQUARE), files))
    assert [picture.width for picture in found] == list(sizes)
    for data, picture in zip(files, found, strict=True):
        assert np.array_equal(picture.pixels, read_picture(data, READING, SQUARE).pixels)
    assert 1 <= len(guard._idle) <= 4


def test_a_fork_has_children_of_its_own(notes: Path):
    read_word("before")
    pid = os.fork()
    if not pid:
        fine = not guard._idle and not read_word("after").error
        os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    read_word("before")
    first, after, last = (line.split()[-1] for line in lines(notes))
    assert first == last != after


def test_an_interrupted_read_leaves_no_busy_child(notes: Path):
    def interrupt() -> None:
        wait_for(lambda: lines(notes))
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts commands in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            read_word("sleep")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not guard._idle and not is_running(int(lines(notes)[0].split()[-1]))


def test_a_child_that_cannot_start_is_no_picture_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    close_all()
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="did not start"):
        read_in_child(BMP, READING, SQUARE)


# Real files


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("webp", {}),
        ("bmp", {}),
        ("jpeg", {"progressive": True}),
        ("png", {}),
        pytest.param("tiff", {}, marks=pytest.mark.thorough),
        pytest.param("tiff", {"compression": "tiff_lzw"}, marks=pytest.mark.thorough),
        pytest.param("avif", {}, marks=pytest.mark.thorough),
        pytest.param("jpeg2000", {}, marks=pytest.mark.thorough),
    ],
)
def test_a_good_picture_that_needs_more_memory_is_not_called_broken(kind: str, options: dict):
    data = saved(kind, (3000, 2000), **options)
    reading = Reading(formats=ALL, max_memory=16)
    for _ in range(2):
        error = read_in_child(data, reading, Square(1024)).error
        assert "memory" in error and "--reading.max-memory" in error
    assert read_in_child(data, READING, SQUARE).error == ""


def test_a_real_picture_that_takes_too_long():
    data = saved("tiff", (4000, 3000), compression="tiff_adobe_deflate")
    limited = Reading(timeout=0.005)
    assert (
        read_in_child(data, limited, SQUARE).error
        == "reading it took longer than 0.005 s (--reading.timeout)"
    )
    assert read_in_child(data, READING, SQUARE).error == ""


def tiled(side: int) -> bytes:
    """A TIFF of 16x16 pixels with one tile of `side`x`side`, which its decoder allocates."""
    entries = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    content = b"x\x9c" + bytes(5000)
    values = [(tag, 4, 1, value) for tag, value in entries.items()]
    start = 8 + 2 + 12 * (len(values) + 2) + 4
    values += [(324, 4, 1, start), (325, 4, 1, len(content))]
    table = b"".join(struct.pack("<HHII", *value) for value in sorted(values))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + table + bytes(4) + content


def flat(kind: str, mode: str, size: tuple[int, int], **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


# Prints the peak memory of the child process that reads the picture, and the reason.
MEASURE = """
import json, resource, sys
from pathlib import Path
from raycap.images import Reading, Square, guard
picture = guard.read_in_child(Path(sys.argv[1]).read_bytes(), Reading(), Square(64))
while guard._idle:
    guard._idle.pop().close()
print(json.dumps([resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, picture.error]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit address space")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("tile", lambda: tiled(2**15)),
        pytest.param(
            "rgba png",
            lambda: flat("png", "RGBA", (10_000, 11_000), compress_level=1),
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "16-bit png",
            lambda: flat("png", "I;16", (10_000, 11_000), compress_level=1),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "float tiff",
            lambda: flat("tiff", "F", (10_000, 11_000), compression="tiff_adobe_deflate"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "webp",
            lambda: flat("webp", "RGB", (10_900, 10_900), lossless=True, method=0, quality=0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "progressive jpeg",
            lambda: flat("jpeg", "RGB", (10_900, 10_900), progressive=True, subsampling=0),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_picture_takes_more_than_700_mb(name: str, make, tmp_path: Path):
    (tmp_path / "picture").write_bytes(make())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "picture")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, error = json.loads(done.stdout)
    print(f"{name}: {peak / 1e6:.0f} MB, {error or 'read'}")
    assert peak < 700e6


# Which pictures are guarded


@pytest.mark.parametrize(
    ("data", "guarded"),
    [
        (saved("jpeg"), False),
        (saved("jpeg", progressive=True), False),
        (saved("jpeg", mode="CMYK"), False),
        (
            saved("jpeg", mode="L", exif=b"Exif\0\0" + bytes(60_000), icc_profile=bytes(200_000)),
            False,
        ),
        (saved("png"), False),
        (saved("png", mode="RGBA"), False),
        (saved("png", mode="P"), False),
        (saved("png", mode="I;16"), True),
        (flat("png", "1", (6000, 6000)), True),
        (flat("jpeg", "L", (6000, 6000)), True),
        (saved("webp"), True),
        (saved("tiff"), True),
        (saved("gif", mode="P"), True),
        (HEIC, True),
        (saved("jpeg")[:100], True),  # its header does not say how large it is
        (saved("png")[:20], True),
        (saved("jpeg") + bytes(2**25), True),
        (b"<html>", False),  # refused unopened
        (b"", False),
    ],
)
def test_all_but_ordinary_pictures_are_guarded(data: bytes, guarded: bool):
    assert needs_guard(data, Reading()) is guarded


def test_refused_formats_need_no_guard():
    assert not needs_guard(saved("webp"), Reading(formats=("jpeg",)))
    assert read_guarded(saved("webp"), Reading(formats=("jpeg",)), SQUARE).error.startswith(
        "format 'webp'"
    )


def test_real_photos_are_ordinary(shared_data: Path):
    photos = sorted((shared_data / "coco-mini/photos").glob("*.jpg"))
    assert photos and all(is_ordinary("jpeg", photo.read_bytes()) for photo in photos)


def test_a_whole_picture_comes_through():
    data = saved("webp", (1500, 1100), lossless=True)
    whole = read_guarded(data, READING, None)
    assert np.array_equal(whole.pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "changes", [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}, {"max_memory": 0}]
)
def test_limits_that_make_no_sense_are_refused(changes: dict):
    with pytest.raises(UserError, match="--reading"):
        Reading(**changes)
