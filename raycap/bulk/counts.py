"""Rows by status, and why rows failed: of a file, of a run, of a whole table."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from raycap.fetch.hosts import HostCounts
from raycap.schema import SUCCESS

# The most reasons that are counted separately. A million dead hosts must not each take memory.
MOST_REASONS = 200
OTHER_REASONS = "other reasons"
# A captioner may have flags of its own, but not without end.
MOST_FLAGS, OTHER_FLAGS = 50, "other_flags"
LONGEST_REASON = 200
# What differs between rows that fail for the same reason: addresses, host names and sizes.
_OF_ONE_ROW = re.compile(
    r"(?<![\w.-])\w[\w-]*(?:\.[\w-]+)*\.[a-z]{2,}\b|\b\d+(?:\.\d+){3}\b|\d{4,}|\d+(?:,\d{3})+"
)
# How the reason begins where one of several prompts failed.
_PROMPT = re.compile(r"prompt \w+: ")


@dataclass
class RowCounts:
    """Rows by status and by flag, why rows failed, and which worker made them where that is
    known."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    makers: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0  # rows with any flag
    hosts: HostCounts = field(default_factory=HostCounts)  # of rows made in this run

    @property
    def rows(self) -> int:
        return self.statuses.total()

    @property
    def failed(self) -> int:
        return self.rows - self.statuses[SUCCESS]

    def add(self, other: "RowCounts") -> None:
        self.statuses += other.statuses
        self.makers += other.makers
        self.hosts.add(other.hosts)
        self.flagged += other.flagged
        for flag, rows in other.flags.items():
            is_known = flag in self.flags or len(self.flags) < MOST_FLAGS
            self.flags[flag if is_known else OTHER_FLAGS] += rows
        for (status, reason), rows in other.reasons.items():
            is_known = (status, reason) in self.reasons
            if not is_known and len(self.reasons) >= MOST_REASONS:
                reason = OTHER_REASONS
            self.reasons[status, reason] += rows

    def to_json(self) -> str:
        """Statuses, reasons and flags, for the metadata of a file."""
        reasons = [[*reason, rows] for reason, rows in self.reasons.items()]
        found: dict[str, Any] = {"statuses": dict(self.statuses), "reasons": reasons}
        if self.flagged:
            found |= {"flags": dict(self.flags), "flagged": self.flagged}
        return json.dumps(found)

    @classmethod
    def from_json(cls, text: str | bytes) -> "RowCounts":
        data = json.loads(text)
        reasons = Counter({(status, reason): rows for status, reason, rows in data["reasons"]})
        flags = Counter(data.get("flags", {}))
        counts = Counter(data["statuses"])
        return cls(counts, reasons, flags=flags, flagged=data.get("flagged", 0))


def count_rows(rows: Any) -> RowCounts:
    """The statuses, flags and reasons of a table or batch."""
    counts = RowCounts()
    statuses = pc.value_counts(rows["status"])
    counts.statuses = Counter({item["values"]: item["counts"] for item in statuses.to_pylist()})
    counts.hosts.add_rows(rows)
    if "flags" in rows.schema.names:
        flags = pc.value_counts(pc.list_flatten(rows["flags"]))
        found = {item["values"]: item["counts"] for item in flags.to_pylist()}
        lengths = pc.list_value_length(rows["flags"])
        flagged = pc.sum(pc.greater(lengths, 0)).as_py() or 0
        counts.add(RowCounts(flags=Counter(found), flagged=flagged))
    if counts.failed:
        bad = rows.filter(pc.not_equal(rows["status"], SUCCESS))
        pairs = zip(bad["status"].to_pylist(), bad["error_message"].to_pylist(), strict=True)
        reasons = Counter((status, reason_head(reason)) for status, reason in pairs)
        counts.add(RowCounts(reasons=reasons))
    return counts


def reason_head(reason: str) -> str:
    """What the same fault has in common in all rows: everything up to the first colon, without
    host names and large numbers. The name of a prompt and the fault of it belong together."""
    prompt = _PROMPT.match(reason)
    start = prompt[0] if prompt else ""
    head = start + reason[len(start) :].partition(":")[0]
    return _OF_ONE_ROW.sub("...", head)[:LONGEST_REASON]
