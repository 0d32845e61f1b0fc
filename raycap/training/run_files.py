"""Files in a run's folder that others read or write while it runs: its log, and what controls it.

metrics.jsonl has a line for every event of the run, validation.jsonl one for every validation
picture of the epoch that is kept. All that shows a run reads these.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raycap.run_log import METRICS as METRICS
from raycap.run_log import PICTURES as PICTURES
from raycap.run_log import read_epochs as read_epochs
from raycap.run_log import read_log as read_log
from raycap.storage import whole_file

CAPTIONER = "captioner"
STOP = "stop"  # a file of this name asks a run to save and stop
SECONDS_BETWEEN_LOOKS = 0.05


class RunLog:
    """metrics.jsonl and validation.jsonl; only the leading worker writes them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; readers see it whole or not at all."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def write_pictures(
        self, pictures: Iterable[dict[str, Any]], attention: Iterable[dict[str, Any]]
    ) -> None:
        """Write the captions of all validation pictures, and for some where the decoder looked for
        each word."""
        looked = {each["key"]: each for each in attention}
        with whole_file(self.path.with_name(PICTURES)) as file:
            for picture in pictures:
                line = picture | looked.get(picture["key"], {})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the lines after the checkpoint that the run continues from: they will be written
        again."""
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        with whole_file(self.path) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)


class LogReader:
    """Reads a log while another process writes it. When a worker was lost, lines may disappear and
    come again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = len(read_log(path))  # an earlier start of the run has shown these

    def new_lines(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        lines = read_log(self.path)
        new = lines[min(self._seen, len(lines)) :]
        self._seen = len(lines)
        return new


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
        part = self._file.with_name(".epochs.part")
        part.write_text(str(epochs), encoding="utf-8")
        part.replace(self._file)

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
