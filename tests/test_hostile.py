"""Hostile files, lists and tables through the command line: rows out = rows in, and every count
adds up."""

import contextlib
import csv
import io
import json
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hostile import flips, hostile
from server import Server, serving
from sessions import stop_ray
from small_captioner import photos, save_captioner

from raycap.cli import main

pytestmark = pytest.mark.usefixtures("no_ray")

GOOD, UNFETCHED, UNREAD = "success", "failed_to_fetch", "failed_to_decode"
DEEP = "deep" * 60
ANY = ""  # a mutant may be readable or not


@dataclass
class Case:
    """A source, and what must become of it."""

    path: Path
    # Of each key; ANY where either is right.
    statuses: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # how many of what
    flags: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


def hostile_folder(root: Path, files: int, photo: bytes) -> Case:
    """About so many files, good and bad, beside everything that is no file and has the name of a
    picture."""
    case = Case(Path(os.fsdecode(os.fsencode(root) + b"/pictures \xff")))
    case.path.mkdir()

    def add(name: str | bytes, data: bytes, status: str, key: str = "") -> None:
        path = os.fsencode(case.path) + b"/" + (name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(path)).write_bytes(data)
        case.statuses[key or str(name)] = status

    corpus = [
        file
        for file in hostile()
        if file.name.endswith((".jpg", ".png", ".gif", ".tif", ".webp", ".bmp"))
    ]
    random.Random(0).shuffle(corpus)
    for file in corpus[: files // 3]:
        known = not file.options and file.data
        add(file.name, file.data, (UNREAD if file.error else GOOD) if known else ANY)
    for name, data in flips(files // 3):
        add(f"flips/{name}", data, ANY)
    for number in range(files // 4):
        add(f"good/{number}.png", photo, GOOD)
    for name in (
        "with space.jpg",
        "new\nline.jpg",
        "a%20b.jpg",
        "a#2.jpg",
        "\x1b[2J.jpg",
        "é.jpg",
        "-rf.jpg",
    ):
        add(name, photo, GOOD)
    add(b"caf\xe9.jpg", photo, GOOD, "./caf%E9.jpg")
    add(b"d\xe9p/x.jpg", photo, GOOD, "./d%E9p/x.jpg")
    add("empty.jpg", b"", UNFETCHED)
    add("a directory.jpg/inside.jpg", photo, GOOD)
    case.statuses["a directory.jpg"] = UNFETCHED
    os.mkfifo(case.path / "pipe.jpg")
    case.statuses["pipe.jpg"] = UNFETCHED
    with socket.socket(socket.AF_UNIX) as waiting:
        here = Path.cwd()
        os.chdir(case.path)  # the name of a socket has a hundred characters at most
        waiting.bind("socket.jpg")
        os.chdir(here)
    case.statuses["socket.jpg"] = UNFETCHED
    (root / "outside.jpg").write_bytes(photo)
    links = {"in.jpg": "empty.jpg", "good link.jpg": "é.jpg", "out.jpg": str(root / "outside.jpg")}
    links |= {
        "nowhere.jpg": "gone.jpg",
        "loop.jpg": "loop.jpg",
        "null.jpg": "/dev/null",
        "folder.jpg": ".",
    }
    for name, target in links.items():
        (case.path / name).symlink_to(target)
        case.statuses[name] = GOOD if name == "good link.jpg" else UNFETCHED
    Path(os.fsdecode(os.fsencode(case.path) + b"/dangling\xff.jpg")).symlink_to("gone")
    case.statuses["./dangling%FF.jpg"] = UNFETCHED
    # Not a picture's name.
    Path(os.fsdecode(os.fsencode(case.path) + b"/dangling\xff")).symlink_to("gone")
    (case.path / "notes.txt").write_text("no picture")
    (case.path / ".hidden.jpg").write_bytes(photo)
    too_deep(case.path)
    case.left_out = {"folder could not be listed": 1}
    return case


def too_deep(root: Path) -> None:
    """Folders in folders until a path is longer than the system allows: the last cannot be listed,
    by anybody."""
    here = Path.cwd()
    os.chdir(root)
    for _ in range(17):
        os.mkdir(DEEP)  # noqa: PTH102
        os.chdir(DEEP)
    os.chdir(here)


def addresses(server: Server, count: int) -> list[tuple[str, str]]:
    """Each with what must become of it."""
    bad = [
        "http:///no-host.jpg",
        "http://",
        "/etc/passwd",
        "ftp://h/a.jpg",
        "data:image/png;base64,AAAA",
        "a b c",
    ]
    bad += [
        "http://10.0.0.1/a.jpg",
        "http://[::1/a.jpg",
        "http://no-such-host.invalid/a.jpg",
        "file:///etc/passwd",
    ]
    bad += [
        "http://h:99999/a.jpg",
        "simplecache::http://127.0.0.1/a.jpg",
        "\x1b[2J",
        "http://%00/a.jpg",
        "s3://",
    ]
    paths = [
        "/status?code=404",
        "/status?code=500",
        "/empty",
        "/closes",
        "/loop",
        "/short",
        "/not-http",
    ]
    paths += ["/declares-too-much", "/redirect?to=file:///etc/passwd", "/endless", "/bomb"]
    kinds = [(address, UNFETCHED) for address in (*bad, *map(server.url, paths))]
    kinds += [(server.url("/html"), UNREAD), (server.url("/good"), UNREAD)]
    good = [(server.url(f"/{number}.png"), GOOD) for number in range(max(1, count - len(kinds)))]
    mixed = [*kinds, *good][:count]
    random.Random(1).shuffle(mixed)
    return mixed


# Addresses on loopback are the server's; the others get nowhere.
QUICK = (
    "--fetch.allow-private",
    "--fetch.retries",
    "0",
    "--fetch.max-bytes",
    "200000",
    "--fetch.deadline",
    "20",
)


def hostile_list(root: Path, entries: list[tuple[str, str]]) -> Case:
    case = Case(root / "urls.txt", flags=QUICK)
    lines = ["# a comment", "", *(address for address, _ in entries), entries[0][0]]
    case.path.write_text("\n".join(lines) + "\n")
    case.statuses = dict(entries) | {f"{entries[0][0]}#2": entries[0][1]}
    return case


def hostile_table(root: Path, entries: list[tuple[str, str]]) -> Case:
    """Of six lines one has an unquoted comma in its address."""
    case = Case(root / "pairs.csv", flags=QUICK)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image_url", "note"])
    malformed = 0
    for number, (address, status) in enumerate(entries):
        if number % 6 == 5:
            text.write(f"http://h/{number},{number}.jpg,a note\n")
            malformed += 1
        writer.writerow([address, 'it said "no", twice'])
        case.statuses[address] = status
    text.write(",no address\n")
    case.statuses["#1"] = UNFETCHED
    writer.writerow(["http:///long.jpg", "x" * 300_000])
    case.statuses["http:///long.jpg"] = UNFETCHED
    case.path.write_text(text.getvalue())
    case.left_out = {"malformed lines left out": malformed}
    return case


def run(arguments: list[str]) -> tuple[int, str]:
    """The exit code, and what is written to stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    assert "Traceback" not in err.getvalue() and "\x1b" not in out.getvalue()
    return code, out.getvalue()


def counted(left_out: list[dict[str, Any]]) -> dict[str, int]:
    return {item["what"]: item["count"] for item in left_out}


def check_captioned(case: Case, root: Path, model: Path, again: bool) -> dict[str, str]:
    """`caption` is right about every key, in its table, in facts.json and in its summary.
    Returns the statuses of the failed rows."""
    out = root / "out"
    small = ["--model", str(model), "--batch", "32", "--actors", "1", "--threads", "1"]
    command = ["caption", str(case.path), "--out", str(out), *small, *case.flags]
    code, shown = run(command)
    table = pq.read_table(out / "captions", columns=["key", "status", "error_message"]).to_pylist()
    facts = json.loads((out / "facts.json").read_text())
    found = {row["key"]: row["status"] for row in table}
    failed = {key: status for key, status in found.items() if status != GOOD}
    assert code == 1
    assert len(table) == len(case.statuses) and set(found) == set(case.statuses)
    for row in table:
        assert case.statuses[row["key"]] in (row["status"], ANY), row
        assert bool(row["error_message"]) == (row["status"] != GOOD), row
    assert facts["statuses"] == Counter(row["status"] for row in table)
    assert (facts["rows"], facts["failed"]) == (len(table), len(failed))
    assert counted(facts["left_out"]) == case.left_out
    assert f"{len(table):,} rows, {len(failed):,} failed; {len(table):,} made now" in shown
    assert all(f"{count:,} {what}" in shown for what, count in case.left_out.items())

    # Again: nothing is made, and what is missing is reported again.
    if again:
        code, shown = run(command)
        assert code == 1 and f"{len(table):,} rows, {len(failed):,} failed; 0 made now" in shown
        assert all(f"{count:,} {what}" in shown for what, count in case.left_out.items())
    return failed


def check_inspected(case: Case, root: Path, failed: dict[str, str]) -> None:
    """`inspect` reports the same as `caption`."""
    report_file = root / "report.json"
    code, shown = run(["inspect", str(case.path), "--out", str(report_file), *case.flags])
    report = json.loads(report_file.read_text())
    rows = list(map(json.loads, report_file.with_suffix(".failed.jsonl").open()))
    assert code == 1
    assert report["rows"] == len(case.statuses) == report["readable"] + report["failed"]
    assert report["failed"] == len(rows) == sum(reason["rows"] for reason in report["reasons"])
    assert {row["key"]: row["status"] for row in rows} == failed
    assert all(row["error_message"] for row in rows)
    assert counted(report["left_out"]) == case.left_out
    assert all(f"{count:,} {what}" in shown for what, count in case.left_out.items())


Captioned = list[tuple[Case, Path, dict[str, str]]]


@contextlib.contextmanager
def captioned(files: int, urls: int, root: Path) -> Iterator[Captioned]:
    """Captions a folder, a list and a table in this process, as users do with small ones, and
    checks the tables. Yields each source, its folder and its failed rows; the server runs."""
    stop_ray()
    save_captioner(root / "model")
    photo = next(photos(root / "photo", range(1)).iterdir()).read_bytes()
    with serving({f"/{number}.png": photo for number in range(urls)}) as server:
        entries = addresses(server, urls)
        places = [root / name for name in ("folder", "list", "table")]
        for place in places:
            place.mkdir()
        cases = [
            hostile_folder(places[0], files, photo),
            hostile_list(places[1], entries),
            hostile_table(places[2], entries),
        ]
        made = []
        for case, place in zip(cases, places, strict=True):
            failed = check_captioned(case, place, root / "model", again=place == places[0])
            made.append((case, place, failed))
        yield made


@pytest.fixture(scope="session")
def about_a_hundred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captioned]:
    with captioned(60, 35, tmp_path_factory.mktemp("hundred")) as made:
        yield made


def test_a_hundred_hostile_files_and_addresses(about_a_hundred: Captioned) -> None:
    assert all(failed for _, _, failed in about_a_hundred)


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.usefixtures("one_ray")
def test_a_hundred_hostile_files_and_addresses_are_inspected(about_a_hundred: Captioned) -> None:
    for case, place, failed in about_a_hundred:
        check_inspected(case, place, failed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_hostile_files_and_addresses(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with captioned(1100, 480, tmp_path) as made:
        request.getfixturevalue("one_ray")
        for case, place, failed in made:
            check_inspected(case, place, failed)


@pytest.mark.thorough
@pytest.mark.usefixtures("one_ray")
def test_good_rows_do_not_hide_what_was_left_out(tmp_path: Path, model: Path) -> None:
    folder = photos(tmp_path / "photos", range(3))
    too_deep(folder)
    out, report = tmp_path / "out", tmp_path / "report.json"
    looked = ["inspect", str(folder), "--out", str(report)]
    command = [
        "caption",
        str(folder),
        "--out",
        str(out),
        "--model",
        str(model),
        "--batch",
        "8",
        "--actors",
        "1",
    ]

    code, shown = run(looked)
    assert (
        code == 1
        and "3 rows, 3 readable, 0 failed" in shown
        and "1 folder could not be listed (" in shown
    )
    code, shown = run([*command, "--dry-run"])
    assert (
        code == 0 and "1 folder could not be listed (" in shown and "3 rows would be made" in shown
    )
    code, shown = run(command)
    facts = json.loads((out / "facts.json").read_text())
    assert code == 1 and "3 rows, 0 failed" in shown and "1 folder could not be listed (" in shown
    assert facts["rows"] == 3 and counted(facts["left_out"]) == {"folder could not be listed": 1}

    # Mended, with nothing new to make: the facts are mended, and keep the rest.
    shutil.rmtree(folder / DEEP)
    code, shown = run(command)
    assert code == 0 and "could not be listed" not in shown
    assert json.loads((out / "facts.json").read_text()) == {**facts, "left_out": []}
    assert run(looked)[0] == 0
