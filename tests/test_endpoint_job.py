"""The endpoint captioner in a table job, with real pictures and a real server."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_server import MODEL, ChatServer, choice, serving, status
from PIL import Image
from small_captioner import photos

from raycap.bulk.captions import captions_job
from raycap.bulk.job import ANSWERS, TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.captioners.endpoint import Endpoint
from raycap.captioners.endpoint.options import COLUMNS
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.schema import CAPTIONS
from raycap.sources import Folder

KEY = "sk-proj-4b8Jv0Qz81LmT5xYwEr2"

pytestmark = pytest.mark.usefixtures("no_ray")


def job(server: ChatServer, folder: Path, out: Path, retry: Any = "", **options: Any) -> TableJob:
    captioner = Endpoint(**options).captioner(server.url, None, None)
    asked = CaptionOptions(out=str(out), batch=4, part_rows=100, retry=retry)
    how = (Fetch(), Reading(), Cluster())
    return captions_job(captioner, Folder(str(folder)), asked, *how)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "captions").to_pylist()
    found = {row["key"]: row for row in table}
    assert len(found) == len(table), "each key once"
    return found


async def size(server: ChatServer, request: Any, writer: Any) -> None:
    """Captions that show which picture was sent, and how."""
    with Image.open(io.BytesIO(request.picture)) as picture:
        colour = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))
        text = f"{picture.format} {picture.width}x{picture.height} {colour}"
    await choice({"content": text})(server, request, writer)


def test_pictures_arrive_as_they_were_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (100 + number, 50), (number * 8, 0, 0)).save(folder / f"{number:02}.png")
    (folder / "bad.png").write_bytes(b"<html>")
    with serving() as server:
        server.always = size
        how = {"max_side": 64, "format": "png"}
        assert run_job(job(server, folder, tmp_path / "out", **how), {}) == 1
    found = rows(tmp_path / "out")
    assert found["bad.png"]["status"] == "failed_to_decode"
    for number in range(30):
        row = found[f"{number:02}.png"]
        assert row["caption"].startswith("PNG 64x")
        assert row["caption"].endswith(f"({number * 8}, 0, 0)")
        assert row["attempts"] == 1 and row["tokens_in"] == 90
    names = pq.read_schema(next((tmp_path / "out" / "captions").glob("*.parquet"))).names
    assert names == [*CAPTIONS.names, *COLUMNS.names]
    assert not (tmp_path / "out" / ANSWERS).exists()


def test_a_server_that_fails_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(30)), tmp_path / "out"
    with serving() as server:

        async def breaks(server: ChatServer, request: Any, writer: Any) -> None:
            late = server.asked.total() > 15
            await (status(401) if late else size)(server, request, writer)

        server.always = breaks
        with pytest.raises(UserError, match=r"gives no access.*the same command goes on"):
            run_job(job(server, folder, out, in_flight=2), {})
        server.always = size
        before = server.asked.copy()
        assert run_job(job(server, folder, out, in_flight=2), {}) == 0
        assert len(rows(out)) == 30
        paid_twice = sum((server.asked - before)[picture] for picture in before)
        assert paid_twice <= 2, "those that were refused"


def test_failed_rows_are_asked_for_again_by_retry(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(8)), tmp_path / "out"
    with serving() as server:
        server.always = choice({"content": None, "refusal": "no"})
        assert run_job(job(server, folder, out), {}) == 1
        assert {row["error_message"] for row in rows(out).values()} == {
            "the server held the caption back: no"
        }
        server.always = size
        assert run_job(job(server, folder, out, retry="failed"), {}) == 0
        assert server.asked.total() == 16


def test_the_key_is_in_no_file_and_in_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(8)), tmp_path / "out"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as server:
        server.key = KEY
        server.always = status(422, f"Incorrect key: {KEY}")
        with pytest.raises(UserError):
            run_job(job(server, folder, out), {"model": server.url})
        server.always = choice({"content": f"a dog {KEY}"})
        assert run_job(job(server, folder, out), {"model": server.url}) == 0
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 3 and not any(KEY.encode() in path.read_bytes() for path in files)
    assert all(row["caption"] == "a dog [API key]" for row in rows(out).values())
    record = json.loads((out / "run.json").read_text())
    assert record["identity"]["model"] == MODEL and server.url not in json.dumps(
        record["identity"]
    )


# Rows are committed at the end only: until then, answers are in the journal.
RUN = """
import sys
from pathlib import Path
import test_endpoint_job as tests
from chat_server import ChatServer
from raycap.bulk import scheduler

scheduler.SECONDS_BETWEEN_COMMITS = 1000
server = ChatServer()
server.port = int(sys.argv[1])
tests.run_job(tests.job(server, Path(sys.argv[2]), Path(sys.argv[3]), in_flight=4), {})
"""


@pytest.mark.slow  # a run waits until the lease of one that was killed has ended
@pytest.mark.parametrize("kills", [1, 3])
def test_after_kills_each_row_is_there_once_and_paid_answers_are_used(
    kills: int, tmp_path: Path
) -> None:
    folder, out = photos(tmp_path / "photos", range(250)), tmp_path / "out"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    lost = 0
    with serving(delay=0.1) as server:
        command = [sys.executable, "-c", RUN, str(server.port), str(folder), str(out)]
        for _ in range(kills):
            run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            # The rest of 250 takes over two seconds.
            wanted = server.answered.total() + 120 // kills
            while server.answered.total() < wanted:
                assert run.poll() is None
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
            run.wait()
            kept = sum(
                len(path.read_bytes().splitlines()) for path in out.rglob(f"{ANSWERS}/*/*.jsonl")
            )
            lost = server.asked.total() - kept
        last = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert last.returncode == 0, last.stderr
        found = rows(out)
        assert len(found) == len({row["caption"] for row in found.values()}) == 250
        # What was kept is not asked for again, nor is what an earlier run has committed.
        assert server.asked.total() <= 250 + lost
        assert kept > 50
        assert not (out / ANSWERS).exists()


def test_a_job_with_limits_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(8)), tmp_path / "out"
    with serving() as server:
        assert run_job(job(server, folder, out, requests_per_minute=6000), {}) == 0
    assert not (out / ANSWERS).exists()
    assert "members" not in {thread.name for thread in threading.enumerate()}
