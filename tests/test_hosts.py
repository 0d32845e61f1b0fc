"""Counts by host: right, mergeable in any order, and bounded."""

import math
import pickle
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raycap.fetch.hosts import (
    FETCHED,
    MOST_HOSTS,
    MOST_REASONS,
    NO_HOST,
    OTHER_HOSTS,
    HostCounts,
    host_lines,
)
from raycap.schema import FAILED_TO_FETCH, SUCCESS

SCHEMA = pa.schema(
    [("uri", pa.string()), ("status", pa.string()), ("error_message", pa.string()), FETCHED]
)


def row(
    uri: str, error: str = "", size: int = 1000, requests: int = 1, seconds: float = 0.25
) -> dict[str, Any]:
    took = {"bytes": size, "requests": requests, "seconds": seconds} if requests else None
    return {
        "uri": uri,
        "status": FAILED_TO_FETCH if error else SUCCESS,
        "error_message": error,
        FETCHED.name: took,
    }


def counted(*rows: dict[str, Any]) -> HostCounts:
    counts = HostCounts()
    counts.add_rows(pa.Table.from_pylist(list(rows), SCHEMA))
    return counts


def test_rows_are_counted_by_the_host_of_their_address() -> None:
    report = counted(
        row("http://A.example/1.jpg", seconds=0.1),
        row("https://user:secret@a.example:8443/2.jpg?token=hunter2", seconds=0.1, requests=3),
        row("http://a.example/3.jpg", "HTTP 404 Not Found", size=0, seconds=5.0),
        row("http://b.example/1.jpg", size=5_000_000),
        row(
            "HTTP://c.example/1.jpg", "refused: 10.0.0.1 is a private address", size=0, requests=0
        ),
        row("/local/file.jpg"),
        row("s3://bucket/key.jpg"),
        row(
            "http://[broken/",
            "not a URL: its host or port cannot be understood",
            requests=0,
            size=0,
        ),
    ).report()
    by_host = {host.pop("host"): host for host in report}
    assert list(by_host) == ["a.example", NO_HOST, "c.example", "b.example"]
    a = by_host["a.example"]
    assert (a["rows"], a["failed"], a["requests"], a["bytes"]) == (3, 1, 5, 2000)
    assert a["reasons"] == {"HTTP 404 Not Found": 1}
    assert 0.09 < a["median_seconds"] < 0.11 and a["slowest_seconds"] == 5.0
    assert by_host["c.example"]["reasons"] == {"refused": 1}


def test_tables_without_the_column_and_batches_are_taken() -> None:
    counts = HostCounts()
    counts.add_rows(
        pa.table({"uri": ["http://a.example/"], "status": [SUCCESS], "error_message": [""]})
    )
    assert counts.report() == []
    [batch] = pa.Table.from_pylist([row("http://a.example/")], SCHEMA).to_batches()
    counts.add_rows(batch)
    assert counts.report()[0]["rows"] == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["", "x", "y"]), st.floats(0.001, 100.0)
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_parts_add_up_to_the_whole(rows: list[tuple[str, str, float]], middle: int) -> None:
    made = [
        row(f"http://{host}.example/", error, seconds=seconds) for host, error, seconds in rows
    ]
    parts = counted(*made[:middle])
    parts.add(pickle.loads(pickle.dumps(counted(*made[middle:]))))
    assert parts.report() == counted(*made).report()
    for host in parts.report():
        own = sorted(seconds for name, _, seconds in rows if f"{name}.example" == host["host"])
        true_median = own[(len(own) - 1) // 2]
        assert math.isclose(host["median_seconds"], true_median, rel_tol=0.11, abs_tol=0.001)


def test_a_million_hosts_and_reasons_stay_few_and_no_row_is_lost() -> None:
    counts = HostCounts()
    for block in range(30):
        rows = [
            row(f"http://host{block}-{number}.example/", f"reason {block}")
            for number in range(100)
        ]
        counts.add(
            counted(
                *rows, *[row("http://large.example/", f"reason {block} {n}") for n in range(5)]
            )
        )
        assert len(counts.hosts) <= 2 * MOST_HOSTS + 1
    report = {host["host"]: host for host in counts.report()}
    assert sum(host["rows"] for host in report.values()) == 30 * 105
    assert report["large.example"]["rows"] == 150
    assert OTHER_HOSTS in report
    assert all(len(host["reasons"]) <= MOST_REASONS + 1 for host in report.values())
    assert all(sum(host["reasons"].values()) == host["failed"] for host in report.values())


def test_the_lines_about_hosts() -> None:
    # One host, and nothing went wrong.
    assert host_lines(counted(row("http://a.example/")).report(), 5) == []
    assert host_lines([], 5) == []
    lines = host_lines(counted(row("http://a.example/", "HTTP 404 Not Found", size=0)).report(), 5)
    assert lines == [
        "hosts (1; most failures first, then most bytes):",
        "  a.example: 1 row, 1 failed, 1 request, 0.0 MB, median 0.25 s, slowest 0.25 s; "
        "1 HTTP 404 Not Found",
    ]
    many = [row(f"http://{number}.example/", "evil\x1b[2J") for number in range(9)]
    lines = host_lines(counted(*many).report(), 5)
    assert (
        len(lines) == 6
        and lines[0].startswith("hosts (9, 5 shown;")
        and "\x1b" not in "".join(lines)
    )
