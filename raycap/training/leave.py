"""Epoch by epoch: a run that another process leads begins an epoch only when that one has given leave."""

import time
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05


class Leave:
    """A file in the run's folder. It holds how many epochs the run may have trained, and is gone once they are.

    `token` is another for each start of the run: a worker of a killed start, which may live a little longer, must
    not use up what is given to the next.
    """

    def __init__(self, out: Path, token: str) -> None:
        self._file = out / f"leave-{token}"

    def give(self, epochs: int) -> None:
        """Let the run train until it has done so many."""
        beside = self._file.with_name(".leave.part")
        beside.write_text(str(epochs), encoding="utf-8")
        beside.replace(self._file)

    def take_back(self) -> None:
        """Nobody leads the run any more."""
        self._file.unlink(missing_ok=True)

    def is_used(self) -> bool:
        """Whether the run has done what it was given, with everything saved, and waits."""
        return not self._file.exists()

    def wait(self, epochs: int, stop: Path) -> None:
        """Return when the run, which has done so many, may begin another, or when the file `stop` is there."""
        while not stop.exists():
            try:
                if int(self._file.read_text(encoding="utf-8")) > epochs:
                    return
                self._file.unlink()
            except FileNotFoundError:
                time.sleep(SECONDS_BETWEEN_LOOKS)
