"""The endpoint captioner against a server on loopback, which misbehaves in every way we know."""

import asyncio
import gc
import json
import logging
import math
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_server
import numpy as np
import pytest
from chat_server import BEHAVIOURS, MODEL, ChatServer, caption_of, serving, serving_again

from raycap.captioners import Prediction
from raycap.captioners.endpoint import Endpoint, EndpointOptions, client, servers
from raycap.captioners.endpoint.answers import read_answer
from raycap.captioners.endpoint.captioner import EndpointCaptioner
from raycap.captioners.endpoint.faults import Fault, Kind
from raycap.captioners.endpoint.options import COLUMNS, base_urls
from raycap.captioners.generation import picture_seed
from raycap.errors import UserError

KEY = "sk-proj-4b8Jv0Qz81LmT5xYwEr2"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds. No key of whoever runs the tests."""
    monkeypatch.setattr(client, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(client, "SECONDS_BETWEEN_PROBES", 0.2)
    monkeypatch.setattr(servers, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(servers, "FIRST_CHECK", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@contextmanager
def opened(
    server: ChatServer, captions: int = 1, urls: Sequence[str] = (), **options: Any
) -> Iterator[EndpointCaptioner]:
    endpoint = Endpoint(**{"name": MODEL, **options})
    with EndpointOptions(tuple(urls) or (server.url,), endpoint, captions).open("", 1) as found:
        yield found


def ask(captioner: EndpointCaptioner, *words: str) -> list[Prediction]:
    pictures = [np.frombuffer(word.encode(), np.uint8) for word in words]
    return captioner.predict(pictures, [{} for _ in pictures])


# What each misbehaviour leads to: a caption, or the beginning of a reason.
UNUSABLE = "the server's answer cannot be used"
WELL, LOST, TIMED_OUT = "", "the connection broke", "no answer in time"
FAILED, REFUSED = "the server failed", "the server refused the request"
EXPECTED = {
    "late": WELL,
    "slow-headers": TIMED_OUT,
    "many-headers": LOST,
    "slow-body": TIMED_OUT,
    "endless-body": "the server's answer is too large",
    "endless-chunks": "the server's answer is too large",
    "declares-10-GB": "the server's answer is too large",
    "endless-error": FAILED,
    "no-http": LOST,
    "html": f"{UNUSABLE}: it is an HTML page",
    "broken-json": f"{UNUSABLE}: it is not JSON",
    "other-json": f"{UNUSABLE}: it is no JSON object",
    "nan": f"{UNUSABLE}: it is not JSON",
    "deep": f"{UNUSABLE}: it is not JSON (it is nested too deeply)",
    "empty-body": f"{UNUSABLE}: it is empty",
    "truncated-utf8": f"{UNUSABLE}: it is not UTF-8 text",
    "utf-16": f"{UNUSABLE}: it is not UTF-8 text",
    "half-character": "half ? of it",
    "stream": f"{UNUSABLE}: it is not JSON",
    "text-plain": "plain",
    "gzip": "the server's answer is compressed",
    "no-choices": f"{UNUSABLE}: no choices in it",
    "choices-null": f"{UNUSABLE}: no choices in it",
    "choices-words": f"{UNUSABLE}: a choice without a message",
    "error-in-200": f"{UNUSABLE}: ",
    "other-model": "another model answered: 'huge-vl-900B' instead of 'tiny-vl'",
    "no-message": f"{UNUSABLE}: a choice without a message",
    "no-text": "the server answered without a text",
    "null-text": "the server answered without a text",
    "number-text": f"{UNUSABLE}: its content is no text",
    "parts": "a dog",
    "refusal": "the server held the caption back: I cannot",
    "filtered": "the server held the caption back: its content filter",
    "cut-off": "half a cap",
    "thinking": "the server answered without a text: --captioner.max-tokens ran out",
    "odd-finish": "a dog",
    "odd-logprobs": "a dog",
    "huge-logprobs": "a dog",
    "odd-usage": WELL,
    "reset": LOST,
    "hang-up": LOST,
    "hang": TIMED_OUT,
    "cut": LOST,
    "status-204": f"{UNUSABLE}: it is empty",
    "redirect": "the server redirects: HTTP 302 to http://10.0.0.1/secret; this is not followed",
    "redirect-here": "the server redirects: HTTP 307",
    "status-400": f"{REFUSED}: HTTP 400",
    "status-403": f"{REFUSED}: HTTP 403",
    "status-404": f"{REFUSED}: HTTP 404",
    "status-413": f"{REFUSED}: HTTP 413",
    "status-422": f"{REFUSED}: HTTP 422",
    "status-500": f"{FAILED}: HTTP 500",
    "status-502": f"{FAILED}: HTTP 502",
    "status-503": TIMED_OUT,
    **dict.fromkeys(("reset-once", "cut-once", "500-once", "502-twice", "json-once"), WELL),
    **dict.fromkeys(("429-thrice", "503-thrice"), WELL),
}


def test_each_misbehaviour_costs_its_own_picture_only() -> None:
    assert EXPECTED.keys() == BEHAVIOURS.keys()
    words = [f"{word} {number}" for word in EXPECTED if "503" not in word for number in range(2)]
    good = [f"fine {number}" for number in range(40)]
    # retries: one that is well at the third time has to get there.
    patient = {"request_timeout": 1.5, "deadline": 30, "retries": 2}
    with serving() as server, opened(server, **patient, in_flight=200) as captioner:
        ask(captioner, "fine first")
        found = dict(zip(words + good, ask(captioner, *words, *good), strict=True))
        # Less than one buffer of each was read.
        assert server.bytes_sent < 500e6
        assert [each.caption for each in ask(captioner, *good)] == [
            caption_of(word.encode()) for word in good
        ], "it goes on"
        assert not any("/secret" in path for path in server.paths)
    # An overload is everybody's: these have a server of their own.
    words = ["status-503", "503-thrice", "429-thrice", "fine"]
    with serving() as server, opened(server, deadline=1) as captioner:
        found |= zip(words, ask(captioner, *words), strict=True)
    for word, prediction in found.items():
        wanted = EXPECTED.get(word.partition(" ")[0], WELL)
        if wanted == WELL:
            wanted = caption_of(word.encode())
        shown = prediction.error or prediction.caption
        assert shown.startswith(wanted), f"{word}: {shown}"
        assert bool(prediction.error) != bool(prediction.caption)
        head = prediction.error.partition(":")[0]
        assert not any(letter.isdigit() for letter in head) and "127" not in head
    assert len({each.error.partition(":")[0] for each in found.values()}) < 16


def test_an_answer_is_never_larger_than_its_limit_in_memory() -> None:
    for word in ("endless-body", "endless-chunks", "declares-10-GB"):
        with serving() as server, opened(server, retries=0, max_tokens=10) as captioner:
            ask(captioner, "fine")
            [prediction] = ask(captioner, word)
            assert "too large" in prediction.error
            # What the sockets hold, and one limit of about 1 MB.
            assert server.bytes_sent < 16e6


def test_answers_are_those_of_their_pictures_whatever_the_order() -> None:
    words = [f"late {number}" for number in range(100)]
    with serving() as server, opened(server, in_flight=30) as captioner:
        found = ask(captioner, *words)
        assert [each.caption for each in found] == [caption_of(word.encode()) for word in words]
        assert server.asked.total() == 100 and 1 < server.most_in_flight <= 30


def test_what_is_sent_and_what_comes_back() -> None:
    options = {"prompt": 'Say "hé"!\n', "system": "Be brief.", "max_tokens": 9, "top_p": 0.9}
    options |= {"temperature": 0.5, "stop": ("\n", "END"), "seed": 7, "detail": "low"}
    with serving() as server:
        with opened(server, **options, body='{"top_k": 20, "temperature": 0.6}') as captioner:
            picture = np.frombuffer(b"fine", np.uint8)
            [prediction] = captioner.predict([picture], [{"sha256": "ab12"}])
        [request] = server.requests
    seed = picture_seed(7, "ab12", 0)
    url = request.fields["messages"][1]["content"][0]["image_url"]
    assert url == {"url": "data:image/jpeg;base64,ZmluZQ==", "detail": "low"}
    assert request.fields["messages"][1]["content"][1] == {"type": "text", "text": 'Say "hé"!\n'}
    assert request.fields["messages"][0] == {"role": "system", "content": "Be brief."}
    del request.fields["messages"]
    assert request.fields == {
        **{"model": MODEL, "max_tokens": 9, "temperature": 0.6, "top_p": 0.9, "seed": seed},
        **{"stop": ["\n", "END"], "logprobs": True, "top_k": 20},
    }
    assert "authorization" not in request.headers
    assert prediction.caption == caption_of(b"fine", seed)
    assert prediction.score == pytest.approx(-0.55)
    assert set(prediction.extras) == set(COLUMNS.names)
    assert prediction.extras["tokens_in"] == 90 and prediction.extras["tokens_out"] == 4
    assert prediction.extras["finish_reason"] == "stop" and prediction.extras["attempts"] == 1
    assert 0 < prediction.extras["seconds"] < 60


def test_fields_that_say_nothing_are_not_sent_for_servers_that_lack_them() -> None:
    with serving() as server, opened(server, logprobs=False) as captioner:
        ask(captioner, "fine")
        assert server.requests[0].fields.keys() == {
            *("model", "messages", "max_tokens", "temperature")
        }


@pytest.mark.parametrize("one_request", [True, False])
@pytest.mark.parametrize("most_choices", [1, 2, 9])
def test_several_captions_also_from_a_server_that_gives_fewer(
    one_request: bool, most_choices: int
) -> None:
    with serving() as server:
        server.most_choices = most_choices
        how = {"temperature": 0.8, "one_request": one_request}
        with opened(server, captions=4, **how) as captioner:
            [prediction] = ask(captioner, "fine")
        texts = [prediction.caption, *(each.caption for each in prediction.alternatives)]
        scores = [prediction.score, *(each.score for each in prediction.alternatives)]
        calls = -(-4 // min(most_choices, 4)) if one_request else 4
        assert server.asked.total() == calls
        assert len(set(texts)) == 4, "each call has another seed"
        assert scores == sorted(scores, reverse=True)
        assert prediction.extras["attempts"] == calls
        assert prediction.extras["tokens_in"] == 90 * calls


def test_captions_without_scores_stay_in_the_servers_order() -> None:
    with serving() as server:
        server.logprob = None
        with opened(server, captions=3, temperature=1.0) as captioner:
            [prediction] = ask(captioner, "fine")
    assert (
        prediction.score is None and [each.score for each in prediction.alternatives] == [None] * 2
    )
    assert [each.caption[-2:] for each in prediction.alternatives] == [".1", ".2"]


@pytest.mark.parametrize(
    "complaint, left",
    [
        ("logprobs are not supported by this model", {"max_tokens"}),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            {"logprobs", "max_completion_tokens"},
        ),
    ],
)
def test_the_dialect_follows_what_the_server_complains_about(
    complaint: str, left: set[str]
) -> None:
    refused = ({"logprobs", "max_tokens"} - left).pop()

    async def picky(server: ChatServer, request: Any, writer: Any) -> None:
        if refused in request.fields:
            await server.send(writer, chat_server.error(complaint), 400)
        else:
            await chat_server.good(server, request, writer)

    with serving() as server:
        server.always = picky
        with opened(server) as captioner:
            assert all(each.caption for each in ask(captioner, "a", "b", "c"))
        assert server.requests[-1].fields.keys() - {"model", "messages", "temperature"} == left
    with serving() as server:  # what the user has fixed stays
        server.always = picky
        with (
            opened(server, body=json.dumps({refused: 1})) as captioner,
            pytest.raises(UserError, match="does not caption pictures"),
        ):
            ask(captioner, "a")


# A server that is wrong as a whole ends the run.


@pytest.mark.parametrize(
    "behaviour, message",
    [
        (chat_server.status(401, KEY), "gives no access: HTTP 401, no API key was sent"),
        (chat_server.status(402, "pay"), "gives no access: HTTP 402"),
        (chat_server.status(429, "code: insufficient_quota"), "insufficient_quota"),
        (chat_server.status(403), "HTTP 403, no API key was sent"),
        (chat_server.status(404, "no model tiny-vl"), "no model tiny-vl.*model 'tiny-vl'"),
        (chat_server.status(400, "images are not supported"), "images are not supported"),
        (BEHAVIOURS["redirect"], "redirects: HTTP 302 to http://10.0.0.1/secret; .*--model"),
        (BEHAVIOURS["html"], "HTML page"),
        (BEHAVIOURS["other-model"], "another model answered"),
        (BEHAVIOURS["no-choices"], "no choices"),
        (chat_server.status(500, "CUDA error"), "HTTP 500.*CUDA error"),
        (BEHAVIOURS["status-503"], "no good answer for 0.5 seconds.*the same command"),
        (BEHAVIOURS["reset"], "no good answer for 0.5 seconds.*the connection broke"),
        (BEHAVIOURS["hang"], "no good answer for 0.5 seconds.*no answer in time"),
    ],
)
def test_a_server_that_is_wrong_as_a_whole_ends_the_run(behaviour: Any, message: str) -> None:
    with serving() as server:
        server.always = behaviour
        hasty = {"retries": 1, "patience": 0.5, "request_timeout": 0.3}
        with opened(server, **hasty) as captioner:
            with pytest.raises(UserError, match=message) as raised:
                ask(captioner, *(f"fine {number}" for number in range(5)))
            assert server.url in str(raised.value)
            with pytest.raises(UserError):
                ask(captioner, "another")
            assert not server.asked[b"another"], "it is not asked again"


def test_a_server_that_breaks_later_ends_the_run() -> None:
    with serving() as server, opened(server, retries=0) as captioner:
        ask(captioner, "fine")
        server.always = chat_server.status(404, "the model was unloaded")
        with pytest.raises(UserError, match="the model was unloaded"):
            for number in range(3 * client.FAILURES_UNTIL_PROBE):
                ask(captioner, f"fine {number}")


def test_many_bad_pictures_in_a_row_do_not_end_the_run() -> None:
    with serving() as server, opened(server, retries=0) as captioner:
        found = ask(captioner, *(f"status-400 {number}" for number in range(100)))
        assert all(each.error for each in found)
        assert ask(captioner, "fine")[0].caption


def test_a_picture_that_kills_each_request_costs_its_row_also_if_it_is_alone() -> None:
    with serving() as server, opened(server, retries=1, patience=60) as captioner:
        [prediction] = ask(captioner, "reset 1")
        assert prediction.error.startswith("the connection broke")


def test_no_server_at_all() -> None:
    with serving() as server:
        url = server.url
    options = EndpointOptions((url,), Endpoint(name=MODEL, patience=0.3))
    with (
        options.open("", 1) as captioner,
        pytest.raises(UserError, match=r"no connection to the server: .*the same command"),
    ):
        ask(captioner, "fine")


def test_close_ends_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        with opened(server, in_flight=4) as captioner:
            pictures = [np.frombuffer(b"hang %d" % number, np.uint8) for number in range(4)]
            answers = [captioner.submit(picture, {}) for picture in pictures]
            while server.in_flight < 4:
                pass
        assert all(answer.cancelled() for answer in answers)
        captioner.close()
    gc.collect()
    assert not caplog.records, "nothing is left pending or unclosed"


# Overload, failover.


def test_a_server_that_restarts_costs_no_row() -> None:
    with serving_again() as held, opened(held.server, in_flight=8, retries=0) as captioner:
        pictures = [np.frombuffer(b"fine %d" % number, np.uint8) for number in range(8)]
        ask(captioner, "fine")
        held.server.delay = 0.2
        answers = [captioner.submit(picture, {}) for picture in pictures]
        while held.server.in_flight < 8:
            pass
        held.stop()
        asyncio.run(asyncio.sleep(0.3))
        held.start()
        assert all(answer.result().caption for answer in answers)


def test_another_server_takes_over_and_the_first_one_comes_back() -> None:
    with serving_again() as held, serving() as second:
        first = held.server
        with opened(first, urls=(first.url, second.url), in_flight=8) as captioner:
            found = ask(captioner, *(f"fine {number}" for number in range(50)))
            assert all(each.caption for each in found)
            assert min(first.asked.total(), second.asked.total()) > 5, "both work"
            held.stop()
            before = first.asked.total()
            found = ask(captioner, *(f"more {number}" for number in range(50)))
            assert all(each.caption for each in found) and first.asked.total() == before
            held.start()
            for number in range(200):
                if first.asked.total() > before:
                    break
                assert all(each.caption for each in ask(captioner, f"x {number}", f"y {number}"))
                asyncio.run(asyncio.sleep(0.02))
            assert first.asked.total() > before, "it is used again"


def test_concurrency_goes_down_when_the_server_is_overloaded_and_up_again() -> None:
    with serving() as server, opened(server, in_flight=64) as captioner:
        limit = captioner._client._servers.all[0]
        server.always = chat_server.busy
        found = ask(captioner, *(f"fine {number}" for number in range(300)))
        assert all(each.caption for each in found), "an overload costs time and no row"
        assert limit.limit < 32
        refused = server.asked.total() - 300
        assert refused < 300, "not every request is refused for long"
        server.always = None
        while limit.limit < 64:
            ask(captioner, *(f"fine {number}" for number in range(200)))


def test_retry_after_is_obeyed_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []
    monkeypatch.setattr(servers, "LONGEST_PAUSE", 0.4)
    texts = ["Retry-After: 99999999999999999999", f"Retry-After: {chat_server.date_in(9e6)}"]
    texts += ["Retry-After: soon", "Retry-After: -5", f"Retry-After: {chat_server.date_in(-99)}"]
    texts += ["Retry-After: \u0663".encode().decode("latin-1"), "Retry-After-Ms: 350"]
    for text in texts:
        with serving() as server, opened(server) as captioner:
            server.always = chat_server.at_first(1, chat_server.status(429, "", f"{text}\r\n"))
            [prediction] = ask(captioner, "fine")
            assert prediction.caption and prediction.extras["attempts"] == 2
            pauses.append(server.times[1] - server.times[0])
    assert all(pause >= 0.35 for pause in (*pauses[:2], pauses[-1]))


# The key.


def _every_text(error: BaseException) -> str:
    """What a traceback, with all causes and their attributes, could show."""
    seen = []
    following: list[BaseException | None] = [error]
    while following:
        each = following.pop()
        if each is not None:
            seen += ["".join(traceback.format_exception(each)), repr(each), repr(vars(each))]
            following += [each.__cause__, each.__context__]
    return "\n".join(seen)


@pytest.mark.parametrize("place", ["file", "variable"])
def test_the_key_is_sent_and_shown_to_nobody(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key.txt").write_text(f"{KEY}\n")
    monkeypatch.setenv("MY_KEY", KEY)
    named = {"key_file": str(tmp_path / "key.txt")} if place == "file" else {"key_env": "MY_KEY"}
    with serving() as server:
        server.key = KEY
        options = Endpoint(**named).captioner(server.url, None, None)
        with options.open("", 1) as captioner:
            shown = [
                repr(captioner),
                repr(options),
                repr(vars(captioner)),
                repr(pickle.dumps(options)),
            ]
            shown.append(json.dumps(options.identity()))
            assert ask(captioner, "fine")[0].caption
            # A server that quotes it, as an error and as a caption.
            for text in (f"your key {KEY} is bad", f"key {KEY[:12]}... is bad"):
                server.always = chat_server.status(422, text)
                shown.append(repr(ask(captioner, "fine")))
            for behaviour in (
                chat_server.choice({"content": f"a dog {KEY}"}),
                chat_server.changed(model=f"tiny-vl {KEY}"),
                chat_server.changed(model=KEY),
                chat_server.choice({"content": None, "refusal": f"no {KEY}"}),
                chat_server.choice({"content": "a"}, finish_reason=KEY.lower().replace("-", "_")),
                chat_server.status(302, "", f"Location: http://there/{KEY}\r\n"),
            ):
                server.always = behaviour
                shown.append(repr(ask(captioner, "fine")))
            with pytest.raises(TypeError):
                pickle.dumps(captioner._key)
            server.key = "another"
            with pytest.raises(UserError) as raised:
                ask(captioner, "fine")
            shown.append(_every_text(raised.value))
        with pytest.raises(UserError, match="does not accept the API key") as raised:
            options.endpoint.captioner(server.url, None, None)
        shown.append(_every_text(raised.value))
    assert "a dog [API key]" in "".join(shown)
    for text in (*shown, caplog.text):
        assert KEY[:12] not in text and KEY[-12:] not in text


def test_a_key_for_a_hosted_service_does_not_reach_other_machines_by_accident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raycap.captioners.endpoint.key import find_key

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for safe in ("https://api.openai.com/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        assert find_key("", "", (safe,)) is not None
    for open_way in ("http://10.0.0.5:8000/v1", "http://gpu-node:8000/v1", "http://127.evil.com"):
        assert find_key("", "", (open_way,)) is None
        assert find_key("", "", ("https://api.openai.com/v1", open_way)) is None
        assert find_key("OPENAI_API_KEY", "", (open_way,)) is not None, "asked for by name"


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe", b"a\nb", b"x" * 20_000])
def test_a_key_that_is_none(content: bytes, tmp_path: Path) -> None:
    from raycap.captioners.endpoint.key import find_key

    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError) as raised:
        find_key("", str(tmp_path / "key"), ())
    assert "two words" not in str(raised.value)
    with pytest.raises(UserError, match=r"NO_SUCH_KEY .* is not set"):
        find_key("NO_SUCH_KEY", "", ())


def test_tls_certificates_are_checked(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout"
    subprocess.run(
        [*make.split(), certificate, "-out", tmp_path / "own.pem"], check=True, capture_output=True
    )
    with certificate.open("a") as file:
        file.write((tmp_path / "own.pem").read_text())
    from server import serving as serving_pictures

    with (
        serving_pictures(certificate=certificate) as server,
        pytest.raises(UserError, match="gives no access: its certificate"),
    ):
        Endpoint().captioner(server.url("/v1"), None, None)


# Options and names.


def test_the_model_is_found_by_asking() -> None:
    with serving() as server, serving() as other:
        both = f"{server.url}/, {other.url} "
        options = Endpoint().captioner(both, None, None)
        assert options.endpoint.name == MODEL and options.urls == (server.url, other.url)
        server.models = other.models = ["a:latest", "b"]
        assert Endpoint(name="a").captioner(both, None, None).endpoint.name == "a"
        with pytest.raises(UserError, match=r"several models: .*--captioner.name: a:latest, b"):
            Endpoint().captioner(both, None, None)
        with pytest.raises(UserError, match="no model 'bb'; did you mean 'b'"):
            Endpoint(name="bb").captioner(both, None, None)
        assert Endpoint(name="bb", check_name=False).captioner(both, None, None)
        other.models = ["a"]
        with pytest.raises(UserError, match=f"{other.url} has no model 'b'"):
            Endpoint(name="b").captioner(both, None, None)
        server.models = None
        assert Endpoint(name="x").captioner(server.url, None, None).endpoint.name == "x"
        with pytest.raises(UserError, match=r"lists no models: give --captioner.name"):
            Endpoint().captioner(server.url, None, None)


def test_a_server_that_fails_to_list_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from raycap.captioners.endpoint import model_name

    monkeypatch.setattr(model_name, "SECONDS_TO_START", 0.2)
    with serving_again() as held:
        held.server.lists_models = False
        with pytest.raises(UserError, match=r"lists no models: give --captioner.name"):
            Endpoint().captioner(held.server.url, None, None)
        before = held.server.paths["/v1/models"]
        options = Endpoint(name=MODEL, in_flight=2).captioner(held.server.url, None, None)
        assert held.server.paths["/v1/models"] == before + 1, "the name is known"
        with options.open("", 1) as captioner:
            assert ask(captioner, "fine")[0].caption
            held.stop()
            answer = captioner.submit(np.frombuffer(b"later", np.uint8), {})
            asyncio.run(asyncio.sleep(0.3))
            held.start()
            assert answer.result().caption, "a server without a list is up again too"


def test_a_server_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    from raycap.captioners.endpoint import model_name

    monkeypatch.setattr(model_name, "SECONDS_TO_START", 0.2)
    with serving() as server:
        with serving() as gone:
            pass
        found = Endpoint().captioner(f"{gone.url},{server.url}", None, None)
        assert found.urls == (gone.url, server.url), "it may come back"
        with pytest.raises(UserError, match=r"no connection to the server: Connect.*--model"):
            Endpoint().captioner(gone.url, None, None)


@pytest.mark.parametrize(
    "model, message",
    [
        ("", "names no server"),
        ("ftp://x/v1", "give a URL"),
        ("http://", "give a URL"),
        ("http://h:99999999/v1", "give a URL"),
        ("http://user:hidden@h/v1", "leave them out"),
        ("http://h/v1?key=hidden", "leave them out"),
        ("http://h/v1/chat/completions", "give the address before it, http://h/v1"),
    ],
)
def test_wrong_urls(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        base_urls(model)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tokens": 0}, "--captioner.max-tokens is 0: give at least 1"),
        ({"temperature": -1}, "--captioner.temperature"),
        ({"temperature": math.nan}, "--captioner.temperature"),
        ({"top_p": 0}, "--captioner.top-p"),
        ({"seed": -1}, "--captioner.seed"),
        ({"stop": ("a", "")}, "--captioner.stop"),
        ({"in_flight": 0}, "--captioner.in-flight is 0"),
        ({"quality": 101}, "--captioner.quality"),
        ({"requests_per_minute": -1}, "--captioner.requests-per-minute"),
        ({"deadline": math.inf}, "--captioner.deadline"),
        ({"key_env": "A", "key_file": "b"}, "both name the API key"),
        ({"body": "{"}, "--captioner.body is not JSON"),
        ({"body": "[]"}, "must be an object"),
        ({"body": '{"stream": true}'}, "'stream', which other options decide"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Endpoint(**options)


def test_several_captions_need_chance() -> None:
    with pytest.raises(UserError, match=r"give --captioner.temperature 0.7"):
        Endpoint().captioner("http://localhost:1/v1", 3, None)


def test_the_identity_is_what_determines_the_text() -> None:
    options = EndpointOptions(("http://a/v1",), Endpoint(name="m", temperature=0.5))
    same: list[Callable[[EndpointOptions], EndpointOptions]] = [
        lambda each: replace(each, urls=("http://b/v1", "http://c/v1")),
        lambda each: each.in_run("s3://bucket/run"),
    ]
    irrelevant = {"in_flight": 3, "requests_per_minute": 5, "tokens_per_minute": 5, "retries": 9}
    irrelevant |= {"request_timeout": 1, "deadline": 2, "patience": 3, "key_env": "X"}
    irrelevant |= {"logprobs": False, "check_name": False}
    relevant = {"name": "n", "prompt": "p", "system": "s", "max_tokens": 9, "temperature": 0.6}
    relevant |= {"top_p": 0.5, "seed": 1, "stop": ("a",), "max_side": 99, "format": "png"}
    relevant |= {"quality": 5, "detail": "low", "body": '{"top_k": 1}'}

    def with_option(name: str, value: Any) -> EndpointOptions:
        endpoint = replace(options.endpoint, **{name: value})
        return EndpointOptions(options.urls, endpoint)

    assert all(change(options).identity() == options.identity() for change in same)
    for name, value in irrelevant.items():
        assert with_option(name, value).identity() == options.identity(), name
    found = [with_option(*each).identity() for each in relevant.items()]
    found.append(replace(options, num_captions=2).identity())
    texts = {json.dumps(each, sort_keys=True) for each in (*found, options.identity())}
    assert len(texts) == len(relevant) + 2
    assert options.placement().gpus == 0
    assert with_option("requests_per_minute", 60).placement().pictures_per_second == 1


def test_options_load_nothing_heavy() -> None:
    heavy = "('aiohttp', 'torch', 'ray')"
    program = (
        "import sys, raycap.captioners.endpoint.options;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_names_of_one_model() -> None:
    def answered(name: object, asked: str) -> bool:
        body = json.dumps({"model": name, "choices": [{"message": {"content": "a"}}]}).encode()
        try:
            return bool(read_answer(body, asked, None).choices)
        except Fault as fault:
            assert fault.kind is Kind.BAD_ANSWER
            return False

    for name in ("gpt-4o", "gpt-4o-2024-08-06", "openai/gpt-4o", "GPT-4o", "", None, 5):
        assert answered(name, "gpt-4o")
    assert answered("llava:latest", "llava") and answered("llava", "llava:latest")
    assert answered("Qwen2-VL-2B", "/models/Qwen2-VL-2B")
    assert not answered("gpt-3.5", "gpt-4o") and answered("gpt-3.5", "")
