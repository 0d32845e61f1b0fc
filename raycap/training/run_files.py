"""Files in the folder of a training run, with which other processes stop it or limit its
epochs."""

import time
from pathlib import Path

from raycap.storage import whole_file

CAPTIONER = "captioner"
STOP = "stop"  # a file of this name asks a run to save and stop
SECONDS_BETWEEN_LOOKS = 0.05


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

    def wait(self, epochs_done: int, stop: Path) -> None:
        """Called by the run: returns when it may train more than `epochs_done` epochs, or when the
        file `stop` exists."""
        while not stop.exists():
            try:
                if int(self._file.read_text(encoding="utf-8")) > epochs_done:
                    return
                self._file.unlink()
            except FileNotFoundError:
                time.sleep(SECONDS_BETWEEN_LOOKS)
