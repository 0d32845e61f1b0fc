"""Answers with a structure: what fits a schema or a list of tags, and the columns of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import MODEL, ChatRequest, ChatServer, choice, error, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_prompts import prompt_of

from raycap.bulk.captions import captions_job
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.captioners.endpoint import Endpoint, EndpointOptions
from raycap.captioners.prompts import Prompt, Unanswerable
from raycap.captioners.structured import Structure, arrow_type, read_schema, read_tags
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.schema import storable
from raycap.sources import Folder

pytestmark = pytest.mark.usefixtures("no_ray")

PRODUCT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "blue"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "price": {"type": ["number", "null"]},
        "count": {"type": "integer", "minimum": 0},
        "new": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
PART = pa.struct([("name", pa.string())])
KIND = pa.struct(
    [
        ("colour", pa.string()),
        ("parts", pa.list_(PART)),
        ("price", pa.float64()),
        ("count", pa.int64()),
        ("new", pa.bool_()),
    ]
)
GOOD = '{"colour": "red", "count": 2.0, "parts": [{"name": "lid"}], "price": 3}'
PARSED = {"colour": "red", "parts": [{"name": "lid"}], "price": 3.0, "count": 2, "new": None}


def written(folder: Path, schema: object = PRODUCT) -> str:
    file = folder / "schema.json"
    file.write_text(json.dumps(schema))
    return str(file)


def test_a_schema_has_an_arrow_type_that_a_table_holds() -> None:
    assert arrow_type(PRODUCT) == KIND and storable(KIND) == KIND


SCALARS = st.sampled_from(["string", "integer", "number", "boolean"])


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = inner.map(lambda each: {"type": "array", "items": each})
    fields = st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, min_size=1)
    return lists | fields.map(lambda each: {"type": "object", "properties": each})


SCHEMAS = st.recursive(SCALARS.map(lambda each: {"type": each}), nested, max_leaves=8)


def value_of(schema: Any) -> st.SearchStrategy[Any]:
    """Values that fit a schema of SCHEMAS, with properties left out."""
    if schema["type"] == "array":
        return st.lists(value_of(schema["items"]), max_size=3)
    if schema["type"] == "object":
        own = {name: value_of(inner) for name, inner in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=own)
    numbers = st.integers(-(2**63), 2**63 - 1)
    plain = {"string": st.text(), "integer": numbers, "boolean": st.booleans()}
    return plain.get(schema["type"], st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=25)
@given(st.data())
def test_what_fits_becomes_a_value_of_the_column(data: st.DataObject) -> None:
    inner = data.draw(SCHEMAS)
    schema = {"type": "object", "properties": {"a": inner}}
    structure = Structure(json.dumps(schema))
    value = data.draw(value_of(schema))
    fitted = structure.fit(json.dumps(value))
    [found] = pa.array([fitted.parsed], structure.arrow_type()).to_pylist()
    assert without_none(found) == without_none(value)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_none(each) for name, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (GOOD, ""),
        (f"Here it is:\n```json\n{GOOD}\n```", ""),
        (f"Sure! {GOOD} Anything else?", ""),
        ("a red mug", "the answer is not JSON"),
        (GOOD[:-3], "the answer is not JSON"),
        ('{"colour": "green", "count": 1}', "does not fit the schema: colour: 'green'"),
        ('{"colour": "red"}', "does not fit the schema: it: 'count' is a required property"),
        ('{"colour": "red", "count": 1, "x": 2}', "does not fit the schema"),
        ('{"colour": "red", "count": NaN}', "the answer is not JSON"),
        (f'{{"colour": "red", "count": {10**30}}}', "larger than 64 bits"),
        ("[" * 100_000, "the answer is not JSON"),
    ],
    ids=[
        *("good", "fence", "sentence", "words", "cut", "enum", "required", "additional"),
        *("nan", "large", "deep"),
    ],
)
def test_answers_are_validated(answer: str, reason: str) -> None:
    structure = Structure(json.dumps(PRODUCT))
    if not reason:
        assert structure.fit(answer).parsed == PARSED and structure.fit(answer).text == answer
        return
    with pytest.raises(Unanswerable) as fault:
        structure.fit(answer)
    assert reason in str(fault.value)


def of_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "is not a JSON object"),
        ({"type": "string"}, "the answer is an object"),
        ({"type": "wrong"}, "is no JSON schema"),
        (of_object(), "an object without properties"),
        (of_object(a={"type": ["string", "integer"]}), "#/properties/a has no type"),
        (of_object(a={"type": "array"}), "#/properties/a/items does not say"),
        (of_object(**{"a b": {"type": "string"}}), "has the property 'a b'"),
        (of_object(a={"type": "string"}, A={"type": "string"}), "differ only in capitals"),
        (of_object(a={"$ref": "#"}), "refers to itself"),
        (of_object(a={"$ref": "#/properties/a"}), "refers to itself"),
        (of_object(a={"$ref": "http://localhost:1/x.json"}), "references within the file"),
        (of_object(a={"type": "object", "properties": {"b": {"$ref": "x"}}}), "within the file"),
    ],
    ids=[
        *("list", "string", "wrong", "empty", "union", "items", "space", "capitals", "itself"),
        *("loop", "remote", "inner"),
    ],
)
def test_schemas_that_cannot_be_a_column_are_refused(
    schema: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        read_schema(written(tmp_path, schema))
    assert message in str(refused.value)


def test_a_schema_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no schema"):
        read_schema(str(tmp_path / "none.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_schema(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ('["Dog", "cat"]', ["dog", "Cat"]),
        ('{"tags": ["cat", "a tree", "cat"]}', ["Cat"]),
        ("dog, Red Ball, tree", ["dog", "red ball"]),
        ("- dog\n- red ball\n", ["dog", "red ball"]),
        ("1. Cat.\n2) 'dog'", ["Cat", "dog"]),
        ("[]", []),
        ("None", []),
        ("The picture shows a house.", None),
    ],
)
def test_the_answer_is_a_subset_of_the_tags(answer: str, tags: list[str] | None) -> None:
    structure = read_tags(("dog", "Cat", "red  ball", "DOG"))
    assert structure.tags == ("dog", "Cat", "red ball")
    if tags is None:
        with pytest.raises(Unanswerable, match="none of the tags"):
            structure.fit(answer)
    else:
        fitted = structure.fit(answer)
        assert fitted.parsed == tags and fitted.text == ", ".join(tags)


def test_tags_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("dog\n\n cat \n")
    assert read_tags((str(tmp_path / "tags.txt"),)).tags == ("dog", "cat")
    with pytest.raises(UserError, match="there is no list of tags"):
        read_tags((str(tmp_path / "none.txt"),))
    with pytest.raises(UserError, match="at most 1000"):
        read_tags([f"tag {number}" for number in range(1001)])


# With a server.


def ask(server: ChatServer, captions: int = 1, **chosen: Any) -> Any:
    given = EndpointOptions((server.url,), Endpoint(name=MODEL, **chosen), captions)
    with given.open("", 1) as opened:
        [found] = opened.predict([np.frombuffer(b"x", np.uint8)], [{"sha256": "ab"}])
    return found


def test_the_server_and_the_model_are_told_the_schema(tmp_path: Path) -> None:
    with serving() as server:
        server.always = choice({"content": GOOD})
        found = ask(server, prompt="Describe it.", schema=written(tmp_path))
        assert found.caption == GOOD and found.extras["caption_parsed"] == PARSED
        fields = server.requests[-1].fields
        assert fields["response_format"]["json_schema"]["schema"] == PRODUCT
        assert "strict" not in fields["response_format"]["json_schema"], "not all are required"
        assert prompt_of(server.requests[-1]).startswith("Describe it.\nAnswer only with JSON")

        server.always = choice({"content": '{"tags": ["cat"]}'})
        found = ask(server, tags=("dog", "cat"))
        assert (found.caption, found.extras["caption_parsed"]) == ("cat", ["cat"])
        assert found.extras["caption_raw"] == '{"tags": ["cat"]}'
        assert server.requests[-1].fields["response_format"]["json_schema"]["strict"] is True


def test_a_server_that_cannot_guide_is_asked_without(tmp_path: Path) -> None:
    async def refuses(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        if "response_format" in request.fields:
            await server.send(writer, error("response_format: not supported"), 400)
        else:
            await choice({"content": f"Here:\n{GOOD}"})(server, request, writer)

    with serving() as server:
        server.always = refuses
        assert ask(server, schema=written(tmp_path)).extras["caption_parsed"] == PARSED
        assert len(server.requests) == 2


def test_what_does_not_fit_is_tried_with_other_draws_and_then_fails(tmp_path: Path) -> None:
    async def fits_at_last(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        fits = server.asked.total() % 3 == 0
        await choice({"content": GOOD if fits else "a mug"})(server, request, writer)

    schema = written(tmp_path)
    with serving() as server:
        server.always = fits_at_last
        found = ask(server, schema=schema)
        assert found.extras["caption_parsed"] == PARSED
        assert found.extras["attempts"] == 3
        draws = [(e.fields["temperature"], e.fields.get("seed")) for e in server.requests]
        assert [each for each, _ in draws] == [0, 0.7, 0.7] and len(set(draws)) == 3
        found = ask(server, schema=schema, tries=2)
        assert found.error == "prompt caption: the answer is not JSON: 'a mug'"
        assert not found.extras


def test_an_answer_that_was_cut_off_says_so(tmp_path: Path) -> None:
    with serving() as server:
        server.always = choice({"content": GOOD[:20]}, finish_reason="length")
        found = ask(server, schema=written(tmp_path))
        assert "cut off before it fitted: give more --captioner.max-tokens" in found.error


def test_of_several_captions_those_that_fit_are_taken() -> None:
    async def some(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        texts = ["a house", '["dog"]', "cat, tree"]
        choices = [
            {"index": n, "message": {"content": text}, "finish_reason": "stop"}
            for n, text in enumerate(texts)
        ]
        await server.send(writer, {"model": MODEL, "choices": choices})

    with serving() as server:
        server.always = some
        found = ask(server, 3, tags=("dog", "cat"), temperature=0.5)
        assert found.caption == "dog"
        assert [each.caption for each in found.alternatives] == ["cat"]


def test_parsed_answers_are_columns_of_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (2, 2), (number * 8, 0, 0)).save(folder / f"{number}.png")

    async def answers(server: ChatServer, request: ChatRequest, writer: Any) -> None:
        await asyncio.sleep(0)
        if prompt_of(request).startswith("List"):
            text = '["dog", "tree"]'
        else:
            assert "Tags: dog." in prompt_of(request)
            text = GOOD if request.picture[-30] % 2 else '{"colour": "green"}'
        await choice({"content": text})(server, request, writer)

    prompts: dict[str, str | Prompt] = {
        "labels": Prompt("List.", tags=("dog", "cat")),
        "caption": Prompt("Tags: {labels}.", schema=written(tmp_path)),
    }
    with serving() as server:
        server.always = answers
        made = Endpoint(prompts=prompts, format="png", tries=1).captioner(server.url, None, None)
        asked = CaptionOptions(out=str(tmp_path / "out"))
        how = (asked, Fetch(), Reading(), Cluster())
        run_job(captions_job(made, Folder(str(folder)), *how), {})
    table = pq.read_table(tmp_path / "out" / "captions")
    assert table.schema.field("caption_parsed").type == KIND
    assert table.schema.field("labels_parsed").type.value_type == pa.string()
    statuses = set()
    for row in table.to_pylist():
        statuses.add(row["status"])
        if row["status"] == "success":
            assert row["caption"] == GOOD and row["caption_parsed"] == PARSED
            assert row["labels"] == "dog" and row["labels_parsed"] == ["dog"]
            assert row["labels_raw"] == '["dog", "tree"]'
        else:
            assert row["caption_parsed"] is None and row["labels"] is None
            assert row["error_message"].startswith(
                "prompt caption: the answer does not fit the schema"
            )
    assert len(statuses) == 2, "some fit and some do not"
