"""`raycap inspect` on Ray: every row is there, each bad one with its reason; exit codes."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hostile import flips, hostile, jpeg, quadrants, write
from PIL import Image
from server import HTML, serving

from raycap.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


def inspect(
    path: object, out: Path, *flags: str
) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """The exit code, the report and the failed rows."""
    report = out / "report.json"
    code = main(["inspect", str(path), "--out", str(report), *flags])
    failed = out / "report.failed.jsonl"
    rows = (
        [json.loads(line) for line in failed.read_text().splitlines()] if failed.exists() else []
    )
    return code, json.loads(report.read_text()), rows


def test_a_good_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        Image.new("RGB", (300 + number, 200), (number, 0, 0)).save(photos / f"{number}.png")
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    code, report, failed = inspect(photos, tmp_path)
    assert (code, report["rows"], report["failed"], failed) == (0, 6, 0, [])
    assert report["copies"]["pictures"] == 1
    assert [sorted(group) for group in report["copies"]["examples"]] == [["0.png", "copy.png"]]


@pytest.mark.thorough
def test_the_hostile_corpus_has_a_row_and_a_reason_for_each(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    files = write(corpus, mutants=60)
    code, report, failed = inspect(corpus, tmp_path, "--source.glob", "*")
    assert code == 1
    assert report["rows"] == files == report["readable"] + report["failed"]
    reasons = {row["key"]: row["error_message"] for row in failed}
    assert len(reasons) == len(failed) == report["failed"]
    assert all(reasons.values())
    for file in hostile():
        # The others do not get so far, or need another reading than the default.
        if file.data and not file.options:
            assert reasons.get(file.name, "").startswith(file.error), file.name
            assert bool(file.error) == (file.name in reasons), file.name
    assert {f"flips/{name}" for name, _ in flips()} >= {
        key for key in reasons if key.startswith("flips/")
    }


def test_a_list_of_urls_with_failures_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = jpeg(quadrants())
    with serving({"/a.jpg": photo, "/b.jpg": photo}) as server:
        expected = {
            "/a.jpg": "",
            "/b.jpg": "",
            "/status?code=404": "404",
            "/status?code=500": "500",
            "/html": "not a picture",
            "/empty": "empty",
            "/closes": "closed",
            "/loop": "redirects",
            "/redirect?to=file:///etc/passwd": "file",
            "/bomb": "max-bytes",
        }
        urls = [server.url(path) for path in expected]
        listed = tmp_path / "urls.txt"
        listed.write_text(
            "\n".join([*urls, "http://no-such-host.invalid/c.jpg", "/etc/passwd"]) + "\n"
        )
        quick = ["--fetch.retries", "1", "--fetch.backoff", "0.01", "--fetch.max-bytes", "100000"]
        code, report, failed = inspect(listed, tmp_path, "--fetch.allow-private", *quick)
        server_requests, shown = server.asked.total(), capsys.readouterr().out
        refused_code, _, refused = inspect(listed, tmp_path, *quick)
    reasons = {row["uri"]: row["error_message"] for row in failed}
    assert (code, report["rows"], report["readable"], len(failed)) == (1, 12, 2, 10)
    for url, words in zip(urls, expected.values(), strict=True):
        assert words in reasons.get(url, ""), (url, reasons.get(url))
        assert bool(words) == (url in reasons)
    assert "resolve" in reasons["http://no-such-host.invalid/c.jpg"]
    assert "fetch.trust" in reasons["/etc/passwd"]
    [loopback] = [host for host in report["hosts"] if host["host"] == "127.0.0.1"]
    assert (loopback["rows"], loopback["failed"], loopback["bytes"]) == (
        10,
        8,
        2 * len(photo) + len(HTML),
    )
    # /closes is asked for once more where it came over a kept connection, which is not counted.
    assert server_requests - loopback["requests"] in (0, 1, 2)
    assert {host["host"] for host in report["hosts"]} == {"127.0.0.1", "no-such-host.invalid"}
    assert (
        "hosts (2; most failures first, then most bytes):\n  127.0.0.1: 10 rows, 8 failed" in shown
    )
    # Without leave, nothing on loopback is asked at all.
    assert refused_code == 1 and len(refused) == 12
    assert all("private" in row["error_message"] for row in refused if "127.0.0.1" in row["uri"])


def test_inline_pictures_and_captions_of_a_parquet_dataset(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def stored(colour: int) -> dict[str, object]:
        file = BytesIO()
        Image.new("RGB", (40, 30), (colour, 0, 0)).save(file, "png")
        return {"bytes": file.getvalue(), "path": f"{colour}.png"}

    dataset = tmp_path / "dataset"
    dataset.mkdir()
    rows = [
        {"image": stored(number), "caption": ["a", "b"], "split": "train"} for number in range(4)
    ]
    rows.append(
        {"image": {"bytes": b"nonsense", "path": "bad.png"}, "caption": ["c"], "split": "test"}
    )
    pq.write_table(pa.Table.from_pylist(rows), dataset / "part.parquet")
    code, report, failed = inspect(dataset, tmp_path, "--source", "huggingface")
    assert (code, report["rows"], report["captions"], report["splits"]) == (
        1,
        5,
        9,
        {"train": 4, "test": 1},
    )
    assert [row["status"] for row in failed] == ["failed_to_decode"]


def test_a_limit_looks_at_the_first_rows_only(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        Image.new("RGB", (10, 10)).save(photos / f"{number}.png")
    assert inspect(photos, tmp_path, "--limit", "4")[1]["rows"] == 4


def test_what_only_the_listing_can_know_is_refused_and_leaves_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(
        "url,name\nhttp://example.invalid/1.jpg,same\nhttp://example.invalid/2.jpg,same\n"
    )
    assert (
        main(
            [
                "inspect",
                str(table),
                "--source.key-column",
                "name",
                "--out",
                str(tmp_path / "r.json"),
            ]
        )
        == 2
    )
    shown = capsys.readouterr().err
    assert shown.startswith("raycap: ") and "same" in shown and "Traceback" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv"]


def test_a_real_dataset(shared_data: Path, tmp_path: Path) -> None:
    code, report, _ = inspect(shared_data / "coco-mini", tmp_path)
    found = (code, report["source"]["kind"], report["rows"], report["captions"])
    assert found == (0, "coco", 60, 300)


@pytest.mark.slow
def test_a_large_real_dataset(shared_data: Path, tmp_path: Path) -> None:
    code, report, _ = inspect(shared_data / "flickr8k", tmp_path)
    assert (code, report["source"]["kind"], report["rows"]) == (0, "flickr", 7000)
    assert report["splits"] == {"train": 6000, "dev": 1000}
