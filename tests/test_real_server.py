"""A server that others wrote: `transformers serve` with the tiny model that describes `shapes`.

Its answers are compared with those of the same model in this process, and with the truth.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_models
from packages import need

from raycap.cli import main
from raycap.errors import UserError
from raycap.sources import Shapes

pytestmark = [
    pytest.mark.slow,  # the server imports torch and transformers: half a minute if busy
    pytest.mark.usefixtures("no_ray"),
    need("transformers", "fastapi", "uvicorn", "openai"),
]

COUNT = 40
SECONDS_TO_START = 240.0


class RealServer:
    """A server process on loopback."""

    def __init__(self, folder: Path, model: str) -> None:
        self.model, self._log = model, folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("transformers")), "serve", model]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--device", "cpu", "--dtype", "float32"]
        # Its cache of the hub is empty: then it cannot list its models, and answers 500.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "no-cache")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=folder
            )
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _wait(self) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.end()
        pytest.fail(f"the server did not start: {self._log.read_text()[-2000:]}")

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    model = shutil.copytree(tiny_models.trained(), folder / "tiny-vl")
    # The server looks for the beginning of the answer as large models of this family write it. The
    # tokenizer of the tiny one writes a space there.
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["response_template"] = {
        "start_anchor": "<|im_start|> assistant",
        "fields": {"content": {"close": "<|im_end|>", "content": "text"}},
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    # It draws words only if the model's own settings say so, or the temperature says nothing.
    drawing = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**drawing, "do_sample": True}))
    running = RealServer(folder, str(model))
    yield running
    running.end()


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    """What each picture of `shapes` shows."""
    [table] = Shapes(count=COUNT).tables()
    references = [each[0] for each in table["references"].to_pylist()]
    return dict(zip(table["key"].to_pylist(), references, strict=True))


def table_of(out: Path, *flags: str, count: int = COUNT) -> dict[str, dict[str, Any]]:
    source = ["--source", "shapes", "--source.count", str(count)]
    assert main(["caption", *source, "--out", str(out), *flags]) == 0
    rows = pq.read_table(out / "captions").to_pylist()
    assert len(rows) == count
    return {row["key"]: row for row in rows}


def of_server(server: RealServer, *flags: str) -> list[str]:
    return [
        *("--captioner", "endpoint", "--model", server.url),
        *("--captioner.name", server.model, *flags),
    ]


def test_its_captions_are_those_of_the_same_model_in_this_process(
    server: RealServer, truth: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    of_model = ["--model", tiny_models.trained(), "--precision", "fp32", "--device", "cpu"]
    here = table_of(tmp_path / "here", *of_model)
    there = table_of(tmp_path / "there", *of_server(server, "--captioner.format", "png"))
    assert len(set(truth.values())) > 20, "a caption on the wrong row is a wrong caption"
    for key, row in there.items():
        for column in ("status", "caption", "tokens_in", "tokens_out", "finish_reason"):
            assert row[column] == here[key][column], (key, column)
        assert row["attempts"] == 1 and row["seconds"] > 0
        assert row["score"] is None, "this server gives no log-probabilities"
    right = [row["caption"] == truth[key] for key, row in there.items()]
    assert sum(right) >= 0.95 * COUNT


def test_pictures_as_jpeg_are_described_too(
    server: RealServer, truth: dict[str, str], tmp_path: Path
) -> None:
    found = table_of(tmp_path / "out", *of_server(server))
    right = [row["caption"] == truth[key] for key, row in found.items()]
    assert sum(right) >= 0.9 * COUNT


def test_captions_that_are_cut_off(server: RealServer, tmp_path: Path) -> None:
    flags = of_server(server, "--captioner.max-tokens", "3")
    for row in table_of(tmp_path / "out", *flags, count=4).values():
        assert row["finish_reason"] == "length" and row["tokens_out"] == 3
        assert len(row["caption"].split()) == 3


def test_several_captions_of_a_server_that_gives_one(server: RealServer, tmp_path: Path) -> None:
    flags = of_server(server, "--num-captions", "3", "--captioner.temperature", "3")
    found = table_of(tmp_path / "out", *flags, count=4)
    # A hot model may also answer with nothing; then there are fewer.
    numbers = [1 + len(row["alternatives"]) for row in found.values()]
    assert max(numbers) == 3, "the server gives one, whatever `n` says: the others are asked for"
    assert all(row["attempts"] >= len(row["alternatives"]) + 1 for row in found.values())
    texts = [
        [row["caption"], *(each["caption"] for each in row["alternatives"])]
        for row in found.values()
    ]
    assert any(len(set(each)) > 1 for each in texts), "each request has a seed of its own"


def test_one_photo_is_answered_at_once(
    server: RealServer, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Shapes(count=COUNT)
    [table] = source.tables()
    [data, *_] = source.embedded_pictures(table)
    assert data
    (tmp_path / "photo.png").write_bytes(data)
    flags = of_server(server, "--prompt", "Describe this picture in one sentence.")
    assert main(["caption", str(tmp_path / "photo.png"), *flags]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == truth[table["key"][0].as_py()] and not shown.err


def test_a_model_that_it_does_not_have_ends_the_run(server: RealServer, tmp_path: Path) -> None:
    from raycap.captioners import Captioner

    with (
        pytest.raises(UserError, match=r"pinned to .*was asked for the model 'other'"),
        Captioner.load(server.url, name="other") as captioner,
    ):
        captioner.caption([Path(__file__).parents[1] / "samples" / "bear.jpg"])
