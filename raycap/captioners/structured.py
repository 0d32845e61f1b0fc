"""Answers with a structure: JSON that fits a schema, or words of a list of tags.

    read_schema("product.json")    {"type": "object", "properties": {"colour": {...}}, ...}
    read_tags(("dog", "cat"))      the answer is a subset of them

Each answer is validated, whether or not the server or engine had the schema. A fitting answer
becomes a value of an Arrow type, which the schema determines.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap import plainjson
from raycap.captioners.prompts import Unanswerable
from raycap.errors import UserError
from raycap.storage.location import locate

# A longer list does not fit into a prompt beside the question.
MOST_TAGS = 1000
MOST_DEPTH = 32
# Names of columns and their fields that programs of Delta tables refuse.
_NO_NAME = re.compile(r"[ ,;{}()\n\t=]")
_FENCE = re.compile(r"```[a-zA-Z]*\s*(.*?)```", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*\u2022#]+|\d+[.)])\s*")
_NO_TAGS = ("none", "no tags", "nothing", "n/a")
_PLAIN: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}


@dataclass(frozen=True)
class Fitted:
    """An answer that fits."""

    text: str
    """What goes into the caption column and into later prompts."""
    parsed: Any
    """What goes into the column of parsed answers."""


@dataclass(frozen=True)
class Structure:
    """What an answer must fit. It holds the file's content, so it can be sent to workers."""

    schema: str
    """The JSON schema, as JSON."""
    tags: tuple[str, ...] = ()
    """The allowed words; () where a schema file was given."""

    def instruction(self) -> str:
        """What stands behind the prompt. A server or engine that guides the answer
        does not show the schema to the model."""
        if self.tags:
            return f"Answer only with words of this list, as a JSON array: {', '.join(self.tags)}"
        return f"Answer only with JSON that fits this JSON schema: {self.schema}"

    def arrow_type(self) -> pa.DataType:
        """The type of parsed answers."""
        return arrow_type(json.loads(self.schema))

    @property
    def is_closed(self) -> bool:
        """Whether all objects name all their properties: what servers call a strict schema."""
        return _is_closed(json.loads(self.schema))

    def fit(self, answer: str) -> Fitted:
        """Raises Unanswerable if the answer does not fit."""
        if self.tags:
            found = self._tags_in(answer)
            return Fitted(", ".join(found), found)
        value = _json_in(answer)
        fault = next(iter(_validator(self.schema).iter_errors(value)), None)
        if fault is not None:
            place = "/".join(map(str, fault.absolute_path)) or "it"
            reason = f"the answer does not fit the schema: {place}: {fault.message}"
            raise Unanswerable(reason[:300])
        try:
            parsed = _conformed(value, self.arrow_type())
        except (ValueError, OverflowError) as error:
            raise Unanswerable(f"the answer does not fit its column: {error}") from None
        return Fitted(answer, parsed)

    def _tags_in(self, answer: str) -> list[str]:
        """The allowed words in an answer, in its order: a JSON array, or words divided by commas
        or lines."""
        try:
            value: Any = _json_in(answer)
        except Unanswerable:
            value = None
        if isinstance(value, dict) and len(value) == 1:  # {"tags": [...]}
            value = next(iter(value.values()))
        if isinstance(value, list):
            words = [str(word) for word in value]
        else:
            words = [_BULLET.sub("", word) for word in re.split(r"[,;\n]", answer)]
        words = [word.strip(" \t.\"'`[]").casefold() for word in words]
        words = [word for word in words if word]
        allowed = _by_casefold(self.tags)
        found = list(dict.fromkeys(allowed[word] for word in words if word in allowed))
        if not found and words and words[0] not in _NO_TAGS:
            raise Unanswerable(f"the answer holds none of the tags: {answer[:100]!r}")
        return found


@functools.lru_cache(32)
def _by_casefold(tags: tuple[str, ...]) -> dict[str, str]:
    return {tag.casefold(): tag for tag in tags}


def read_schema(path: str) -> Structure:
    """The structure that a file describes. Raises UserError if it cannot become a column."""
    import jsonschema

    file = locate(path)
    if not file.is_file():
        raise UserError(f"there is no schema {path}: give a file with a JSON schema")
    with file.open() as opened:
        content = opened.read()
    try:
        schema = plainjson.loads(content.decode("utf-8-sig"))
    except ValueError as error:  # also UnicodeDecodeError
        raise UserError(f"the schema {path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"the schema {path} is not a JSON object")
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(
            schema
        )
        _refuse_remote(schema)
        kind = arrow_type(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"the schema {path} is no JSON schema: {error.message}") from None
    except UserError as error:
        raise UserError(f"the schema {path}: {error}") from None
    if not pa.types.is_struct(kind):
        raise UserError(
            f'the schema {path} describes {kind}: the answer is an object, with "type": '
            '"object" and its "properties"'
        )
    return Structure(json.dumps(schema, ensure_ascii=False))


def read_tags(tags: Sequence[str]) -> Structure:
    """The structure of answers that hold only these words: the words, or one file of them."""
    if len(tags) == 1:
        [name] = tags
        file = locate(name)
        if file.is_file():
            with file.open() as opened:
                text = opened.read().decode("utf-8-sig", "replace")
            tags = text.splitlines()
        elif name.endswith(".txt"):
            raise UserError(f"there is no list of tags {name}")
    by_casefold: dict[str, str] = {}
    for tag in tags:
        text = " ".join(tag.split())
        by_casefold.setdefault(text.casefold(), text)
    found = tuple(filter(None, by_casefold.values()))
    if not found:
        raise UserError("the list of tags is empty: give words, or a file with one on each line")
    if len(found) > MOST_TAGS:
        raise UserError(
            f"the list has {len(found)} tags, and a model is shown at most {MOST_TAGS}: give a "
            "shorter one, or ask several prompts with a part each"
        )
    schema = {"type": "array", "items": {"type": "string", "enum": list(found)}}
    return Structure(json.dumps(schema, ensure_ascii=False), found)


def arrow_type(schema: Mapping[str, Any]) -> pa.DataType:
    """The type of the values that fit a JSON schema. Raises UserError where there is none."""
    return _type_of(schema, schema, "#", 0)


def _type_of(schema: Any, root: Mapping[str, Any], place: str, depth: int) -> pa.DataType:
    schema = _resolved(schema, root, place)
    if depth > MOST_DEPTH:
        raise UserError(f"{place} refers to itself: a column has a fixed depth")
    schema = _without_null(schema, root, place)
    kind = schema.get("type") or _type_of_values(schema)
    if isinstance(kind, str) and kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "array":
        return pa.list_(_type_of(schema.get("items"), root, f"{place}/items", depth + 1))
    if kind != "object":
        raise UserError(
            f"{place} has no type that a column can have: give one of string, integer, number, "
            'boolean, array, object (beside it may be "null")'
        )
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        raise UserError(f"{place} is an object without properties: a column has named fields")
    if len({name.casefold() for name in properties}) < len(properties):
        raise UserError(f"{place} has two properties that differ only in capitals: rename one")
    for name in properties:
        if not name or _NO_NAME.search(name):
            raise UserError(
                f"{place} has the property {name!r}, and fields of tables have no spaces and none "
                "of , ; { } ( ) = in their names: rename it"
            )
    return pa.struct(
        [
            (name, _type_of(inner, root, f"{place}/properties/{name}", depth + 1))
            for name, inner in properties.items()
        ]
    )


def _resolved(schema: Any, root: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The schema that a $ref within the file points to."""
    for _ in range(MOST_DEPTH):
        if not isinstance(schema, Mapping):
            raise UserError(f"{place} does not say which values it takes")
        target = schema.get("$ref")
        if target is None:
            return schema
        schema = root
        for part in filter(None, str(target)[1:].split("/")):
            name = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, Mapping) else None
    raise UserError(f"{place} refers to itself")


def _refuse_remote(schema: Any) -> None:
    """Raises UserError if any part refers to another file, which would be fetched."""
    parts = schema.items() if isinstance(schema, Mapping) else enumerate(schema)
    for name, part in parts:
        if name == "$ref" and not str(part).startswith("#"):
            raise UserError(f"it refers to {part!r}: only references within the file work")
        if isinstance(part, Mapping | list):
            _refuse_remote(part)


def _without_null(schema: Mapping[str, Any], root: Any, place: str) -> Mapping[str, Any]:
    """The schema of the values besides null: every column takes null."""
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        return {**schema, "type": others[0] if len(others) == 1 else others}
    for name in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(name), list) and kind is None:
            others = [_resolved(each, root, place) for each in choices]
            others = [each for each in others if each.get("type") != "null"]
            if len(others) == 1:
                return _without_null(others[0], root, place)
    return schema


def _type_of_values(schema: Mapping[str, Any]) -> str | None:
    """The type of the values that are listed, if it is one."""
    if "properties" in schema:
        return "object"
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    values = [value for value in values or () if value is not None]
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kinds = {names.get(type(value), "") for value in values}
    return kinds.pop() if len(kinds) == 1 else None


def _is_closed(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(map(_is_closed, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        is_named = set(schema.get("required", ())) == set(properties)
        if schema.get("additionalProperties") is not False or not is_named:
            return False
        schema = {**schema, "properties": list(properties.values())}
    return all(_is_closed(value) for name, value in schema.items() if name != "enum")


@functools.lru_cache(32)
def _validator(schema: str) -> Any:
    import jsonschema

    data = json.loads(schema)
    return jsonschema.validators.validator_for(data, jsonschema.Draft202012Validator)(data)


def _json_in(answer: str) -> Any:
    """The JSON of an answer, which may have a fence around it or a sentence before it."""
    for text in _candidates(answer):
        try:
            return plainjson.loads(text)
        except ValueError:
            continue
    raise Unanswerable(f"the answer is not JSON: {answer[:100]!r}")


def _candidates(answer: str) -> Iterator[str]:
    yield answer
    yield from _FENCE.findall(answer)
    opening = re.search(r"[{\[]", answer)  # not one within it: the rest may be cut off
    if opening is not None:
        end = answer.rfind("}" if opening[0] == "{" else "]")
        yield answer[opening.start() : end + 1]


def _conformed(value: Any, kind: pa.DataType) -> Any:
    """A valid value as its column takes it. Raises ValueError or OverflowError if it cannot."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {each.name: _conformed(value.get(each.name), each.type) for each in kind}
    if pa.types.is_list(kind):
        return [_conformed(item, kind.value_type) for item in value]
    if pa.types.is_integer(kind):
        number = int(value)  # JSON schema takes 3.0 for an integer
        if not -(2**63) <= number < 2**63:
            raise ValueError("a number is larger than 64 bits")
        return number
    if pa.types.is_floating(kind):
        return float(value)
    # Half a character, written as \ud83d, is JSON and no text.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
