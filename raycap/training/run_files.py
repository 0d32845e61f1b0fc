"""Files in the folder of a training run, with which other processes stop it, limit its epochs or
take it over."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from raycap.errors import UserError
from raycap.storage import RunFolder, whole_file
from raycap.storage.lease import holder_of

CAPTIONER = "captioner"
LEADER = "leader"  # a file that names the worker that writes
STOP = "stop"  # a file of this name asks a run to save and stop
SECONDS_BETWEEN_LOOKS = 0.05
# A network disk may show the lease of an earlier start for so long.
SECONDS_FOR_LEASE = 60.0
SECONDS_BETWEEN_QUESTIONS = 5.0  # to a store


class Leadership:
    """Lets one worker write into the folder of a run: the leader that has started last.

    A worker that was cut off from its cluster, or whose driver was suspended, may live on while
    another start of the run goes on. It ends when it would write. `lease` is the one under which
    this worker was started; "" for none.
    """

    def __init__(self, folder: RunFolder, lease: str = "") -> None:
        self._folder, self._lease = folder, lease
        self._token = secrets.token_hex(8).encode()

    def take(self) -> None:
        """From now on this worker writes, and no earlier one. Raises UserError if another driver
        has taken over the run."""
        # Ray Train replaces workers that have ended: they must not take the run back.
        end = time.monotonic() + SECONDS_FOR_LEASE
        while self._lease and holder_of(self._folder) != self._lease:
            if time.monotonic() > end:
                raise self._taken_over()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._folder.write(LEADER, self._token)

    def check(self) -> None:
        """Raises UserError if another worker has taken the leadership."""
        if self._folder.read(LEADER) != self._token:
            raise self._taken_over()

    def _taken_over(self) -> UserError:
        return UserError(
            f"another start of this run goes on in {self._folder}: this one ends; nothing is lost"
        )


class StopRequest:
    """The file that asks a run to save and stop. The leader of the workers looks for it in each
    step; in a store, every few seconds."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._file = Path(folder.path(STOP)) if folder.is_local else None
        self._asked = float("-inf")

    def is_made(self) -> bool:
        """Whether the file was there when it was looked for."""
        if self._file is not None:
            return self._file.exists()
        if time.monotonic() < self._asked + SECONDS_BETWEEN_QUESTIONS:
            return False
        self._asked = time.monotonic()
        return self._folder.exists(STOP)

    def make(self) -> None:
        """Ask the run to stop."""
        self._folder.write(STOP, b"")

    def remove(self) -> bool:
        """Remove the file. Returns whether there was one."""
        is_there = self._folder.exists(STOP)
        if is_there:
            self._folder.remove_file(STOP)
        return is_there


class EpochLimit:
    """Makes a run wait before each epoch until another process allows it. Sweeps use it.

    A file in the run's folder has the total number of epochs that the run may train. When the run
    has trained and saved them, it deletes the file and waits for the next one. The `token` in the
    file name is new for each start of the run. Otherwise a worker of a killed start, which may
    live a little longer, could use the file of the next start.
    """

    def __init__(self, out: Path, token: str) -> None:
        self.token = token
        self._file = out / f"epochs-{token}"

    def allow(self, epochs: int) -> None:
        """Allow the run to train until it has trained this many epochs in total."""
        with whole_file(self._file) as file:
            file.write(str(epochs))

    def remove(self) -> None:
        """Remove the file, after the run has ended."""
        self._file.unlink(missing_ok=True)

    def is_reached(self) -> bool:
        """Whether the run has trained and saved the allowed epochs, and waits."""
        return not self._file.exists()

    def wait(self, epochs_done: int, is_stopped: Callable[[], bool]) -> None:
        """Called by the run: returns when it may train more than `epochs_done` epochs, or when it
        is asked to stop."""
        while not is_stopped():
            try:
                if int(self._file.read_text(encoding="utf-8")) > epochs_done:
                    return
                self._file.unlink()
            except FileNotFoundError:
                time.sleep(SECONDS_BETWEEN_LOOKS)
