"""Prompts: templates, named prompts one after the other, and what becomes of their answers."""

import asyncio
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import MODEL, ChatRequest, ChatServer, choice, error, serving
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raycap import options
from raycap.bulk.captions import captions_job
from raycap.bulk.counts import reason_head
from raycap.bulk.job import TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.captioners.endpoint import Endpoint, EndpointOptions, client
from raycap.captioners.prompts import Prompt, Template, Unanswerable, as_text, values_of
from raycap.captioners.protocol import CHUNK
from raycap.captioners.stages import resolve_stages
from raycap.cli import configure, main
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.schema import ATTEMPT
from raycap.sources import Folder, Table

pytestmark = pytest.mark.usefixtures("no_ray")
TWO = {"tags": "List the tags of {title}.", "caption": "Describe {title}. Tags: {tags}"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_BACKOFF", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# Templates.


def test_a_template_is_text_with_values() -> None:
    template = Template("{title}, {title} in {Big Name} of {folder}: {{a}} } end")
    assert template.names == ("title", "Big Name", "folder")
    row = {"title": "a {mug}", "Big Name": 7, "key": "a/b/c.jpg"}
    assert template.render(values_of(template, row, {})) == (
        "a {mug}, a {mug} in 7 of a/b: {a} } end"
    )


@given(st.text())
def test_any_text_can_be_a_prompt_with_its_braces_doubled(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert Template(doubled).render({}) == text


@given(st.text(), st.text())
def test_values_are_never_read_as_templates(one: str, two: str) -> None:
    assert Template("{a}-{b}").render({"a": one, "b": two}) == f"{one}-{two}"


@pytest.mark.parametrize("text", ['{"a": 1}', "{", "{}", "a { b", "{a!r}", "{a:>9}", "{a[0]}"])
def test_a_brace_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write \{\{ for a brace"):
        Endpoint(prompt=text)


@pytest.mark.parametrize("value", [None, "", "  ", [], [None, ""]])
def test_a_missing_value_is_a_reason(value: object) -> None:
    with pytest.raises(Unanswerable, match="column title is empty"):
        values_of(Template("{title}"), {"title": value}, {})


def test_values_are_text_as_people_write_it() -> None:
    assert [as_text(each) for each in (True, 3, 2.5, ["a", None, 2], {"a": 1})] == [
        "true", "3", "2.5", "a, 2", '{"a": 1}',
    ]  # fmt: skip
    assert values_of(Template("{reference}"), {"references": ["a dog"]}, {}) == {
        "reference": "a dog"
    }
    with pytest.raises(Unanswerable, match="folder of its key is empty"):
        values_of(Template("{folder}"), {"key": "a.jpg"}, {})


# What is said about prompts.


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"prompts": {"tags": "List."}}, "nothing for the caption: call the last one `caption`"),
        ({"prompts": {"caption": "a", "tags": "b"}}, "`caption` is the last one"),
        ({"prompts": {"caption": "a"}, "prompt": "b"}, "give one"),
        ({"prompts": {"tags": "{caption}", "caption": "a"}}, "answered later"),
        ({"prompts": {"tags": "{tags}", "caption": "a"}}, "answered by itself"),
        ({"prompts": {"tags": " ", "caption": "a"}}, "the prompt tags is empty"),
        ({"prompts": {"a b": "x", "caption": "a"}}, "the prompt name 'a b' becomes a column"),
        ({"prompts": {"key": "x", "caption": "a"}}, "a prompt cannot be named key"),
        ({"prompts": {"tags": Prompt("x", max_tokens=0)}}, "--captioner.prompts.tags.max-tokens"),
        ({"prompt": "a", "prompt_column": "b"}, "--prompt can hold {b}"),
        ({"schema": "a.json", "tags": ("dog",)}, "both say what an answer is"),
        ({"start": "A photo", "tags": ("dog",)}, "do not go together"),
        ({"tries": 0}, "--captioner.tries is 0"),
        ({"retry_temperature": 0}, "--captioner.retry-temperature is 0"),
    ],
)
def test_prompts_that_cannot_be_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve_stages(Endpoint(**chosen), "")
    assert message in str(refused.value)


def test_prompts_are_given_in_yaml_and_as_flags(tmp_path: Path) -> None:
    data = {"kind": "endpoint", "prompts": {"tags": {"text": "List.", "max_tokens": 40}}}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"captioner": data}))
    flags = ["--config", str(file), "--model", "http://localhost:1/v1"]
    flags += ["--prompt.tags.temperature", "0.5", "--prompt.alt_text", "Alt {tags}"]
    (tmp_path / "a.jpg").touch()
    config, _ = configure("caption", [str(tmp_path / "a.jpg"), *flags, "--prompt={alt_text}"])
    stages = resolve_stages(config.captioner, "")  # type: ignore[arg-type]
    assert [(each.name, each.text, each.max_tokens, each.temperature) for each in stages] == [
        ("tags", "List.", 40, 0.5),
        ("alt_text", "Alt {tags}", 128, 0.0),
        ("caption", "{alt_text}", 128, 0.0),
    ]
    plain = options.to_plain(config.captioner)
    assert options.from_plain(Endpoint, plain, "captioner") == config.captioner
    with pytest.raises(UserError, match=r"captioner.prompts.tags.max_token'.*'max_tokens'"):
        options.from_plain(Endpoint, {"prompts": {"tags": {"max_token": 4}}}, "captioner")


def test_one_plain_prompt_has_the_identity_that_it_had_before_there_were_several() -> None:
    plain = EndpointOptions(("http://a/v1",), Endpoint(name="m", prompt="p"))
    assert plain.identity() == {
        "captioner": "endpoint", "model": "m", "prompt": "p", "system": "", "max_tokens": 128,
        "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": [], "max_side": 1024,
        "format": "jpeg", "quality": 90, "detail": "", "body": {}, "num_captions": 1,
        "one_request": None,
    }  # fmt: skip
    others: list[dict[str, Any]] = [
        {"prompts": TWO},
        {"prompts": {**TWO, "tags": "Other tags of {title}."}},
        {"prompts": {**TWO, "tags": Prompt(TWO["tags"], max_tokens=5)}},
        {"prompts": {"labels": "List the tags of {title}.", "caption": "Describe {title}"}},
        {"prompt": "p", "start": "A"},
        {"prompt": "p", "tags": ("dog",)},
        {"prompt": "p", "tags": ("dog", "cat")},
    ]
    found = [EndpointOptions(("http://a/v1",), Endpoint(name="m", **each)) for each in others]
    texts = {json.dumps(each.identity(), sort_keys=True) for each in (*found, plain)}
    assert len(texts) == len(others) + 1
    for same in ({"tries": 9}, {"retry_temperature": 1.0}):
        again = EndpointOptions(("http://a/v1",), Endpoint(name="m", prompt="p", **same))
        assert again.identity() == plain.identity()


# Tables of pictures that are known by their colour.


def numbered_pictures(folder: Path, count: int, empty: set[int] = frozenset()) -> Path:
    """A table of pictures whose first pixel is their number."""
    (folder / "p").mkdir(parents=True)
    with (folder / "pictures.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "title", "size"])
        for number in range(count):
            picture = Image.new("RGB", (2, 2), (number >> 16, number >> 8 & 255, number & 255))
            picture.save(folder / "p" / f"{number}.png")
            title = "" if number in empty else f"thing {number} {{size}}"
            table.writerow([f"p/{number}.png", title, number % 7])
    return folder / "pictures.csv"


def number_of(picture: bytes) -> int:
    with Image.open(io.BytesIO(picture)) as opened:
        high, middle, low = opened.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(high) << 16 | int(middle) << 8 | int(low)


def said(number: int, prompt: str) -> str:
    """The stub's answer to a prompt about a picture: no other prompt and picture has it."""
    return f"picture {number} asked {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def prompt_of(request: ChatRequest) -> str:
    user = next(each for each in request.fields["messages"] if each["role"] == "user")
    return str(user["content"][-1]["text"])


async def echo(server: ChatServer, request: ChatRequest, writer: Any) -> None:
    if not request.picture.startswith(b"\x89PNG"):
        raise AssertionError("not the picture's own pixels")
    text = said(number_of(request.picture), prompt_of(request))
    await asyncio.sleep(server.delay)
    await choice({"content": text})(server, request, writer)
    server.answered[request.picture] += 1


def failing_now_and_then() -> Callable[..., Any]:
    """Every third request fails at first: resets, overload, broken answers."""
    seen: set[tuple[bytes, str]] = set()

    async def behave(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        asked = (request.picture, prompt_of(request))
        number = number_of(request.picture)
        if number % 3 == 0 and asked not in seen:
            seen.add(asked)
            if number % 2:
                writer.transport.abort()
            else:
                await server.send(writer, error("busy"), 500)
            return
        await echo(server, request, writer)

    return behave


def job(server: ChatServer, table: Path, out: Path, **chosen: Any) -> TableJob:
    """`retry`, `dedup` and `columns` are of the command, the others of the captioner."""
    own = {name: chosen.pop(name) for name in ("retry", "dedup") if name in chosen}
    columns = chosen.pop("columns", ())
    given = {"format": "png", "prompts": TWO, **chosen}
    captioner = Endpoint(**given).captioner(server.url, None, None)
    asked = CaptionOptions(out=str(out), batch=16, part_rows=20_000, **own)
    source = Table(str(table), columns=columns, key_column="path")
    how = (Fetch(), Reading(), Cluster(local_rows=100_000))
    return captions_job(captioner, source, asked, *how)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "captions").to_pylist()
    found = {row["key"]: row for row in table}
    assert len(found) == len(table), "each key once"
    return found


def check_rows(found: dict[str, dict[str, Any]], count: int, empty: set[int]) -> None:
    """Each column of each row holds the answer to its own prompt and picture."""
    assert len(found) == count
    for number in range(count):
        row = found[f"p/{number}.png"]
        if number in empty:
            assert row["status"] == "failed_to_caption" and row["tags"] is None
            assert row["error_message"] == "prompt tags: column title is empty"
            continue
        title = f"thing {number} {{size}}"
        tags = said(number, f"List the tags of {title}.")
        assert row["tags"] == tags, number
        assert row["caption"] == said(number, f"Describe {title}. Tags: {tags}"), number


def test_each_column_of_each_row_answers_its_own_prompt_and_picture(tmp_path: Path) -> None:
    table = numbered_pictures(tmp_path / "in", 60, empty={7, 31})
    with serving() as server:
        server.always = failing_now_and_then()
        assert run_job(job(server, table, tmp_path / "out"), {}) == 1
        found = rows(tmp_path / "out")
        check_rows(found, 60, {7, 31})
        assert found["p/8.png"]["tokens_in"] == 180, "of both prompts"
        assert "title" not in found["p/8.png"], "it is read and not carried"
        before = server.asked.total()
        assert run_job(job(server, table, tmp_path / "out", retry="failed"), {}) == 1
        assert server.asked.total() == before, "an empty title is asked nothing"


RUN = """
import sys
from pathlib import Path
import test_prompts as tests
from chat_server import ChatServer

server = ChatServer()
server.port = int(sys.argv[1])
job = tests.job(server, Path(sys.argv[2]), Path(sys.argv[3]), in_flight=32)
sys.exit(tests.run_job(job, {}))
"""


@pytest.mark.slow  # ten thousand pictures, and a run waits for the lease of one that was killed
def test_ten_thousand_rows_hold_their_own_answers_after_kills(tmp_path: Path) -> None:
    count, empty = 10_000, {5, 77, 9_999}
    table, out = numbered_pictures(tmp_path / "in", count, empty), tmp_path / "out"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    with serving() as server:
        server.keeps_requests = False
        server.always = failing_now_and_then()
        command = [sys.executable, "-c", RUN, str(server.port), str(table), str(out)]
        for kill in range(3):
            log = tmp_path / f"{kill}.log"
            with log.open("w") as errors:
                run = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors)
            wanted = count // 2 * (kill + 1)
            while server.answered.total() < wanted:
                assert run.poll() is None, log.read_text()[-2000:]
                time.sleep(0.05)
            run.send_signal(signal.SIGKILL)
            run.wait()
        last = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert last.returncode == 1, last.stderr
        check_rows(rows(out), count, empty)
        asked = server.asked.total()
    print(f"{asked} requests for {2 * count - 2 * len(empty)} answers, after 3 kills")


def test_equal_pictures_with_other_values_are_asked_apart(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (0, 0, 9)).save(tmp_path / "same.png")
    lines = ["path,name,title", *(f"same.png,{n},t{n % 2}" for n in range(6))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for dedup in (False, True):
        with serving() as server:
            server.always = echo
            made = Endpoint(prompt="Describe {title}.", format="png").captioner(
                server.url, None, None
            )
            asked = CaptionOptions(out=str(tmp_path / f"out{dedup}"), dedup=dedup)
            source = Table(str(tmp_path / "a.csv"), key_column="name", columns=("title",))
            run_job(captions_job(made, source, asked, Fetch(), Reading(), Cluster()), {})
            found = rows(tmp_path / f"out{dedup}")
            for number in range(6):
                row = found[str(number)]
                assert row["title"] == f"t{number % 2}"
                assert row["caption"] == said(9, f"Describe t{number % 2}.")
            assert server.asked.total() == (2 if dedup else 6)


def test_columns_that_a_source_lacks_are_refused_early(tmp_path: Path) -> None:
    table = numbered_pictures(tmp_path / "in", 2)
    with serving() as server:
        with pytest.raises(UserError, match=r"no column 'titel'; did you mean 'title'\?"):
            job(server, table, tmp_path / "out", prompts={"caption": "Describe {titel}"})
        with pytest.raises(UserError, match="raycap has a column of that name"):
            job(server, table, tmp_path / "out", prompts={"caption": "Improve {caption}"})
        with pytest.raises(UserError, match=r"two columns named '(?i:title)'"):
            job(server, table, tmp_path / "out", prompts={"TITLE": "a {title}", "caption": "b"})
        with pytest.raises(UserError, match="two columns named 'tokens_in'"):
            job(server, table, tmp_path / "out", prompts={"tokens_in": "a", "caption": "b"})
        with pytest.raises(UserError, match="two columns named 'title'"):
            carried = {"columns": ("title",), "prompts": {"title": "a", "caption": "b"}}
            job(server, table, tmp_path / "out", **carried)
        made = Endpoint(prompt="{title}").captioner(server.url, None, None)
        with pytest.raises(UserError, match="this source has no columns of its own"):
            how = (CaptionOptions(out="o"), Fetch(), Reading(), Cluster())
            captions_job(made, Folder(str(tmp_path)), *how)
        assert server.asked.total() == 0


def test_reasons_are_counted_with_their_prompt() -> None:
    assert reason_head("prompt tags: column title is empty") == (
        "prompt tags: column title is empty"
    )
    assert reason_head("prompt tags: the server failed: HTTP 500, x") == (
        "prompt tags: the server failed"
    )
    assert reason_head("the server failed: HTTP 500") == "the server failed"


# The endpoint.


def ask(server: ChatServer, row: dict[str, Any], captions: int = 1, **chosen: Any) -> Any:
    given = EndpointOptions((server.url,), Endpoint(name=MODEL, **chosen), captions)
    with given.open("", 1) as opened:
        [found] = opened.predict([np.frombuffer(b"x", np.uint8)], [row])
    return found


def test_the_first_words_are_a_part_of_the_caption() -> None:
    for content in (" of a dog", "of a dog", "A photo of a dog"):
        with serving() as server:
            server.always = choice({"content": content})
            assert ask(server, {}, start="A photo").caption == "A photo of a dog"
            sent = server.requests[-1].fields
            assert sent["messages"][-1] == {"role": "assistant", "content": "A photo"}
            assert sent["continue_final_message"] and not sent["add_generation_prompt"]
    with serving() as server:

        async def refuses(server: ChatServer, request: ChatRequest, writer: Any) -> None:
            text = "Unrecognized request argument supplied: continue_final_message"
            await server.send(writer, error(text), 400)

        server.always = refuses
        with pytest.raises(UserError, match=r"leave out --captioner.start"):
            ask(server, {}, start="A photo")


def test_a_column_may_hold_the_prompt_of_each_picture() -> None:
    with serving() as server:
        server.always = choice({"content": "yes"})
        assert ask(server, {"question": "Is it {red}?"}, prompt_column="question").caption == "yes"
        assert prompt_of(server.requests[-1]) == "Is it {red}?", "a value is no template"
        found = ask(server, {"question": None}, prompt_column="question")
        assert found.error == "prompt caption: column question is empty"


def test_another_attempt_draws_other_words() -> None:
    with serving() as server:
        for row in ({}, {ATTEMPT: 0}, {ATTEMPT: 1}, {ATTEMPT: 2}):
            ask(server, row, retry_temperature=0.4)
        first, same, one, two = [each.fields for each in server.requests]
        assert first == same and "seed" not in first and first["temperature"] == 0
        assert one["temperature"] == two["temperature"] == 0.4
        assert one["seed"] != two["seed"]
        for row in ({}, {ATTEMPT: 1}):
            ask(server, row, temperature=0.9)
        assert len({each.fields["seed"] for each in server.requests[-2:]}) == 2
        assert {each.fields["temperature"] for each in server.requests[-2:]} == {0.9}


def test_kept_answers_are_those_of_the_prompt_the_values_and_the_attempt(tmp_path: Path) -> None:
    rows = [{CHUNK: "a", "title": title, ATTEMPT: attempt} for title in "xy" for attempt in (0, 1)]

    async def says_what_it_was_asked(server: ChatServer, request: ChatRequest, w: Any) -> None:
        asked = f"{prompt_of(request)} {request.fields.get('seed')}"
        await choice({"content": hashlib.sha256(asked.encode()).hexdigest()})(server, request, w)

    with serving() as server:
        server.always = says_what_it_was_asked
        endpoint = Endpoint(name=MODEL, prompts=TWO)
        made = EndpointOptions((server.url,), endpoint, journal=str(tmp_path))
        found = []
        for _ in range(2):
            with made.open("", 1) as opened:
                answers = opened.predict([np.frombuffer(b"x", np.uint8)] * 4, rows)
            found.append([(each.extras["tags"], each.caption) for each in answers])
            assert server.asked.total() == 8
        assert found[0] == found[1] and len(set(found[0])) == 4


def test_the_reason_names_the_prompt_that_failed() -> None:
    async def only_tags(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        is_first = prompt_of(request).startswith("List")
        message = {"content": "dog"} if is_first else {"content": None, "refusal": "no"}
        await choice(message)(server, request, writer)

    with serving() as server:
        server.always = only_tags
        found = ask(server, {"title": "x"}, prompts=TWO)
        assert found.error == "prompt caption: the server held the caption back: no"
        assert not found.extras


def test_several_captions_are_of_the_last_prompt() -> None:
    with serving() as server:
        found = ask(server, {"title": "x"}, 3, prompts=TWO, temperature=0.5)
        assert len(found.alternatives) == 2
        assert [each.fields.get("n", 1) for each in server.requests] == [1, 3]


def test_photos_on_the_command_line_have_all_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (2, 2), (0, 0, 5)).save(tmp_path / "a.png")
    with serving() as server:
        server.always = echo
        flags = ["--model", server.url, "--captioner.format", "png"]
        photo = str(tmp_path / "a.png")
        asked = ["--prompt.tags", "List tags.", "--prompt", "Say it. {tags}"]
        assert main(["caption", photo, *flags, *asked]) == 0
        tags = said(5, "List tags.")
        expected = f"tags: {tags}\ncaption: {said(5, f'Say it. {tags}')}\n"
        assert capsys.readouterr().out == expected
        assert main(["caption", photo, *flags, "--prompt", "About {title}"]) == 2
        assert "single photos do not" in capsys.readouterr().err


def test_programs_have_all_answers() -> None:
    with serving() as server:
        server.always = echo
        endpoint = Endpoint(name=MODEL, prompts=TWO, format="png")
        with EndpointOptions((server.url,), endpoint).open("", 1) as captioner:
            pictures = [np.full((2, 2, 3), (0, 0, number), np.uint8) for number in (1, 2)]
            found = captioner.caption(pictures, values=[{"title": "a"}, {}])
        tags = said(1, "List the tags of a.")
        assert found[0].answers == {
            "tags": tags,
            "caption": said(1, f"Describe a. Tags: {tags}"),
        }
        assert found[1].error_message == "prompt tags: column title is empty"
        with pytest.raises(UserError, match="1 values for 2 pictures"):
            captioner.caption_loaded(captioner.load_pictures(pictures), [{}])
