"""The log of a training run. Progress bars, reports and sweeps read it.

metrics.jsonl has a line for each logged step, epoch and set of samples. validation.jsonl has a
line for each validation picture, from the best epoch.
"""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from raycap.storage.files import whole_file
from raycap.storage.folder import RunFolder

METRICS = "metrics.jsonl"
PICTURES = "validation.jsonl"
# Nothing can be appended to an object of a store: the whole log is written again, not more often.
SECONDS_BETWEEN_WRITES = 5.0


class RunLog:
    """Writes metrics.jsonl and validation.jsonl. Only the leader of the workers does so.

    `check` is called before each write. It raises an error if another process writes there now.
    """

    def __init__(self, folder: RunFolder, check: Callable[[], None] = lambda: None) -> None:
        self._folder, self._check = folder, check
        self._local = Path(folder.path(METRICS)) if folder.is_local else None
        self._lines: list[str] = []  # all lines, if the folder is in a store
        self._is_behind = False
        self._written = time.monotonic()

    def add(self, line: dict[str, Any]) -> None:
        """Append a line. `read_log` ignores a line that is not complete."""
        text = json.dumps(line, ensure_ascii=False) + "\n"
        if self._local is not None:
            self._check()
            with self._local.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        self._lines.append(text)
        self._is_behind = True
        is_due = time.monotonic() > self._written + SECONDS_BETWEEN_WRITES
        if is_due or line["kind"] == "epoch":
            self.flush()

    def flush(self) -> None:
        """Write what is not in the store yet. A checkpoint must not be ahead of the log."""
        if self._is_behind:
            self._check()
            self._folder.write(METRICS, "".join(self._lines).encode())
            self._is_behind, self._written = False, time.monotonic()

    def write_pictures(
        self, pictures: Iterable[dict[str, Any]], attention: Iterable[dict[str, Any]]
    ) -> None:
        """Write the captions of all validation pictures, and the attention maps of some."""
        looked = {each["key"]: each for each in attention}
        lines = [
            json.dumps(picture | looked.get(picture["key"], {}), ensure_ascii=False) + "\n"
            for picture in pictures
        ]
        self._check()
        self._folder.write(PICTURES, "".join(lines).encode())

    def forget_after(self, step: int, epochs: int) -> None:
        """Delete the lines after this step, and those about epochs after this number of them. The
        run continues from there and writes them again."""
        # A checkpoint after the last step of an epoch may be older than the epoch's own line.
        kept = [
            json.dumps(line, ensure_ascii=False) + "\n"
            for line in read_log(self._folder / METRICS)
            if line["step"] <= step and not (line["kind"] == "epoch" and line["epoch"] > epochs)
        ]
        self._check()
        if self._local is None:
            self._lines, self._is_behind = kept, True
            self.flush()
            return
        with whole_file(self._local) as file:
            file.writelines(kept)


class LogReader:
    """Reads what is new in a log while another process writes it. After a worker was lost, lines
    may be deleted and written again."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder / METRICS
        self._pause = 0.0 if folder.is_local else SECONDS_BETWEEN_WRITES
        self._seen, self._place = 0, 0  # lines, bytes
        self._last = b""  # the line before this place
        self._next_lines()  # lines of an earlier start of the run

    def new_lines(self, at_once: bool = False) -> list[dict[str, Any]]:
        """The lines since the last call. A store is not asked each time, unless `at_once`."""
        if not at_once and time.monotonic() < self._read + self._pause:
            return []
        return [json.loads(line) for line in self._next_lines() if line]

    def _next_lines(self) -> list[bytes]:
        start = self._place - len(self._last)
        content = _content(self._file, start)
        is_same = content.startswith(self._last)
        if not is_same:
            start, content = 0, _content(self._file)
        content = content[: content.rfind(b"\n") + 1]
        lines = content.split(b"\n")[:-1]
        already = int(bool(self._last)) if is_same else min(self._seen, len(lines))
        new = lines[already:]
        self._seen = self._seen + len(new) if is_same else len(lines)
        self._place, self._read = start + len(content), time.monotonic()
        self._last = lines[-1] + b"\n" if lines else b""
        return new


def read_log(file: Path | RunFolder) -> list[dict[str, Any]]:
    """The complete lines of a file, which may be in a store. A killed run may have left an
    incomplete line at the end."""
    return list(_lines(file))


def read_epochs(file: Path | RunFolder) -> list[dict[str, Any]]:
    """The lines of finished epochs."""
    return [line for line in _lines(file) if line["kind"] == "epoch"]


def _lines(file: Path | RunFolder) -> Iterator[dict[str, Any]]:
    path = _local(file)
    if path is not None and not path.exists():
        return
    with io.BytesIO(_content(file)) if path is None else path.open("rb") as opened:
        for line in opened:
            if line.endswith(b"\n") and line != b"\n":
                yield json.loads(line)


def _content(file: Path | RunFolder, start: int = 0) -> bytes:
    """The bytes from `start` on; none if there is no file."""
    path = _local(file)
    if path is None:
        folder, _, name = str(file).rpartition("/")
        return (RunFolder(folder).read(name) or b"")[start:]
    if not path.exists():
        return b""
    with path.open("rb") as opened:
        opened.seek(start)
        return opened.read()


def _local(file: Path | RunFolder) -> Path | None:
    if isinstance(file, RunFolder):
        return Path(file.path()) if file.is_local else None
    return file
