"""The examples of docs/prompts.md, as they are written there, against a server on loopback."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_server import ChatRequest, ChatServer, choice, serving
from PIL import Image
from test_prompts import prompt_of

from raycap.cli import main
from raycap.config import Config

pytestmark = pytest.mark.usefixtures("no_ray")
PAGE = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ATTRIBUTES = {"category": "mug", "colours": ["blue"], "width_cm": None, "has_text": False}


def commands() -> list[str]:
    """Each command of the page on one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("raycap ")]


def out_of(command: str) -> str:
    words = shlex.split(command)
    return words[words.index("--out") + 1].rstrip("/")


async def answer(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    prompt = prompt_of(request)
    text = f"An answer to: {prompt}"
    if "response_format" in request.fields:
        is_list = "tags" in json.dumps(request.fields["response_format"])
        text = json.dumps({"tags": ["outdoors", "night"]} if is_list else ATTRIBUTES)
    await choice({"content": text})(server, request, writer)


def parameters() -> list[Any]:
    """The examples by number. Those with files run always, the others among the slow tests."""
    has_file = ["training.yaml" in each or "attributes.json" in each for each in commands()]
    return [
        number if is_quick else pytest.param(number, marks=pytest.mark.slow)
        for number, is_quick in enumerate(has_file)
    ]


@pytest.mark.parametrize("number", parameters())
def test_an_example_works_as_it_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands()[number]
    has_finishing = "finish" in {field.name for field in dataclasses.fields(Config)}
    if "--finish." in command and not has_finishing:
        pytest.skip("finishing is not there yet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "photos").mkdir()
    for place in ("a", "b", "c", "photos/a", "photos/b"):
        Image.new("RGB", (2, 2), (len(place), ord(place[-1]), 0)).save(tmp_path / f"{place}.png")
    for name, content in FILES:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with serving() as server:
        server.always = answer
        words = shlex.split(command.replace("http://localhost:8000/v1", server.url))
        code = main(words[1:])
        asked = [prompt_of(request) for request in server.requests]
    found = pq.read_table(tmp_path / out_of(command) / "captions").to_pylist()
    failed = [row for row in found if row["status"] != "success"]
    if "products.csv" in command:
        assert code == 1 and len(found) == 3
        [row] = failed
        assert row["error_message"].endswith("column title is empty")
        assert any("Blue enamel mug" in prompt for prompt in asked)
    else:
        assert code == 0 and len(found) == 2 and not failed
    good = [row for row in found if row["status"] == "success"]
    if "alt/" in command:
        titles = {row["key"]: row["title"] for row in good}
        assert titles == {"A-1": "Blue enamel mug", "B-2": "Oak shelf, 80 cm"}
    if "training.yaml" in command:
        assert {tuple(row["tags_parsed"]) for row in good} == {("outdoors", "night")}
        assert all("It shows: outdoors, night." in row["caption"] for row in good)
        assert all("ohwx" in row["caption"] for row in good) == ("ohwx" in command)
    if "attributes.json" in command:
        assert all(row["caption_parsed"] == ATTRIBUTES for row in good)


def test_the_page_has_its_examples() -> None:
    assert {name for name, _ in FILES} == {"products.csv", "training.yaml", "attributes.json"}
    assert len(commands()) >= 6
