"""What the test files share: one Ray, one S3 server, the folders of the development data, the
order of the tests, and checks of what they leave behind."""

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sessions import start_ray, stop_ray

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "benchmarks"))

import fault_stores  # noqa: E402

# Where the environment says that Python shall not keep what it has compiled, each test worker,
# each worker of Ray and each `raycap` that a test starts would compile hundreds of files again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
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

# The S3 server of the tests, once it runs. Ray's workers find it here too, whenever they started.
AWS_CONFIG = Path(tempfile.gettempdir()) / f"raycap-tests-{os.getpid()}.aws"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(AWS_CONFIG)

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

# No deadlines: tests check what is right, never how fast. `.ci/run` asks for more examples, with
# `--hypothesis-profile thorough`.
settings.register_profile("thorough", deadline=None, max_examples=60)
settings.register_profile("raycap", deadline=None, max_examples=20)
settings.load_profile("raycap")


# Files that take long. They start first, so that all workers end at about the same time.
LONG = (
    "report",
    "encoders",
    "training",
    "guard",
    "recipes",
    "kill_points",
    "captioner",
    "search",
    "decoders",
    "captioner_folders",
    "captioner_kinds",
    "sources_s3",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Two workers more than processors: the one with the tests on Ray mostly waits, and others
    wait for servers and processes."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return len(os.sched_getaffinity(0)) + 2 if hasattr(os, "sched_getaffinity") else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is loaded until the first test stays. Python's garbage collector need not look at it
    again and again: there are a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests on the shared Ray come first: their tests without Ray, then those on it.
    Slow tests start clusters and kill processes, which takes minutes on a busy machine."""
    items.sort(key=lambda item: (_place_of_file(item.path), _is_on_ray(item)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


def _place_of_file(path: Path) -> int:
    if _has_tests_on_ray(path):
        return 0
    name = path.stem.removeprefix("test_")
    return 1 + LONG.index(name) if name in LONG else 1 + len(LONG)


@functools.cache
def _has_tests_on_ray(path: Path) -> bool:
    return "one_ray" in path.read_text(encoding="utf-8")


def _is_on_ray(item: pytest.Item) -> bool:
    return "one_ray" in getattr(item, "fixturenames", ())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker gets a file at a time, and one worker gets all files with tests on the shared Ray.
    So there is one Ray, and it starts once."""
    from xdist.scheduler import LoadFileScheduling

    class OneWorkerForRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if _has_tests_on_ray(config.rootpath / file) else file

    return OneWorkerForRay(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not _is_on_ray(item):
        stop_ray()


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
    """A Ray with two processors. It stays until a test does not use it."""
    import ray

    if not ray.is_initialized():
        start_ray(2)


@pytest.fixture(scope="module")
def no_ray() -> None:
    """Says that a test runs small jobs in this process, or starts a Ray of its own. A test that
    does not use `one_ray` never finds a Ray (`pytest_runtest_setup`)."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server with S3's interface, whose conditional writes are atomic. It is a
    process of its own: the Delta library holds Python's lock while it waits for an answer. A page
    of its listings has 100 names."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'raycap[s3]'")
    pytest.importorskip("moto.server", reason="needs moto's server: pip install 'raycap[dev]'")
    port = fault_stores.free_port()
    command = [sys.executable, str(fault_stores.__file__), str(port)]
    with fault_stores.running(command, port, {"MOTO_S3_DEFAULT_MAX_KEYS": "100"}):
        address = f"http://127.0.0.1:{port}"
        keys = "aws_access_key_id = test\naws_secret_access_key = test\nregion = us-east-1"
        AWS_CONFIG.write_text(f"[default]\nendpoint_url = {address}\n{keys}\n")
        yield address
        AWS_CONFIG.unlink()


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Iterator[Any]:
    """The file system of that server. For the Delta library, its address is in the environment."""
    import s3fs

    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
        s3fs.S3FileSystem.clear_instance_cache()


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that outlives the tests fails the run."""
    # Libraries report what is still there when Python ends. Not yet: pytest collects garbage once
    # more, which would take seconds.
    atexit.register(gc.unfreeze)
    stop_ray()
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
