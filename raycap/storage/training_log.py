"""The log of a training run. Progress bars, reports and sweeps read it.

metrics.jsonl has a line for each logged step, epoch and set of samples. validation.jsonl has a
line for each validation picture, from the best epoch.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raycap.storage.files import whole_file

METRICS = "metrics.jsonl"
PICTURES = "validation.jsonl"


class RunLog:
    """Writes metrics.jsonl and validation.jsonl. Only the leader of the workers does so."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def add(self, line: dict[str, Any]) -> None:
        """Append a line. `read_log` ignores a line that is not complete."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def write_pictures(
        self, pictures: Iterable[dict[str, Any]], attention: Iterable[dict[str, Any]]
    ) -> None:
        """Write the captions of all validation pictures, and the attention maps of some."""
        looked = {each["key"]: each for each in attention}
        with whole_file(self.path.with_name(PICTURES)) as file:
            for picture in pictures:
                line = picture | looked.get(picture["key"], {})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the lines after this step. The run continues from there and writes them again."""
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        with whole_file(self.path) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)


class LogReader:
    """Reads a log while another process writes it. After a worker was lost, lines may be deleted
    and written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = len(read_log(path))  # lines of an earlier start of the run

    def new_lines(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        lines = read_log(self.path)
        new = lines[min(self._seen, len(lines)) :]
        self._seen = len(lines)
        return new


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines. A killed run may have left an incomplete one at the end."""
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete if line]


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of finished epochs."""
    return [line for line in read_log(path) if line["kind"] == "epoch"]
