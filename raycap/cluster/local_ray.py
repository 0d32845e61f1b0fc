"""Starts Ray on this machine for one command, and removes everything it wrote.

By default, Ray leaves a folder for each session in /tmp/ray, and a token in the home folder. The
next `ray start --head` would ask for that token, and `ray job submit` would be refused. The Ray
that is started here writes into one temporary folder, which is removed when the command ends.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from raycap.errors import UserError

# Name of the folder, in the system's folder for temporary files. It holds the lock and Ray's
# folder.
PREFIX, LOCK, RAY_FOLDER = "raycap-ray-", "lock", "r"
# The path of a socket has at most 107 characters (macOS: 103). Ray needs about 86 of them.
LONGEST_PARENT = 14
# Environment variables for Ray's authentication, here and in the processes that Ray starts.
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# On a busy machine, Ray may need more time to start than its own limits allow.
TRIES = 3
SYSTEM_CONFIG = {"agent_register_timeout_ms": 60_000}
# The module that runs in a process that decodes pictures: see `raycap.images.guard`.
DECODER = "raycap.images.child"
# For Ray's processes, some of which end shortly after their driver.
SECONDS_TO_END = 5.0


@contextlib.contextmanager
def local_ray(cpus: int | None, log_to_driver: bool) -> Iterator[None]:
    """Start Ray, and stop it at the end of the context."""
    with _own_folder() as folder, _own_token():
        try:
            start_ray(
                num_cpus=cpus,
                logging_level=logging.WARNING,
                log_to_driver=log_to_driver,
                _temp_dir=str(folder / RAY_FOLDER),
                _system_config=SYSTEM_CONFIG,
            )
            yield
        finally:
            _stop()


def start_ray(**options: Any) -> None:
    """Start Ray on this machine. Raises UserError if several attempts fail."""
    for tries_left in reversed(range(TRIES)):
        others = _with_children(os.getpid())
        try:
            ray.init("local", include_dashboard=False, **options)
            return
        # Ray raises a plain Exception, for example if its processes take more than 30 seconds.
        except Exception as error:
            ray.shutdown()
            # Ray does not end the processes that it has already started.
            left = [child for child in _with_children(os.getpid()) if child not in others]
            left = [child for child in left if not _decodes(child)]
            _end(left, seconds=0)
            if not tries_left:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(
                    f"Ray did not start on this machine ({reason}): check that the machine is not "
                    f"overloaded and that {tempfile.gettempdir()} has space, and try again"
                ) from error


def _decodes(process: Any) -> bool:
    """Whether it decodes pictures for this command, which may work before Ray has started."""
    import psutil

    try:
        return DECODER in process.cmdline()
    except psutil.Error:
        return False


def _stop() -> None:
    """Stop Ray, and end its remaining processes, which would write to its folder."""
    node: Any = ray._private.worker._global_node
    processes = []
    for infos in node.all_processes.values() if node else ():
        processes += _with_children(infos[0].process.pid)
    ray.shutdown()
    _end(processes, SECONDS_TO_END)


def _with_children(pid: int) -> list[Any]:
    """The process and all its descendants."""
    import psutil  # a copy that comes with Ray, and is found after Ray is imported

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(processes: list[Any], seconds: float) -> None:
    """Wait so many seconds for the processes to end, then kill them."""
    import psutil

    _, alive = psutil.wait_procs(processes, seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, SECONDS_TO_END)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A temporary folder for Ray. Folders of killed commands are removed too, before and after:
    processes of a killed Ray may write for some more seconds."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > LONGEST_PARENT:
        parent = Path("/tmp")
    _remove_stale(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise UserError(
            f"Ray needs a folder for its sockets, and none can be made in {parent} "
            f"({error.strerror}): set TMPDIR to a writable folder whose path has at most "
            f"{LONGEST_PARENT} characters"
        ) from error
    # The lock file is renamed after it is locked, so that no other command finds it unlocked and
    # removes the folder.
    with (folder / f".{LOCK}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f".{LOCK}").rename(folder / LOCK)
        try:
            yield folder
        finally:
            _remove(folder)
            _remove_stale(parent)


def _remove_stale(parent: Path) -> None:
    """Remove the folders of commands that were killed: their locks are free."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, the lock last: a folder without a lock would never be removed."""
    for _ in range(TRIES):
        shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)
        if not (folder / RAY_FOLDER).exists():
            shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Protect Ray with a new token. Without one, anybody who can reach the ports of this machine
    could run code in this Ray."""
    before = {name: os.environ.get(name) for name in AUTHENTICATION}
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    _reload_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reload_authentication()


def _reload_authentication() -> None:
    """Make Ray read the variables again, which it does only once, when it is imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
