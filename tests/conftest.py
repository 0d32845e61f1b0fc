"""What the test files share: one Ray, the folders of the development data, and checks of what the
tests leave behind."""

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The tensors here are tiny: more threads would only wait for each other, and on a busy machine for
# very long. PASSIVE is what the command line sets too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray's raylet gives up when the processes that it starts are slow, as on a busy machine.
os.environ.setdefault("RAY_agent_register_timeout_ms", "60000")
# Ray gives its workers a low priority, and on a busy machine they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray Train looks for lost workers this often.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

# Marks the processes that this run starts. Helpers of the pytest process itself end with it.
MARK = "RAYCAP_TESTS"
os.environ[MARK] = str(os.getpid())
LIVE_AS_LONG_AS_PYTEST = ("raycap.images.child", "resource_tracker", "forkserver")
SECONDS_TO_END = 15.0

# glibc keeps freed memory in one arena for each of many threads: two arenas keep less.
LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
M_ARENA_MAX = -8
LARGE = 64 * 2**20
if LIBC:
    LIBC.mallopt(M_ARENA_MAX, 2)

# No deadlines: tests check what is right, never how fast.
settings.register_profile("raycap", deadline=None)
settings.load_profile("raycap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests start clusters and kill processes, which takes minutes on a busy machine. Files
    that share a Ray come last, one after the other."""
    files_on_ray = {item.path for item in items if "one_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in files_on_ray)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and captions (flickr8k, coco-mini, ...), never needed to use raycap."""
    return _present(Path(os.environ.get("RAYCAP_DATA", REPOSITORY.parent / "shared" / "data")))


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """Real pretrained backbones, beside the data."""
    return _present(shared_data.parent / "weights")


def _present(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(
            f"no development data at {folder}: set RAYCAP_DATA to the folder that holds it"
        )
    return folder


@pytest.fixture(scope="module")
def one_ray() -> None:
    """A Ray with two processors. It stays for the next test file that wants one."""
    import ray
    from sessions import start_ray

    if not ray.is_initialized():
        start_ray(2)


@pytest.fixture(scope="module")
def no_ray() -> None:
    """For tests that run small jobs in this process, or start a Ray of their own."""
    _stop_ray()


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    """After a test that took much, so that the process stays small."""
    before = _resident()
    yield
    if LIBC and _resident() - before > LARGE:
        gc.collect()
        LIBC.malloc_trim(0)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def _stop_ray() -> None:
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that outlives the tests fails the run."""
    _stop_ray()
    import ray  # noqa: F401 - psutil comes with it

    left = _processes_of_tests()
    end = time.monotonic() + SECONDS_TO_END
    while left and time.monotonic() < end:
        time.sleep(0.5)
        left = _processes_of_tests()
    if left:
        print("\nprocesses that the tests left behind:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _processes_of_tests() -> list[str]:
    """Processes with this run's mark in their environment, also if their parents are gone."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(os.getpid()) and process.pid != os.getpid():
                command = " ".join(process.cmdline())
                own = process.ppid() == os.getpid()
                if not (own and any(name in command for name in LIVE_AS_LONG_AS_PYTEST)):
                    found.append(f"{process.pid} {command[:200]}")
    return found
