"""metrics.jsonl, what happened in a run, and validation.jsonl, what the captioner that is kept says: a line each.
Everything that shows a run reads them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raycap.runs import whole_file

METRICS = "metrics.jsonl"
# Every validation picture of the epoch that is kept, a line each: a table of captions like any other.
PICTURES = "validation.jsonl"


class Journal:
    """Written by the leader only."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def add(self, line: dict[str, Any]) -> None:
        """A whole line or none, for whoever reads along."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def show(self, pictures: Iterable[dict[str, Any]], maps: Iterable[dict[str, Any]]) -> None:
        """Keep the captions of the validation pictures, and of some what was looked at for each word."""
        more = {each["key"]: each for each in maps}
        with whole_file(self.path.with_name(PICTURES)) as file:
            for picture in pictures:
                file.write(json.dumps(picture | more.get(picture["key"], {}), ensure_ascii=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop what was noted after the checkpoint that the run goes on from: it will happen again."""
        kept = [line for line in lines(self.path) if line["step"] <= step]
        with whole_file(self.path) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)


class Reader:
    """Reads along while another process writes. After a worker was lost, lines may be taken back and come anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = sum(1 for _ in lines(path))  # what an earlier start of the run has shown

    def new(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        found = lines(self.path)
        self._seen = min(self._seen, len(found))
        new, self._seen = found[self._seen :], len(found)
        return new


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal so far; a killed run may have left half of one at the end."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole if line]


def epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of finished epochs."""
    return [line for line in lines(path) if line["kind"] == "epoch"]
