"""Notes of a source: what it left out while it listed its rows, and oddities that cost nothing.

Example: three lines of a table with a million lines are malformed. They have no key, so they
cannot become failed rows. The source notes each. The run prints and records "3 malformed lines
left out (pairs.csv line 17: ...)" and ends with exit code 1: three pictures have no row.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raycap.sources.manifest import utf8

MOST_EXAMPLES = 3
LONGEST_EXAMPLE = 300  # characters; names and lines may be of any length


class NoteKind(NamedTuple):
    """One kind of thing that is counted."""

    one: str
    many: str
    costs_rows: bool  # whether pictures may be missing from the rows because of it


MALFORMED_LINE = NoteKind("malformed line left out", "malformed lines left out", True)
UNLISTED_FOLDER = NoteKind("folder could not be listed", "folders could not be listed", True)
DAMAGED_ROW = NoteKind(
    "row left out: that part of the file is damaged",
    "rows left out: those parts of the files are damaged",
    True,
)
DAMAGED_TAR = NoteKind(
    "tar is damaged or cut: what follows there is left out",
    "tars are damaged or cut: what follows there is left out",
    True,
)
UNUSABLE_FILE = NoteKind("file of rows left out", "files of rows left out", True)
CHANGED_FILE = NoteKind(
    "part of a file left out, which changed while it was listed: run the command again",
    "parts of files left out, which changed while they were listed: run the command again",
    True,
)
NAMELESS = NoteKind(
    "picture without a file name left out", "pictures without a file name left out", True
)

LINK = NoteKind(
    "link left out: it leads to a folder, nowhere or out of the root",
    "links left out: they lead to folders, nowhere or out of the root",
    False,
)
REPAIRED_LINE = NoteKind(
    "line with a lost bar was repaired", "lines with a lost bar were repaired", False
)
# Rows come from the picture folder too, so such a line costs a caption, not a row.
MALFORMED_CAPTION = NoteKind("malformed line was left out", "malformed lines were left out", False)
UNUSABLE_CAPTION = NoteKind(
    "caption that is no text was left out", "captions that are no text were left out", False
)
MISSING = NoteKind("picture that is not there", "pictures that are not there", False)
UNCAPTIONED = NoteKind("picture without captions", "pictures without captions", False)
UNPICTURED = NoteKind(
    "sample without a picture left out", "samples without a picture left out", False
)
UNKNOWN = NoteKind(
    "picture of the split files has no caption",
    "pictures of the split files have no caption",
    False,
)


# What may be readable at another time, though no file has changed.
_MAY_PASS = {
    word
    for kind in (UNLISTED_FOLDER, DAMAGED_ROW, DAMAGED_TAR, UNUSABLE_FILE, CHANGED_FILE)
    for word in (kind.one, kind.many)
}


class Example(NamedTuple):
    text: str
    file: str = ""
    line: int = 0  # of the file; 0 if the example is no line

    def __str__(self) -> str:
        place = f"{self.file} line {self.line}: " if self.line else ""
        return utf8(place + self.text)[:LONGEST_EXAMPLE]


@dataclass
class Notes:
    """Counts by kind, each with its first examples; filled while a source lists its rows."""

    lines_read: int = 0  # of text in what was listed last: a file, or a part of one
    _counts: dict[NoteKind, int] = field(default_factory=dict)
    _examples: dict[NoteKind, list[Example]] = field(default_factory=dict)
    _remarks: list[str] = field(default_factory=list)

    def add(self, kind: NoteKind, example: str, count: int = 1) -> None:
        self._add(kind, Example(utf8(example)[:LONGEST_EXAMPLE]), count)

    def add_line(self, kind: NoteKind, file: str, line: int, why: str) -> None:
        """Adds a line of a file. In a part of a file, lines are counted from where it begins: see
        `from_plain`."""
        self._add(kind, Example(utf8(why)[:LONGEST_EXAMPLE], utf8(file), line), 1)

    def _add(self, kind: NoteKind, example: Example, count: int) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + count
        examples = self._examples.setdefault(kind, [])
        if len(examples) < MOST_EXAMPLES:
            examples.append(example)

    def clear(self) -> None:
        self.lines_read = 0
        self._counts.clear()
        self._examples.clear()
        self._remarks.clear()

    def remark(self, line: str) -> None:
        """Adds a line for the report about something else that cost no row."""
        self._remarks.append(utf8(line))

    def count(self, kind: NoteKind) -> int:
        return self._counts.get(kind, 0)

    def left_out(self) -> list[dict[str, Any]]:
        """Returns what may be pictures without a row: {"count": 3, "what": "...", ...}."""
        return [self._plain(kind) for kind in self._counts if kind.costs_rows]

    def remarks(self) -> list[str]:
        """Returns oddities that cost no row, as lines for a report."""
        return [
            *(line_of(self._plain(kind)) for kind in self._counts if not kind.costs_rows),
            *self._remarks,
        ]

    def lines(self) -> list[str]:
        """Returns everything, as lines for a report."""
        return [*map(line_of, self.left_out()), *self.remarks()]

    def to_json(self) -> str:
        """Returns everything as JSON, to be sent to the driver."""
        found: dict[str, Any] = {"left_out": self.left_out(), "notes": self.remarks()}
        if self.lines_read:
            found["lines"] = self.lines_read
        return json.dumps(found)

    def to_plain(self) -> dict[str, Any]:
        """Returns everything, for `from_plain`."""
        kinds = [[kind, count, self._examples[kind]] for kind, count in self._counts.items()]
        return {"lines": self.lines_read, "kinds": kinds, "remarks": self._remarks}

    @classmethod
    def from_plain(cls, plain: dict[str, Any], lines_before: int) -> "Notes":
        """Returns the notes of a part of a file, before which the file has so many lines."""
        notes = cls(lines_read=plain["lines"], _remarks=list(plain["remarks"]))
        for kind, count, examples in plain["kinds"]:
            notes._counts[NoteKind(*kind)] = count
            notes._examples[NoteKind(*kind)] = [
                Example(text, file, line and line + lines_before) for text, file, line in examples
            ]
        return notes

    def _plain(self, kind: NoteKind) -> dict[str, Any]:
        count = self._counts[kind]
        return {
            "count": count,
            "what": kind.one if count == 1 else kind.many,
            "examples": [str(example) for example in self._examples[kind]],
        }


def may_be_there_now(left_out: Sequence[dict[str, Any]]) -> bool:
    """Whether a source may give what it left out if it is listed again, though its files are the
    same: the disk or the network may have failed."""
    return any(counted["what"] in _MAY_PASS for counted in left_out)


def line_of(counted: dict[str, Any]) -> str:
    """Formats one of `Notes.left_out`: "2 malformed lines left out (a.csv line 5: ..., ...)"."""
    more = ", ..." if counted["count"] > len(counted["examples"]) else ""
    return f"{counted['count']:,} {counted['what']} ({', '.join(counted['examples'])}{more})"


def nothing(reason: str, notes: Notes) -> str:
    """Says why a source has no rows: the reason, and what was left out."""
    return "; ".join([reason, *map(line_of, notes.left_out())])
