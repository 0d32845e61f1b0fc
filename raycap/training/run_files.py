"""Files in a training run's folder by which other processes control it while it runs."""

import time
from pathlib import Path

from raycap.storage import whole_file

CAPTIONER = "captioner"
STOP = "stop"  # a file of this name asks a run to save and stop
SECONDS_BETWEEN_LOOKS = 0.05


class EpochLimit:
    """Lets another process decide before each epoch whether a run may train it; a sweep does.

    A file in the run's folder holds how many epochs the run may train in all; the run deletes it
    when it has trained so many, with everything saved, and waits for the next. `token` is new for
    each start of the run: a worker of a killed start, which may live a little longer, must not use
    up what the next start is allowed.
    """

    def __init__(self, out: Path, token: str) -> None:
        self.token = token
        self._file = out / f"epochs-{token}"

    def allow(self, epochs: int) -> None:
        """Let the run train until it has done this many epochs."""
        with whole_file(self._file) as file:
            file.write(str(epochs))

    def remove(self) -> None:
        """Clean up when nobody leads the run any more."""
        self._file.unlink(missing_ok=True)

    def is_reached(self) -> bool:
        """Whether the run has trained what it was allowed to, has saved everything, and waits."""
        return not self._file.exists()

    def wait(self, epochs_done: int, stop: Path) -> None:
        """Return when the run, which has done so many epochs, may train another, or when the file
        `stop` exists."""
        while not stop.exists():
            try:
                if int(self._file.read_text(encoding="utf-8")) > epochs_done:
                    return
                self._file.unlink()
            except FileNotFoundError:
                time.sleep(SECONDS_BETWEEN_LOOKS)
