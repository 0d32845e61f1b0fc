"""A plain local run leaves the machine as it was: no token, no folders, and Ray starts there
afterwards as before.

Each test runs in a mount namespace, where /tmp is its own: other programs write to the machine's
/tmp all the time.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from heads import RAY, free_ports
from small_captioner import photos, save_captioner

from raycap.cluster import local_ray

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).resolve().parent.parent
OWN = ("/tmp", "/dev/shm")

# What runs in the namespace. Its working folder is /mnt, the test's folder.
SCRIPT = """
import os, pathlib, signal, subprocess, sys, time

def files():
    "Everything in the places that programs write to."
    found = set()
    for root in ("/tmp", "/dev/shm", "/mnt/home", "/mnt/work"):
        found |= {str(path) for path in pathlib.Path(root).rglob("*")}
    return found

def caption(out):
    command = [sys.executable, "-m", "raycap", "caption", "/mnt/photos", "--model", "/mnt/model"]
    small = ["--batch", "2", "--actors", "1", "--part-rows", "2"]
    on_ray = ["--cluster.cpus", "1", "--cluster.local-rows", "0"]
    return subprocess.Popen([*command, "--out", out, *small, *on_ray])

def wait_for(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
"""


def run_apart(folder: Path, script: str, seconds: float) -> str:
    """Run a Python script where /tmp and /dev/shm are its own and /mnt is this folder.

    Returns what it printed.
    """
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, for a /tmp of its own")
    for used in (REPOSITORY, sys.prefix, sys.base_prefix):
        if any(Path(used).resolve().is_relative_to(hidden) for hidden in ("/tmp", "/mnt")):
            pytest.skip(f"{used} would be hidden by a /tmp and a /mnt of its own")
    home, work = folder / "home", folder / "work"
    for each in (home, work):
        each.mkdir(exist_ok=True)
    own = [f'mount --bind "{folder}" /mnt', *(f"mount -t tmpfs none {at}" for at in OWN)]
    mounts = " && ".join([*own, "cd /mnt/work", 'exec "$@"'])
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    apart = ["unshare", *user, "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("may not mount a /tmp of its own here")
    others = ("RAY_", "XDG_", "MPL", "TORCHINDUCTOR_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(others)
    }
    environment |= {"HOME": "/mnt/home", "PYTHONPATH": str(REPOSITORY), "RAY": RAY}
    environment["PATH"] = f"{Path(RAY).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [*apart, sys.executable, "-c", SCRIPT + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_captioner(tmp_path / "model")
    photos(tmp_path / "photos", range(24))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(720)
def test_a_local_run_leaves_nothing_but_its_output_and_its_cache(folder: Path) -> None:
    printed = run_apart(
        folder,
        """
before = files()
assert caption("/mnt/work/out").wait() == 0
for name in sorted(files() - before):
    print("left:", name)
""",
        700,
    )
    new = [
        line.removeprefix("left: ") for line in printed.splitlines() if line.startswith("left: ")
    ]
    assert "/mnt/work/out/facts.json" in new
    kept = ("/mnt/work/out", "/mnt/home/.cache/raycap")
    assert [name for name in new if not name.startswith(kept) and name != "/mnt/home/.cache"] == []


@pytest.mark.slow
@pytest.mark.timeout(720)
def test_what_a_killed_run_leaves_goes_with_the_next_and_ray_starts_as_before(
    folder: Path,
) -> None:
    ports = free_ports(4)
    printed = run_apart(
        folder,
        f"""
run = caption("/mnt/work/first")
wait_for(pathlib.Path("/mnt/work/first/captions").exists)
run.kill()
run.wait()
assert list(pathlib.Path("/tmp").glob("raycap-ray-*")), "the killed run could remove nothing"
assert caption("/mnt/work/second").wait() == 0
assert not os.listdir("/tmp"), sorted(map(str, pathlib.Path("/tmp").rglob("*")))[:20]
assert not pathlib.Path("/mnt/home/.ray").exists()

ports = {ports}
names = ["--port", "--dashboard-port", "--ray-client-server-port", "--dashboard-agent-listen-port"]
start = [os.environ["RAY"], "start", "--head", "--block"]
start += ["--num-cpus=1", "--object-store-memory=100000000"]
start += [f"{{name}}={{port}}" for name, port in zip(names, ports)]
head = subprocess.Popen(start, start_new_session=True)
job = [os.environ["RAY"], "job", "submit", f"--address=http://127.0.0.1:{{ports[1]}}"]
job += ["--", "echo", "the", "job", "ran"]
done = None
def submitted():
    global done
    done = subprocess.run(job, capture_output=True, text=True)
    return done.returncode == 0 or "401" in done.stdout + done.stderr
wait_for(submitted)
head.terminate()
head.wait()
print(done.stdout, done.stderr)
""",
        700,
    )
    assert "the job ran" in printed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_folders_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    used, stale, made, other = (
        tmp_path / name for name in ("raycap-ray-1", "raycap-ray-2", "raycap-ray-3", "mine")
    )
    for each in (used, stale, made, other):
        (each / "r").mkdir(parents=True)
    for each in (used, stale):
        (each / "lock").touch()
    link = tmp_path / "raycap-ray-4"
    (other / "lock").touch()
    link.symlink_to(other)
    with (used / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        local_ray._remove_stale(tmp_path)
    assert names(tmp_path) == ["mine", "raycap-ray-1", "raycap-ray-3", "raycap-ray-4"]
    assert names(other) == ["lock", "r"]


def test_a_ray_that_does_not_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object, **__: object) -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        if len(started) < local_ray.TRIES:
            raise Exception("it took more than 30 seconds")

    monkeypatch.setattr(local_ray.ray, "init", start)
    local_ray.start_ray()
    assert [process.poll() is None for process in started] == [False, False, True]
    started[-1].kill()
    started[-1].wait()


def test_the_folder_goes_also_when_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ray.tempfile, "gettempdir", lambda: "/tmp")
    seen = []
    with pytest.raises(KeyboardInterrupt), local_ray._own_folder() as folder:
        seen.append(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        raise KeyboardInterrupt
    assert seen and not seen[0].exists()


# In a process of its own: Ray remembers how it authenticates, and later tests start a Ray of their
# own.
ENVIRONMENT_AS_BEFORE = """
import os
from raycap.cluster import local_ray

with local_ray._own_token():
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
assert os.environ["RAY_AUTH_MODE"] == "disabled"
assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/nowhere"
assert "RAY_AUTH_TOKEN" not in os.environ
"""


def test_the_environment_is_as_before() -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    environment.pop("RAY_AUTH_TOKEN", None)
    subprocess.run([sys.executable, "-c", ENVIRONMENT_AS_BEFORE], env=environment, check=True)
