"""--estimate and --dry-run: what a job takes, against a server whose speed, tokens and failures
are known."""

import asyncio
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chat_server import ChatRequest, ChatServer, good, serving, status
from heads import free_ports, head
from small_captioner import photos

from raycap.bulk.extrapolation import extrapolate
from raycap.bulk.intervals import mean_interval, t_quantile, wilson_interval
from raycap.bulk.measuring import Deployment, Measured, time_batches, time_requests
from raycap.bulk.options import CaptionOptions
from raycap.bulk.sampling import draw_rows
from raycap.bulk.taken_keys import TakenKeys
from raycap.cli import main
from raycap.errors import UserError
from raycap.sources import Folder, Shapes, Table

pytestmark = pytest.mark.usefixtures("no_ray")


def words_and_numbers(text: str) -> dict[str, list[float]]:
    """The numbers of each line of an estimate, by its first words."""
    found = {}
    for line in text.splitlines():
        numbers = [float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*\.?\d*", line)]
        words = re.findall(r"[a-z]+", line)
        if words and numbers:
            found[" ".join(words[:2]) if words[0] == "tokens" else words[0]] = numbers
    return found


def test_tokens_money_and_failures_of_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer takes 90 tokens in and 4 out. Every tenth picture is refused."""
    monkeypatch.setattr("raycap.bulk.estimate.PICTURES", 20)
    folder = photos(tmp_path / "photos", range(70))
    refused: set[bytes] = set()

    async def every_tenth(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        if len(server.asked) % 10 == 0:
            refused.add(request.picture)
        if request.picture not in refused:
            await good(server, request, writer)
            return
        while not server.answered:  # else the client asks whether the server is well
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await status(400)(server, request, writer)

    with serving() as server:
        server.always = every_tenth
        patient = ("--reading.timeout", "300")  # on a busy machine
        command = ["caption", str(folder), "--model", server.url, *patient]
        command += ["--out", str(tmp_path / "out")]
        prices = ["--price-in", "1000", "--price-out", "20000"]
        assert main([*command, "--estimate", *prices]) == 0
        assert len(server.asked) == 20  # each once
        printed = capsys.readouterr()
        failed = len(refused) / 20
        found = words_and_numbers(printed.out)
        assert "70 pictures" in printed.out
        assert found["tokens in"][0] == pytest.approx(70 * 90 * (1 - failed), abs=1)
        assert found["out"][0] == pytest.approx(70 * 4 * (1 - failed), abs=1)
        money = 70 * (1 - failed) * (90 * 1000 + 4 * 20000) / 1e6
        mean, low, high = found["money"]
        assert low <= mean <= high
        assert mean == pytest.approx(money, rel=0.001)
        assert found["failures"][0] == pytest.approx(100 * failed, abs=0.1)
        assert "failed_to_caption" in printed.out
        assert not (tmp_path / "out").exists()

        # A run says the same to the next --dry-run, for the pictures that are not there yet.
        server.always = None
        assert main([*command, "--limit", "50"]) == 0
        capsys.readouterr()
        assert main([*command, "--dry-run", *prices]) == 0
        found = words_and_numbers(capsys.readouterr().out)
        assert found["tokens in"][0] == 20 * 90
        assert found["money"][0] == pytest.approx(20 * (90 * 1000 + 4 * 20000) / 1e6)
        assert found["failures"][0] == 0
        # In another folder beside it too, whatever else is there, and not for another prompt.
        (tmp_path / "a" / "facts.json").mkdir(parents=True)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "facts.json").write_text("{")
        (tmp_path / "c").mkdir()  # the table is gone
        (tmp_path / "c" / "facts.json").write_bytes((tmp_path / "out/facts.json").read_bytes())
        other = [*command[:-1], str(tmp_path / "other")]
        assert main([*other, "--dry-run"]) == 0
        assert f"as the run in {tmp_path / 'out'}" in capsys.readouterr().out
        assert main([*other, "--dry-run", "--prompt", "Say more."]) == 0
        assert "is not known yet: --estimate" in capsys.readouterr().out

        # Rows of the table count that this command is about, and no others.
        assert main([*command, "--estimate", "--only", "key >= '00060.png'"]) == 0
        assert "for 10 pictures" in capsys.readouterr().out
        assert main([*command, "--estimate"]) == 0
        printed = capsys.readouterr().out
        assert "50 of them are in" in printed and "for 20 pictures" in printed

        # Of a complete table there is nothing to ask for, unless it is made again.
        assert main(command) == 0
        asked = len(server.asked)
        capsys.readouterr()
        assert main([*command, "--estimate"]) == 0
        assert f"{tmp_path / 'out'} holds all of them" in capsys.readouterr().out
        assert len(server.asked) == asked
        assert main([*command, "--estimate", "--overwrite"]) == 0
        assert "for 70 pictures" in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_is_within_a_tenth_of_what_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is slow, so that a busy machine hardly matters; 600 pictures in one worker."""
    folder = photos(tmp_path / "photos", range(600))
    with serving(delay=0.4) as server:
        command = [
            *("caption", str(folder), "--model", server.url, "--out", str(tmp_path / "out")),
            *("--captioner.in-flight", "8", "--cluster.local-rows", "1000"),
        ]
        assert main([*command, "--estimate"]) == 0
        minutes = words_and_numbers(capsys.readouterr().out)["time"][0]
        server.times.clear()
        assert main(command) == 0
        # As the server saw it, from the first request to the last answer.
        seconds = max(server.times) - min(server.times) + server.delay
        scale = 60 if minutes < 10 else 1
        assert minutes * scale == pytest.approx(seconds, rel=0.1)


@pytest.mark.slow
def test_a_sample_is_captioned_on_a_cluster(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(300)), tmp_path / "out"
    [port] = free_ports(1)

    def estimate(model: str, *more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "raycap", "caption", str(folder), "--model", model]
        command += ["--out", str(out), "--cluster.address", f"127.0.0.1:{port}", "--estimate"]
        return subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, check=False
        )

    resources = ("--num-cpus=2", "--object-store-memory=300000000")
    with head(tmp_path, *resources, gcs=port) as environment, serving() as server:
        built_in = estimate("shipped", "--price-hour", "2")
        assert built_in.returncode == 0, built_in.stderr
        found = words_and_numbers(built_in.stdout)
        assert "300 pictures" in built_in.stdout and "200 captioned, 0 failed" in built_in.stdout
        assert "2 workers on the cluster as it is, 1 thread each" in built_in.stdout
        assert 0 < found["money"][1] <= found["money"][0] <= found["money"][2]

        served = estimate(server.url)
        assert served.returncode == 0, served.stderr
        assert len(server.asked) == 200  # each once
        assert words_and_numbers(served.stdout)["tokens in"][0] == 300 * 90
        assert not out.exists()

        server.always = status(401)
        refused = estimate(server.url)
        assert refused.returncode == 2
        assert "does not caption pictures" in refused.stderr
        assert "Traceback" not in refused.stderr


class Waves:
    """Answers like a server with one speed: all that are in flight at the same time."""

    def __init__(self, seconds: float, in_flight: int) -> None:
        self.seconds, self.in_flight = seconds, in_flight

    def submit(self, table: pa.Table) -> Any:
        answered = table.append_column("seconds", pa.array([self.seconds] * len(table)))
        return lambda: answered


@pytest.mark.parametrize("in_flight", [1, 8, 64, 150, 500])
def test_a_rate_does_not_depend_on_the_last_wave(
    in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 pictures, 64 at a time: the fourth wave has 8 of them, and takes as long."""
    waves = math.ceil(200 / in_flight)
    clock = iter([0.0, waves * 2.0])
    monkeypatch.setattr("raycap.bulk.measuring.time.monotonic", lambda: next(clock))
    table = pa.table({"key": [str(number) for number in range(200)]})
    _, seconds = time_requests(Waves(2.0, in_flight), table)
    assert np.mean(seconds) == pytest.approx(2.0 / min(in_flight, 200))


def test_a_server_that_waits_for_the_client_is_not_taken_for_a_slow_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 50.0])  # answers took 0.1 s, and the whole sample 50 s
    monkeypatch.setattr("raycap.bulk.measuring.time.monotonic", lambda: next(clock))
    table = pa.table({"key": [str(number) for number in range(200)]})
    assert time_requests(Waves(0.1, 64), table)[1] == [0.25]


def test_batches_are_timed_whole_and_after_a_first_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("raycap.bulk.measuring.time.monotonic", lambda: now[0])
    sizes = []

    def make(table: pa.Table) -> pa.Table:
        sizes.append(len(table))
        now[0] += 100 if len(sizes) == 1 else 64  # whatever the size: a fixed batch
        return table

    made, seconds = time_batches(make, pa.table({"key": list(range(200))}), 64)
    assert sizes == [1, 64, 64, 64, 8]
    assert seconds == [1.0, 1.0, 1.0]
    assert made["key"].to_pylist() == list(range(200))


def sample(tokens: list[int] | None = None, failed: int = 0, waits: bool = False) -> pa.Table:
    statuses = ["failed_to_decode"] * failed + ["success"] * (100 - failed)
    table = pa.table({"status": statuses})
    if tokens is not None:
        for name in ("tokens_in", "tokens_out"):
            table = table.append_column(name, pa.array(tokens))
    return table.append_column("seconds", pa.nulls(100, pa.float32())) if waits else table


HERE = Deployment(workers=2, threads=1, processors=4, gpus=0, machines=1, how="here")


def test_hours_follow_from_the_workers_and_the_slowest_part() -> None:
    free = CaptionOptions()
    measured = Measured(sample(), [0.4] * 5, (), [1.0] * 5, 0)
    # On processors, loading and the model share them: 1.0 / 2 + 0.4 / 4 for each picture.
    assert extrapolate(measured, HERE, 3600, free).hours.mean == pytest.approx(0.6)
    # With GPUs, both happen at the same time.
    with_gpus = replace(HERE, gpus=1.0)
    assert extrapolate(measured, with_gpus, 3600, free).hours.mean == pytest.approx(0.5)
    slow_disk = replace(measured, load_seconds=[4.0] * 5)
    assert extrapolate(slow_disk, with_gpus, 3600, free).hours.mean == pytest.approx(1.0)
    # A server's limit of 30 requests in a minute, and one of 600 tokens.
    served = replace(measured, made=sample([10] * 100, waits=True))
    assert extrapolate(served, HERE, 3600, free, (30, 0)).hours.mean == pytest.approx(2.0)
    assert extrapolate(served, HERE, 3600, free, (0, 600)).hours.mean == pytest.approx(2.0)


def test_money_is_of_tokens_and_of_hours() -> None:
    measured = Measured(sample([100] * 100), (), (), [1.0] * 5, 0)
    prices = CaptionOptions(price_in=2, price_out=8, price_hour=5)
    of_tokens = 3600 * 100 * (2 + 8) / 1e6
    found = extrapolate(measured, HERE, 3600, prices)
    assert found.money is not None
    assert found.money.mean == pytest.approx(of_tokens + 0.5 * 5)  # half an hour of a machine
    with_gpus = extrapolate(measured, replace(HERE, gpus=1.0), 3600, prices).money
    assert with_gpus is not None
    assert with_gpus.mean == pytest.approx(of_tokens + 0.5 * 2 * 5)  # of two GPUs
    # A captioner that counts no tokens.
    unknown = replace(measured, made=sample())
    assert extrapolate(unknown, HERE, 3600, prices).money is None
    assert extrapolate(unknown, HERE, 3600, CaptionOptions(price_hour=5)).money is not None
    with pytest.raises(UserError, match="--price-in is -1"):
        CaptionOptions(price_in=-1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chance = np.random.default_rng(0)
    for count in (3, 10, 200):
        held = 0
        for _ in range(1000):
            _, low, high = mean_interval(chance.normal(10, 2, count).tolist())
            held += low <= 10 <= high
        assert 920 <= held <= 975, count
    held = 0
    for _ in range(1000):
        _, low, high = wilson_interval(int(chance.binomial(200, 0.02)), 200)
        held += low <= 0.02 <= high
    assert held >= 920
    assert wilson_interval(0, 200).high == pytest.approx(0.0188, abs=0.001)
    for freedom, known in ((1, 12.71), (2, 4.303), (5, 2.571), (30, 2.042)):
        assert t_quantile(freedom) == pytest.approx(known, rel=0.04)


def test_pictures_are_drawn_over_the_whole_source_and_counted() -> None:
    options = CaptionOptions()
    drawn = draw_rows(Shapes(count=600), options, 200, TakenKeys())
    assert (drawn.total, drawn.is_exact, len(drawn.rows)) == (600, True, 200)
    again = draw_rows(Shapes(count=600), options, 200, TakenKeys())
    assert drawn.rows.equals(again.rows)
    numbers = [int(key) for key in re.findall(r"\d+", " ".join(drawn.rows["key"].to_pylist()))]
    assert 240 < np.mean(numbers) < 360, "not the first ones"


def test_a_source_that_takes_long_is_listed_in_parts(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.jpg").touch()
    source = Folder(str(tmp_path))
    assert draw_rows(source, CaptionOptions(), 50, TakenKeys()).total == 160
    few = draw_rows(
        source, CaptionOptions(), 50, TakenKeys(), seconds=-1
    )  # one table, and no more
    assert not few.is_exact
    assert 0 < len(few.rows) <= 50
    (tmp_path / "t.jsonl").write_text(
        "".join(f"{json.dumps({'url': f'http://h/{n}', 'n': n})}\n" for n in range(2000))
    )
    listed = draw_rows(
        Table(str(tmp_path / "t.jsonl")), CaptionOptions(only="n >= 500"), 50, TakenKeys()
    )
    assert (listed.total, listed.is_exact) == (1500, True)
    start = draw_rows(
        Table(str(tmp_path / "t.jsonl")), CaptionOptions(), 50, TakenKeys(), seconds=-1
    )
    assert not start.is_exact
    assert "how many follow is not known" in start.how
