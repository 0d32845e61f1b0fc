"""Texts as words, the same way for all flags."""

import re

# Scripts without spaces between words: each of their characters is a word.
UNSPACED = "\u0e00-\u0e7f\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|\d+|(?:(?![{UNSPACED}])[^\W\d_])+(?:'[^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])|\n+")
_QUOTED = re.compile(r"\"[^\"]{1,300}\"|«[^»]{1,300}»|(?<!\w)'[^'\n]{1,300}'(?!\w)")


def plain(text: str) -> str:
    """In lower case, with plain quotes and apostrophes and single spaces."""
    for marks, ascii_mark in (("\u2019\u2018\u02bc", "'"), ("\u201c\u201d\u201e", '"')):
        for mark in marks:
            text = text.replace(mark, ascii_mark)
    return " ".join(text.lower().split())


def unquoted(text: str) -> str:
    """A plain text without what stands in quotes, such as the words on a sign."""
    return _QUOTED.sub(" ", text)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation. Each number is "#"."""
    found = _WORD.findall(plain(text))
    return ["#" if word[0].isdigit() else word for word in found]


def sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if part.strip()]
