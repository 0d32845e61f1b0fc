"""Finishes a text, always in the same order:

    openings, replace, replace_regex, one_line, first_sentence, lower, max_words, max_tokens,
    then append, prepend and trigger around it.

What is finished stays as it is when it is finished again.
"""

import re

from raycap.finishing.lengths import first_sentence, shortened, token_count, word_count
from raycap.finishing.openings import without_openings
from raycap.finishing.options import Finish, replace_pattern

# One step may make work for an earlier one: they follow again until nothing changes.
MOST_ROUNDS = 10
MOST_LETTERS = 100_000
_MARKS = ",.;:!?)"
_BEFORE_MARKS = " .,;:…"


def finish_text(text: str, options: Finish) -> str:
    """An empty text stays empty: no trigger word hides that there is no caption."""
    if options == Finish():
        return text
    body = _without_additions(text.strip(), options)
    for _ in range(MOST_ROUNDS):
        before = body
        body = _without_additions(_clean(body, options), options)
        if body == before or len(body) > MOST_LETTERS:
            break
    has_caption = any(character.isalnum() for character in body)
    return _with_additions(body, options) if has_caption else ""


def _clean(text: str, options: Finish) -> str:
    text = text.strip()
    text = without_openings(text, options.strip_openings, options.openings)
    for old, new in options.replacements():
        text = text.replace(old, new)
    for pattern, new in options.patterns():
        text = replace_pattern(text, pattern, new)
    text = " ".join(text.split()) if options.one_line else text.strip()
    if options.first_sentence:
        text = first_sentence(text)
    if options.lower:
        text = text.lower()
    for most, count in ((options.max_words, word_count), (options.max_tokens, token_count)):
        if most is not None and count(_with_additions(text, options)) > most:
            text = shortened(text, most - count(options.additions), count)
    return text


def _with_additions(text: str, options: Finish) -> str:
    append, prepend = options.append.strip(), options.prepend.strip()
    if append:
        text = (
            f"{text.rstrip(_BEFORE_MARKS)}{append}" if append[0] in _MARKS else f"{text} {append}"
        )
    if prepend:
        text = f"{prepend} {text}"
    if options.trigger and not _has_word(text, options.trigger.strip()):
        text = f"{options.trigger.strip()}, {text}"
    return text


def _without_additions(text: str, options: Finish) -> str:
    """The text without what finishing puts around it, if it is there already."""
    append, prepend = options.append.strip(), options.prepend.strip()
    trigger = f"{options.trigger.strip()}, " if options.trigger else ""
    if trigger and not (prepend and text.startswith(f"{prepend} ")):
        text = text.removeprefix(trigger).lstrip() or text
    if prepend:
        text = text.removeprefix(f"{prepend} ").lstrip() or text
    if append:
        text = text.removesuffix(append).rstrip() or text
    return text


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
