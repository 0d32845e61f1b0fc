"""Files in the folder of a training run, with which other processes stop it or limit its
epochs."""

import time
from collections.abc import Callable
from pathlib import Path

from raycap.storage import RunFolder, whole_file

CAPTIONER = "captioner"
STOP = "stop"  # a file of this name asks a run to save and stop
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_BETWEEN_QUESTIONS = 5.0  # to a store


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
