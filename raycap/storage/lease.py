"""The lease of an output folder, which refuses a second run early. The lease of a dead run is
taken over. Tables stay correct without it: see `bulk/table.py`."""

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from raycap.errors import UserError
from raycap.storage.folder import RunFolder
from raycap.storage.retry import with_retries

log = logging.getLogger(__name__)

LEASE = "_lease.json"
SECONDS_BETWEEN_RENEWALS = 10.0
# A lease from another machine counts as dead after this time without a renewal. Clocks may differ
# by some seconds. If they differ by more, a live lease may look dead, and two runs share the work.
SECONDS_TILL_DEAD = 90.0
# Another process may have been suspended while it holds the lock. Then this one goes on without.
SECONDS_FOR_LOCK, SECONDS_BETWEEN_TRIES = 20.0, 0.05
# An object store has no lock. If two runs write a lease at the same time, the first one sees after
# this time that its lease was overwritten.
SECONDS_TO_SETTLE = 2.0


class Lease:
    """The lease of a folder, held within `with`."""

    def __init__(self, folder: RunFolder) -> None:
        self.run = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        self._folder = folder
        self._ended = threading.Event()
        self._renewals = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> Self:
        with _locked(self._folder):
            found = self._folder.read_json(LEASE)
            if found is not None and _is_alive(found):
                raise UserError(
                    f"another run writes to {self._folder} (process {found.get('pid')} on "
                    f"{found.get('host')}, run {found.get('run')}): wait for it, stop it, "
                    "or give another --out"
                )
            self._write()
        if not self._folder.is_local:
            time.sleep(SECONDS_TO_SETTLE)
        self.check()
        self._renewals.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._renewals.join()
        # Faults of the disk were reported by the code that wrote the rows.
        with contextlib.suppress(UserError):
            if self.is_ours():
                self._folder.remove(LEASE)

    def check(self) -> None:
        """Raises UserError if another run took the lease while this process was suspended."""
        if not self.is_ours():
            raise UserError(
                f"another run has taken over {self._folder}: this one stops; nothing is lost"
            )

    def is_ours(self) -> bool:
        """Whether the lease file still names this run."""
        return holder_of(self._folder) == self.run

    def _write(self) -> None:
        pid = os.getpid()
        # These distinguish the process from a later one with the same process id, and from
        # processes on other machines.
        owner = {
            "host": socket.gethostname(),
            "pid": pid,
            "space": _pid_scope(),
            "started": _start_time(pid),
        }
        self._folder.write_json(LEASE, {"run": self.run, **owner, "beat": time.time()})

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_RENEWALS):
            try:
                # Unlocked, another run could take the lease between the check and the write.
                with _locked(self._folder):
                    if self.is_ours():
                        self._write()
            except Exception as error:  # noqa: BLE001 - clients of stores raise anything
                log.warning(
                    "the lease of %s could not be renewed (%s): trying again", self._folder, error
                )


def holder_of(folder: RunFolder) -> str | None:
    """The run that the lease of this folder names; None if there is no lease."""
    found = folder.read_json(LEASE)
    return None if found is None else found.get("run")


def _is_alive(lease: dict[str, Any]) -> bool:
    pid = int(lease.get("pid", 0))
    if lease.get("host") == socket.gethostname() and lease.get("space") == _pid_scope():
        return _process_exists(pid) and _start_time(pid) == lease.get("started")
    # A time far in the future comes from a wrong clock. It must not refuse runs until then.
    return bool(abs(time.time() - float(lease.get("beat", 0))) < SECONDS_TILL_DEAD)


def _pid_scope() -> str:
    """The scope in which process ids are unique: this boot and, on Linux, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a path
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """The start time of a process in clock ticks since boot; "" if unknown, "dead" for a
    zombie."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if facts[0] in "ZX" else facts[19]


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """On a disk, hold a file lock, so that only one process at a time reads and writes the
    lease."""
    if not folder.is_local:
        yield
        return
    try:
        file = with_retries(lambda: _lock(folder), f"write {folder}")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        yield


def _lock(folder: RunFolder) -> TextIO:
    """Open and lock the lock file. It is locked until it is closed."""
    Path(folder.path()).mkdir(parents=True, exist_ok=True)
    file = Path(folder.path("_lease.lock")).open("w")  # noqa: SIM115 - the caller closes it
    end = time.monotonic() + SECONDS_FOR_LOCK
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() > end:
                    log.warning("the lock file of %s is held by another process", folder)
                    return file
            time.sleep(SECONDS_BETWEEN_TRIES)
    except OSError:
        file.close()
        raise
