"""Counts what the pictures of a source are, in flat memory, and reports it as JSON and text."""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from raycap.fetch.hosts import HostCounts, host_lines
from raycap.schema import SUCCESS
from raycap.sources.notes import line_of
from raycap.terminal import printable

# The longer side in pixels; a picture counts for the last of these that it reaches.
SIDES = (1, 64, 256, 512, 1024, 2048, 4096, 8192)
# Splits, formats and reasons are few. A wrong column must not fill the memory.
MOST_NAMES = 1000
OTHERS = "(others)"
MOST_HOSTS_SHOWN = 10


class Inspection:
    """Counts over tables of decoded pictures (see `bulk.pictures.open_pictures`)."""

    def __init__(self, examples: int) -> None:
        self._most_examples = examples
        self.rows = self.failed = self.captions = 0
        self._splits, self._formats, self._statuses = Tally(), Tally(), Tally()
        self._captions_per_picture, self._sides = Tally(), Tally()
        self._reasons: dict[str, Tally] = defaultdict(Tally)
        self._reason_examples: dict[tuple[str, str], list[str]] = {}
        self._hosts = HostCounts()
        self._copies = Copies()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._copies.close()

    def add(self, table: pa.Table) -> list[dict[str, Any]]:
        """Counts the rows; returns those that failed."""
        self._hosts.add_rows(table)
        rows = table.drop_columns(["references"]).to_pylist()
        for row, references in zip(rows, table["references"].to_pylist(), strict=True):
            self.rows += 1
            self.captions += len(references)
            self._captions_per_picture.add(len(references))
            self._splits.add(row["split"])
            self._statuses.add(row["status"])
            if row["format"]:
                self._formats.add(row["format"])
            if row["status"] == SUCCESS:
                longer = max(row["width"], row["height"])
                self._sides.add(max(side for side in SIDES if side <= longer))
        failed = [row for row in rows if row["status"] != SUCCESS]
        for row in failed:
            self._add_failed(row)
        self._copies.add((row["sha256"], row["key"]) for row in rows if row["sha256"])
        return failed

    def _add_failed(self, row: dict[str, Any]) -> None:
        self.failed += 1
        # Without the file: "no such file" is one reason, not thousands.
        reason = row["error_message"].removesuffix(f": {row['uri']}")
        reason = self._reasons[row["status"]].add(reason)
        examples = self._reason_examples.setdefault((row["status"], reason), [])
        if len(examples) < self._most_examples:
            examples.append(row["key"])

    def report(self) -> dict[str, Any]:
        """Returns all counts as plain data, the most frequent first."""
        reasons = [
            {
                "status": status,
                "reason": reason,
                "rows": rows,
                "examples": self._reason_examples[status, reason],
            }
            for status, tally in self._reasons.items()
            for reason, rows in tally.items()
        ]
        return {
            "rows": self.rows,
            "readable": self.rows - self.failed,
            "failed": self.failed,
            "statuses": dict(self._statuses.items()),
            "reasons": sorted(reasons, key=lambda reason: -reason["rows"]),
            "splits": dict(self._splits.items()),
            "captions": self.captions,
            "captions_per_picture": {
                str(count): rows for count, rows in sorted(self._captions_per_picture.items())
            },
            "formats": dict(self._formats.items()),
            "longer_side": {_side_name(side): rows for side, rows in sorted(self._sides.items())},
            "copies": self._copies.report(self._most_examples),
            "hosts": self._hosts.report(),
        }


class Tally:
    """Counts names; when there are too many, new ones are counted as OTHERS."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()

    def add(self, name: Any) -> Any:
        """Counts a name; returns the name that it was counted as."""
        if name not in self._counts and len(self._counts) >= MOST_NAMES:
            name = OTHERS
        self._counts[name] += 1
        return name

    def items(self) -> list[tuple[Any, int]]:
        return self._counts.most_common()


class Copies:
    """Finds pictures with the same bytes under several keys.

    Digests are kept in 256 files on disk, one for each first byte, and compared file by file at
    the end. So only one of them is in memory at a time.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raycap-copies-")

    def add(self, pictures: Iterator[tuple[str, str]]) -> None:
        lines: dict[str, list[str]] = defaultdict(list)
        for digest, key in pictures:
            lines[digest[:2]].append(json.dumps([digest, key]) + "\n")
        for first_byte, batch in lines.items():
            with (Path(self._folder.name) / first_byte).open("a", encoding="utf-8") as file:
                file.writelines(batch)

    def report(self, most_examples: int) -> dict[str, Any]:
        """Returns how many pictures are copies, and examples of keys with the same bytes."""
        copies = groups = 0
        examples: list[list[str]] = []
        for file in sorted(Path(self._folder.name).iterdir()):
            keys: dict[str, list[str]] = defaultdict(list)
            counts: Counter[str] = Counter()
            with file.open(encoding="utf-8") as lines:
                for digest, key in map(json.loads, lines):
                    counts[digest] += 1
                    if len(keys[digest]) < most_examples:
                        keys[digest].append(key)
            copied = [digest for digest, count in counts.items() if count > 1]
            groups += len(copied)
            copies += sum(counts[digest] - 1 for digest in copied)
            examples += [
                keys[digest] for digest in copied[: max(0, most_examples - len(examples))]
            ]
        return {"pictures": copies, "groups": groups, "examples": examples}

    def close(self) -> None:
        self._folder.cleanup()


def _side_name(side: int) -> str:
    later = [bound for bound in SIDES if bound > side]
    return f"{side}-{later[0] - 1}" if later else f"{side}+"


def as_text(report: dict[str, Any]) -> str:
    """Formats the report for people."""
    lines = [
        f"{report['rows']:,} rows, {report['readable']:,} readable, {report['failed']:,} failed"
    ]
    if any(report["splits"]):
        lines += _bars(
            "splits", {name or "(none)": rows for name, rows in report["splits"].items()}
        )
    lines += _bars("formats", report["formats"])
    lines += _bars("longer side, pixels", report["longer_side"])
    if report["captions"]:
        lines += _bars(
            f"captions per picture ({report['captions']:,} in all)", report["captions_per_picture"]
        )
    copies = report["copies"]
    lines += [
        "",
        f"copies (same bytes under another key): {copies['pictures']:,} "
        f"in {copies['groups']:,} groups",
    ]
    lines += [f"  {_names(keys)}" for keys in copies["examples"]]
    if report["reasons"]:
        lines += ["", "cannot be read:"]
    for reason in report["reasons"]:
        lines += [f"  {reason['rows']:>9,}  {reason['status']}: {printable(reason['reason'])}"]
        lines += [f"             {_names(reason['examples'])}"]
    if report.get("left_out"):
        lines += [
            "",
            "left out, without a row:",
            *(f"  {line_of(item)}" for item in report["left_out"]),
        ]
    if hosts := host_lines(report["hosts"], MOST_HOSTS_SHOWN):
        lines += ["", *hosts]
    if report["notes"]:
        lines += [
            "",
            "noted in the source:",
            *(f"  {printable(note)}" for note in report["notes"]),
        ]
    return "\n".join(lines) + "\n"


def _bars(title: str, counts: dict[str, int]) -> list[str]:
    """A histogram of bars; nothing without counts."""
    if not counts:
        return []
    most, name_width = max(counts.values()), max(len(printable(name)) for name in counts)
    bars = [
        f"  {printable(name):<{name_width}}  {rows:>9,}  {'█' * round(30 * rows / most)}".rstrip()
        for name, rows in counts.items()
    ]
    return ["", f"{title}:", *bars]


def _names(keys: Sequence[str]) -> str:
    return ", ".join(printable(key) for key in keys)
