"""Expands braces as a shell does: "{00..11}.tar" names 00.tar, 01.tar, ... 11.tar."""

import re

from raycap.errors import UserError

MOST_NAMES = 1_000_000
MOST_GROUPS = 64
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")


def expanded(text: str) -> list[str]:
    """Returns the names that the text means; itself if it has no braces with '..' or ','.

    Raises UserError for more than a million names.
    """
    if text.count("{") > MOST_GROUPS:
        raise UserError(f"{text[:200]} has more than {MOST_GROUPS} braces")
    start = text.find("{")
    while start >= 0:
        parts, end = _group(text, start)
        if parts:
            rest = expanded(text[end:])
            if len(parts) * len(rest) > MOST_NAMES:
                raise _too_many(text)
            return [text[:start] + part + tail for part in parts for tail in rest]
        start = text.find("{", start + 1)
    return [text]


def _group(text: str, start: int) -> tuple[list[str], int]:
    """What the braces that open at `start` mean, and where they end; nothing if they are plain."""
    depth, begin, pieces = 0, start + 1, []
    for index in range(start, len(text)):
        character = text[index]
        if character == "{":
            depth += 1
        elif character == "," and depth == 1:
            pieces.append(text[begin:index])
            begin = index + 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                pieces.append(text[begin:index])
                break
    else:
        return [], start
    if len(pieces) == 1:
        return _sequence(pieces[0], text), index + 1
    parts = [part for piece in pieces for part in expanded(piece)]
    return parts, index + 1


def _sequence(inside: str, text: str) -> list[str]:
    if found := _LETTERS.fullmatch(inside):
        first, last = map(ord, found.groups())
        step = 1 if first <= last else -1
        return [chr(code) for code in range(first, last + step, step)]
    found = _NUMBERS.fullmatch(inside)
    if not found:
        return []
    first, last, step = (int(number or 1) for number in found.groups())
    step = max(abs(step), 1) * (1 if first <= last else -1)
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if len(numbers) > MOST_NAMES:
        raise _too_many(text)
    ends = [found[1], found[2]]
    padded = any(re.match(r"-?0\d", end) for end in ends)
    width = max(map(len, ends)) if padded else 0
    return [f"{number:0{width}d}" if width else str(number) for number in numbers]


def _too_many(text: str) -> UserError:
    return UserError(f"{text[:200]} names more than {MOST_NAMES:,} files")
