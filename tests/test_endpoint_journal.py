"""Answers that are paid for are not asked for again, whenever a worker is killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import MODEL, ChatServer, caption_of, choice, serving, status

from raycap.captioners.endpoint import Endpoint, EndpointOptions, journal
from raycap.captioners.endpoint.captioner import CHUNK
from raycap.errors import UserError
from raycap.storage import RunFolder

CHUNKS = [f"0001-00000-000000-{start:05}-{start + 40:05}" for start in range(0, 200, 40)]
# A worker as a table job has them: it is given pictures of several chunks, and is killed.
WORKER = """
import sys
import numpy as np
from raycap.captioners.endpoint import Endpoint, EndpointOptions

url, name, folder, in_flight, *chunks = sys.argv[1:]
options = EndpointOptions((url,), Endpoint(name=name, in_flight=int(in_flight)), journal=folder)
with options.open("", 1) as captioner:
    answers = [
        captioner.submit(np.frombuffer(b"%s %d" % (chunk.encode(), number), np.uint8),
                         {"raycap.chunk": chunk})
        for chunk in chunks for number in range(40)
    ]
    for answer in answers:
        assert not answer.result().error
        print(answer.result().caption)
"""
IN_FLIGHT = 8
# Answers of the last second, and of the time that a busy machine takes to write them.
SECONDS = 5.0


def kept(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("*.jsonl"))


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_after_kills_only_unfinished_calls_are_paid_again(kills: int, tmp_path: Path) -> None:
    folder, chance = tmp_path / "_answers", random.Random(kills)
    pictures = [f"{chunk} {number}".encode() for chunk in CHUNKS for number in range(40)]
    with serving(delay=0.1) as server:
        command = [sys.executable, "-c", WORKER, server.url, MODEL, folder, str(IN_FLIGHT)]
        for kill in range(kills):
            worker = subprocess.Popen([*command, *CHUNKS], stdout=subprocess.DEVNULL)
            wanted = server.answered.total() + chance.randrange(10, 40)
            while server.answered.total() < wanted or kept(folder) < 5 * (kill + 1):
                assert worker.poll() is None
                time.sleep(0.01)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        # What was sent and is in no file is lost, and nothing else.
        lost = server.asked.total() - kept(folder)
        found = subprocess.run([*command, *CHUNKS], capture_output=True, text=True, check=True)
        assert found.stdout.split("\n")[:-1] == [caption_of(each) for each in pictures]
        # Each picture has one answer in a file, and one request besides for each that was lost.
        assert server.asked.total() == len(pictures) + lost
        assert kept(folder) == len(pictures)

        # A chunk whose rows are committed is removed; the others are still known.
        RunFolder(str(folder)).remove(CHUNKS[0])
        assert sorted(path.name for path in folder.iterdir()) == CHUNKS[1:]
        before = server.asked.total()
        subprocess.run([*command, *CHUNKS[1:]], capture_output=True, check=True)
        assert server.asked.total() == before
        subprocess.run([*command, CHUNKS[0]], capture_output=True, check=True)
        assert server.asked.total() == before + 40
        assert sorted(path.name for path in folder.iterdir()) == sorted(CHUNKS)


def test_answers_are_written_within_a_second_while_the_worker_goes_on(tmp_path: Path) -> None:
    with serving() as server, worker(server, tmp_path) as captioner:
        for number in range(3):
            picture = np.frombuffer(b"fine %d" % number, np.uint8)
            captioner.predict([picture], [{CHUNK: "a"}])
            end = time.monotonic() + SECONDS
            while kept(tmp_path) <= number and time.monotonic() < end:
                time.sleep(0.01)
            assert kept(tmp_path) == number + 1


def worker(server: ChatServer, folder: Path, captions: int = 1, **options: Any) -> Any:
    endpoint = Endpoint(**{"name": MODEL, **options})
    made = EndpointOptions((server.url,), endpoint, captions, str(folder))
    return made.open("", 1)


def ask(server: ChatServer, folder: Path, row: dict[str, Any], **options: Any) -> Any:
    """The prediction of a new worker."""
    with worker(server, folder, **options) as captioner:
        return captioner.predict([np.frombuffer(b"fine", np.uint8)], [row])[0]


def test_a_kept_answer_is_the_whole_prediction(tmp_path: Path) -> None:
    how = {"captions": 3, "temperature": 0.5}
    with serving() as server:
        server.most_choices = 2
        first = ask(server, tmp_path, {CHUNK: "a"}, **how)
        assert server.asked.total() == 2
        assert ask(server, tmp_path, {CHUNK: "a"}, **how) == first
        assert server.asked.total() == 2


@pytest.mark.parametrize(
    "changed", [{"prompt": "other"}, {"seed": 1}, {"max_tokens": 5}, {"max_side": 99}]
)
def test_an_answer_to_another_question_is_not_used(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    with serving() as server:
        ask(server, tmp_path, {CHUNK: "a"})
        ask(server, tmp_path, {CHUNK: "a"}, **changed)
        assert server.asked.total() == 2
        ask(server, tmp_path, {CHUNK: "a", "sha256": "f" * 64})
        ask(server, tmp_path, {CHUNK: "b"})
        assert server.asked.total() == 4, "another picture; another operation of the run"


def test_an_answer_without_a_caption_is_paid_once_in_a_chunk_and_again_in_a_retry(
    tmp_path: Path,
) -> None:
    with serving() as server:
        server.always = choice({"content": "", "refusal": "no"})
        for row, asked in (({CHUNK: "a"}, 1), ({CHUNK: "a"}, 1), ({}, 2), ({}, 3)):
            assert "held the caption back" in ask(server, tmp_path, row).error
            assert server.asked.total() == asked


def test_a_call_without_an_answer_is_not_kept(tmp_path: Path) -> None:
    with serving() as server:
        ask(server, tmp_path, {CHUNK: "a"})
        folder = tmp_path / "x"
        with worker(server, folder, retries=0) as captioner:
            captioner.predict([np.frombuffer(b"first", np.uint8)], [{CHUNK: "a"}])
            server.always = status(422)
            [prediction] = captioner.predict([np.frombuffer(b"fine", np.uint8)], [{CHUNK: "a"}])
            assert prediction.error
        server.always = None
        assert kept(folder) == 1 and ask(server, folder, {CHUNK: "a"}).caption


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 500,
        b'{"call": "',
        b"[]\n5\nnull\n",
        b'{"call": "x", "counts": [1]}\n',
        b"\xff",
    ],
)
def test_a_damaged_file_costs_its_own_answers_only(damage: bytes, tmp_path: Path) -> None:
    with serving() as server:
        ask(server, tmp_path, {CHUNK: "a"})
        [path] = tmp_path.rglob("*.jsonl")
        path.with_name("other.jsonl").write_bytes(damage)
        path.write_bytes(damage + b"\n" + path.read_bytes())
        assert ask(server, tmp_path, {CHUNK: "a"}).caption
        assert server.asked.total() == 1


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "_members", ".", "a" * 500, "\u00e9", ""])
def test_names_of_chunks_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "_answers"
    with serving() as server:
        for _ in range(2):
            ask(server, folder, {CHUNK: name})
        assert server.asked.total() == 1
    [path] = tmp_path.rglob("*.jsonl")
    assert path.parent.parent == folder and path.parent.name[0] not in "_."


def test_few_chunks_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_GROUPS", 3)
    pictures = [np.frombuffer(b"fine %d" % number, np.uint8) for number in range(20)]
    rows = [{CHUNK: f"c{number}"} for number in range(20)]
    with serving() as server:
        for _ in range(2):
            with worker(server, tmp_path) as captioner:
                captioner.predict(pictures, rows)
                assert len(captioner._journal._known) == 3
        assert server.asked.total() == 20


def test_a_folder_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with serving() as server, pytest.raises(UserError, match=r"cannot (write|read)"):
        ask(server, tmp_path / "file" / "_answers", {CHUNK: "a"})


@pytest.mark.parametrize("step", ["stage", "rename"])
def test_a_chunk_may_be_committed_while_its_last_answers_are_written(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its folder is removed, at any moment."""
    method, removed = getattr(RunFolder, step), []

    def remove_first(self: RunFolder, *arguments: Any) -> Any:
        if not removed and (tmp_path / "a").exists():
            removed.append(shutil.rmtree(tmp_path / "a"))
        return method(self, *arguments)

    monkeypatch.setattr(RunFolder, step, remove_first)
    with serving() as server:
        (tmp_path / "a").mkdir()
        assert ask(server, tmp_path, {CHUNK: "a"}).caption
        assert removed and ask(server, tmp_path, {CHUNK: "a"}).caption
        assert server.asked.total() == 1


def test_the_files_hold_no_picture_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567890abcdef")
    with serving() as server:
        server.key = "sk-1234567890abcdef"
        server.always = choice({"content": "a dog sk-1234567890abcdef"})
        assert ask(server, tmp_path, {CHUNK: "a"}).caption == "a dog [API key]"
    [path] = tmp_path.rglob("*.jsonl")
    [line] = path.read_text().splitlines()
    assert "sk-1234" not in line
    assert json.loads(line).keys() == {"call", "choices", "counts"}
