"""One writer to a folder: a lease file that is renewed while its owner lives, and can be taken when it is dead."""

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
SECONDS_BETWEEN_BEATS = 10.0
# Of an owner on another machine, whose process cannot be looked for; clocks may differ by some seconds.
SECONDS_TILL_DEAD = 90.0
# An object store has no lock: two newcomers both write, and after this the one whose lease was overwritten sees it.
SECONDS_TO_SETTLE = 2.0


class Lease:
    """Entered, it is held; `check` says, right before something is published, that it still is."""

    def __init__(self, folder: RunFolder) -> None:
        self.run = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        self._folder = folder
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lease")

    def __enter__(self) -> Self:
        with _locked(self._folder):
            found = self._folder.read_json(LEASE)
            if found is not None and _is_alive(found):
                raise UserError(
                    f"another run writes to {self._folder} (process {found.get('pid')} on {found.get('host')}, "
                    f"run {found.get('run')}): wait for it, stop it, or give another --out"
                )
            self._write()
        if not self._folder.is_local:
            time.sleep(SECONDS_TO_SETTLE)
        self.check()
        self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._beats.join()
        with contextlib.suppress(
            UserError
        ):  # a full or vanished disc is said by what wrote the rows
            if self.is_ours():
                self._folder.remove(LEASE)

    def check(self) -> None:
        """A process that slept past its lease must not publish beside its successor."""
        if not self.is_ours():
            raise UserError(
                f"another run has taken over {self._folder}: this one stops; nothing is lost"
            )

    def is_ours(self) -> bool:
        """Whether the lease file still names this run."""
        found = self._folder.read_json(LEASE)
        return found is not None and found.get("run") == self.run

    def _write(self) -> None:
        pid = os.getpid()
        # What tells a process from a later one with its number, and from one on another machine or in a container.
        owner = {
            "host": socket.gethostname(),
            "pid": pid,
            "space": _space(),
            "started": _started(pid),
        }
        self._folder.write_json(LEASE, {"run": self.run, **owner, "beat": time.time()})

    def _beat(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            try:
                with _locked(
                    self._folder
                ):  # else a successor could take the lease between the two lines below
                    if self.is_ours():
                        self._write()
            except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a store's client raises
                log.warning(
                    "the lease of %s could not be renewed (%s): trying again", self._folder, error
                )


def _is_alive(lease: dict[str, Any]) -> bool:
    pid = int(lease.get("pid", 0))
    if lease.get("host") == socket.gethostname() and lease.get("space") == _space():
        return _runs(pid) and _started(pid) == lease.get("started")
    return bool(time.time() - float(lease.get("beat", 0)) < SECONDS_TILL_DEAD)


def _space() -> str:
    """Where process numbers are counted: this boot of the machine and, under Linux, the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a path
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Clock ticks since the boot; "" where the system does not say, "dead" where it waits to be buried."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if facts[0] in "ZX" else facts[19]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but there
        return True
    return True


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """On a disc, one process at a time looks at the lease and writes it."""
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
    """The lock file, open and locked; closing it opens the lock."""
    Path(folder.path()).mkdir(parents=True, exist_ok=True)
    file = Path(folder.path("_lease.lock")).open("w")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        file.close()
        raise
    return file
