"""Prompts as users write them, with the values of each picture in them.

    Template("Describe {title}. Tags: {tags}").names                         ->  ("title", "tags")
    Template("Describe {title}.").render({"title": "a mug"})                 ->  "Describe a mug."

`{{` and `}}` stand for braces. There is nothing else: no attributes, no formats, no code.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycap.errors import UserError

# The last prompt, which writes the caption.
CAPTION = "caption"
# What every row has, besides the columns of the source's table.
KEY, FOLDER, REFERENCE = "key", "folder", "reference"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}?")
_PLACEHOLDER = re.compile(r"\{\w(?:[\w .-]*\w)?\}")
_LONGEST_SHOWN = 30


@dataclass(frozen=True)
class Prompt:
    """One of several named prompts. What it leaves out is as for the whole captioner."""

    text: str = ""
    """What the model is asked. {title} is a column of the source's table, {key} and {folder} are
    those of the picture, {tags} is the answer to the earlier prompt `tags`, and {{ is a brace."""
    system: str | None = None
    """The system message before it."""
    start: str = ""
    """The first words of the answer. They are a part of it."""
    max_tokens: int | None = None
    """The most tokens of the answer."""
    temperature: float | None = None
    """How freely words are drawn."""
    top_p: float | None = None
    """Draw only from the likeliest words that have this probability together."""
    stop: tuple[str, ...] | None = None
    """Texts at which the answer ends."""
    schema: str = ""
    """A file with a JSON schema: the answer is JSON that fits it."""
    tags: tuple[str, ...] = ()
    """The answer holds only words of this list: the words, or a file with one on each line."""


class Unanswerable(Exception):
    """Why one picture cannot be asked, or why its answers cannot be used: a row's reason."""


@dataclass(frozen=True)
class Template:
    """The text of a prompt. Raises UserError if it holds a brace that says nothing."""

    text: str
    names: tuple[str, ...] = field(init=False)
    """What it needs, in order and without repeats."""
    _pieces: tuple[tuple[bool, str], ...] = field(init=False, repr=False, compare=False)
    """Texts (False) and names (True), in order."""

    def __post_init__(self) -> None:
        pieces: list[tuple[bool, str]] = []
        end = 0
        for found in _PIECE.finditer(self.text):
            pieces.append((False, self.text[end : found.start()]))
            end = found.end()
            if found[1] is None:
                pieces.append((False, found[0][0]))
                continue
            if not _PLACEHOLDER.fullmatch(found[0]):
                shown = found[0][:_LONGEST_SHOWN]
                raise UserError(
                    f"the prompt {_shown(self.text)} holds {shown!r}, which is not the name of a "
                    "column or of an earlier prompt: write {{ for a brace that belongs to the text"
                )
            pieces.append((True, found[1]))
        pieces.append((False, self.text[end:]))
        object.__setattr__(self, "_pieces", tuple(each for each in pieces if each[1]))
        names = dict.fromkeys(text for is_name, text in pieces if is_name)
        object.__setattr__(self, "names", tuple(names))

    def render(self, values: Mapping[str, str]) -> str:
        return "".join(values[text] if is_name else text for is_name, text in self._pieces)

    def fixed_texts(self) -> tuple[str, ...]:
        """The texts between the names."""
        return tuple(text for is_name, text in self._pieces if not is_name)

    def with_names(self) -> str:
        """With names in place of values: for a picture of which nothing is known."""
        return self.render({name: name for name in self.names})


@functools.lru_cache(256)
def template_of(text: str) -> Template:
    return Template(text)


def check_name(name: str) -> None:
    """Raises UserError if a prompt cannot have this name, which is also that of its column."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"the prompt name {name!r} becomes a column: give letters, digits and _, with a "
            "letter first"
        )
    if name in (KEY, FOLDER, REFERENCE):
        raise UserError(
            f"a prompt cannot be named {name}, because {{{name}}} is about the picture: give "
            "another name"
        )


def values_of(
    template: Template, row: Mapping[str, Any], answers: Mapping[str, str]
) -> dict[str, str]:
    """The texts that a prompt needs: earlier answers, and what the row holds. Raises Unanswerable
    where there is none."""
    return {
        name: answers[name] if name in answers else _value(name, row) for name in template.names
    }


def _value(name: str, row: Mapping[str, Any]) -> str:
    if name == FOLDER:
        text, what = str(row.get(KEY) or "").rpartition("/")[0], "the folder of its key"
    elif name == REFERENCE:
        text, what = next(iter(row.get("references") or ()), ""), "its human caption"
    else:
        text, what = as_text(row.get(name)), "its key" if name == KEY else f"column {name}"
    if not text.strip():
        raise Unanswerable(f"{what} is empty")
    return text


def as_text(value: Any) -> str:
    """A value of a table as people write it: a list as its items, a date as 2024-05-31."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(filter(None, map(as_text, value)))
    return str(value)


def _shown(text: str) -> str:
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return repr(short)
