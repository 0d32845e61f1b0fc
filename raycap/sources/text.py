"""Text of strangers, as Arrow and JSON files can hold it."""

import json
from typing import Any


def utf8(text: str) -> str:
    """The text, with halves of characters (a JSON file may hold them) as '?': Arrow takes whole ones only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def utf8_name(name: str) -> str:
    """A name with halves of characters spelt out, so that two different names stay different: '\\ud800.jpg'."""
    return name.encode("utf-8", "backslashreplace").decode()


def brief(value: Any) -> str:
    """The first characters of a JSON value, for a message."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return utf8(text[:60])


def as_text(value: Any) -> str | None:
    """A JSON value as text: a string as it is, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value if value is None else utf8(value)
    try:
        return utf8(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return None


def as_texts(value: Any) -> list[str | None]:
    """A JSON list as texts; of anything else the one text."""
    return [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]
