"""A Ray on this machine for one command. It changes nothing outside one folder, and that folder goes when it ends.

Ray by itself leaves a folder for each session in /tmp/ray, and a token in the home folder: the next `ray start
--head` would ask for that token, and `ray job submit` would be refused.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from raycap.errors import UserError

# A folder of an own Ray in the system's folder for temporary files. It holds the lock and the folder of Ray.
PREFIX, LOCK, RAYS_FOLDER = "raycap-ray-", "lock", "r"
# The path of a socket has at most 107 characters (macOS: 103), and Ray's have some 86 behind this parent.
LONGEST_PARENT = 14
# What says to Ray, here and in the processes that it starts, who may talk to it.
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# On a busy machine Ray may take longer to start than it gives itself.
TRIES = 3
PATIENT = {"agent_register_timeout_ms": 60_000}
# Ray's processes end soon after their driver, and write until then.
SECONDS_TO_REMOVE = 5.0


@contextlib.contextmanager
def local_ray(cpus: int | None, log_to_driver: bool) -> Iterator[None]:
    """Start a Ray, and stop it in the end."""
    with _own_folder() as folder, _own_token():
        try:
            _start(cpus, log_to_driver, folder / RAYS_FOLDER)
            yield
        finally:
            ray.shutdown()


def _start(cpus: int | None, log_to_driver: bool, folder: Path) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=log_to_driver,
                _temp_dir=str(folder),
                _system_config=PATIENT,
            )
            return
        except Exception as error:  # Ray raises plain ones, as when its processes take more than 30 seconds to start
            ray.shutdown()
            if not tries_left:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(
                    f"Ray did not start on this machine ({reason}): see that the machine is not overloaded, that "
                    f"{folder.parent.parent} has space, and try again"
                ) from error


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for what Ray writes. Those of commands that were killed are removed too."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > LONGEST_PARENT:
        parent = Path("/tmp")
    _remove_stale(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise UserError(
            f"Ray needs a folder for its sockets, and none can be made in {parent} ({error.strerror}): set TMPDIR "
            f"to a folder that may be written and whose path has at most {LONGEST_PARENT} characters"
        ) from error
    # The lock is held before it has its name, so that nobody ever finds one that is free and in use.
    with (folder / f".{LOCK}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f".{LOCK}").rename(folder / LOCK)
        try:
            yield folder
        finally:
            _remove(folder)


def _remove_stale(parent: Path) -> None:
    """Remove the folders whose commands were killed: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    end = time.monotonic() + SECONDS_TO_REMOVE
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(0.05)


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token that only this command and its processes know: else anybody who reaches the machine's ports could run
    code in it."""
    before = {name: os.environ.get(name) for name in AUTHENTICATION}
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    _read_authentication_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_authentication_again()


def _read_authentication_again() -> None:
    """Ray reads these variables when it is imported, and remembers the token."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
