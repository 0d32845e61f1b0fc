"""Counts rows, failures, requests and seconds by web server, in bounded memory.

Example: a list of a million URLs has 40,000 hosts. The 500 with the most rows are counted each on
its own, all others together. A host may move between the two, so its count is a lower bound.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from raycap.schema import SUCCESS
from raycap.sources.manifest import counted
from raycap.terminal import printable

# A column of decoded pictures, for this count only. Null where nothing was fetched.
FETCHED = pa.field(
    "_fetched",
    pa.struct([("bytes", pa.int64()), ("requests", pa.int32()), ("seconds", pa.float32())]),
)
MOST_HOSTS = 500
MOST_REASONS = 8  # of one host
OTHER_HOSTS = "(other hosts)"
NO_HOST = "(no host)"
OTHER_REASONS = "(other reasons)"
_BUCKETS_PER_OCTAVE = 4  # of seconds, so a median is right within 10 percent


@dataclass
class Host:
    """Rows of one host. Seconds are those of requests, without waits for limits and retries."""

    rows: int = 0
    failed: int = 0
    requests: int = 0
    bytes: int = 0
    slowest: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: Counter[int] = field(default_factory=Counter)  # rows by bucket, see `_bucket`

    def add(self, other: "Host") -> None:
        self.rows += other.rows
        self.failed += other.failed
        self.requests += other.requests
        self.bytes += other.bytes
        self.slowest = max(self.slowest, other.slowest)
        self.seconds.update(other.seconds)
        for reason, rows in other.reasons.items():
            self.fail(reason, rows)

    def fail(self, reason: str, rows: int = 1) -> None:
        known = reason in self.reasons or len(self.reasons) < MOST_REASONS
        self.reasons[reason if known else OTHER_REASONS] += rows

    def median(self) -> float:
        """Returns the seconds that half of the rows took at most."""
        so_far = 0
        for bucket, rows in sorted(self.seconds.items()):
            so_far += rows
            if 2 * so_far >= self.seconds.total():
                return float(min(self.slowest, 2.0 ** ((bucket + 0.5) / _BUCKETS_PER_OCTAVE)))
        return 0.0


@dataclass
class HostCounts:
    """Counts for each host; they can be added over tables, tasks and runs."""

    hosts: dict[str, Host] = field(default_factory=dict)

    def add_rows(self, table: Any) -> None:
        """Counts the rows of a table (or batch) of decoded pictures that have web addresses."""
        if FETCHED.name not in table.schema.names:
            return
        columns = ["uri", "status", "error_message", FETCHED.name]
        web = pc.match_substring_regex(table["uri"], "^https?://", ignore_case=True)
        for row in table.select(columns).filter(web).to_pylist():
            host = self.hosts.setdefault(_host_of(row["uri"]), Host())
            took = row[FETCHED.name] or {"bytes": 0, "requests": 0, "seconds": 0.0}
            host.rows += 1
            host.requests += took["requests"]
            host.bytes += took["bytes"]
            if took["requests"]:
                host.slowest = max(host.slowest, took["seconds"])
                host.seconds[_bucket(took["seconds"])] += 1
            if row["status"] != SUCCESS:
                host.failed += 1
                host.fail(row["error_message"].partition(":")[0])
        self._forget_small_ones()

    def add(self, other: "HostCounts") -> None:
        for name, host in other.hosts.items():
            self.hosts.setdefault(name, Host()).add(host)
        self._forget_small_ones()

    def report(self) -> list[dict[str, Any]]:
        """Returns every host that was counted on its own, most failures first, as plain data."""
        ordered = sorted(
            self.hosts.items(), key=lambda item: (-item[1].failed, -item[1].bytes, item[0])
        )
        return [
            {
                "host": name,
                "rows": host.rows,
                "failed": host.failed,
                "requests": host.requests,
                "bytes": host.bytes,
                "median_seconds": round(host.median(), 3),
                "slowest_seconds": round(host.slowest, 3),
                "reasons": dict(host.reasons.most_common()),
            }
            for name, host in ordered
        ]

    def _forget_small_ones(self) -> None:
        """Keeps up to twice MOST_HOSTS, so that this is rare."""
        if len(self.hosts) <= 2 * MOST_HOSTS:
            return
        others = self.hosts.pop(OTHER_HOSTS, Host())
        by_rows = sorted(self.hosts, key=lambda name: -self.hosts[name].rows)
        for name in by_rows[MOST_HOSTS:]:
            others.add(self.hosts.pop(name))
        self.hosts[OTHER_HOSTS] = others


def host_lines(report: Iterable[dict[str, Any]], most: int) -> list[str]:
    """Returns up to `most` hosts of a report as text; nothing for one host without failures."""
    hosts = list(report)
    if len(hosts) < 2 and not any(host["failed"] for host in hosts):
        return []
    shown = f", {most} shown" if len(hosts) > most else ""
    lines = [f"hosts ({len(hosts):,}{shown}; most failures first, then most bytes):"]
    for host in hosts[:most]:
        reasons = sorted(host["reasons"].items(), key=lambda item: -item[1])[:2]
        why = "".join(f"; {rows:,} {printable(reason)}" for reason, rows in reasons)
        lines.append(
            f"  {printable(host['host'])}: {counted(host['rows'], 'row', 'rows')}, "
            f"{host['failed']:,} failed, {counted(host['requests'], 'request', 'requests')}, "
            f"{host['bytes'] / 1e6:,.1f} MB, median {host['median_seconds']:.2f} s, slowest "
            f"{host['slowest_seconds']:.2f} s{why}"
        )
    return lines


def _host_of(uri: str) -> str:
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:
        host = ""
    return host if 0 < len(host) <= 253 else NO_HOST


def _bucket(seconds: float) -> int:
    return math.floor(_BUCKETS_PER_OCTAVE * math.log2(max(seconds, 1e-4)))
