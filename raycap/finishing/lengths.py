"""Counts words and tokens, finds the ends of sentences, and cuts texts there."""

import re
from collections.abc import Callable, Iterator

from raycap.flags.words import UNSPACED

_PIECE = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_TOKEN = re.compile(r"[^\W\d_]+|.", re.S)
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”]*|\n+")
# What ends with a full stop and is no end of a sentence.
_WITH_FULL_STOP = (
    "mr|mrs|ms|dr|prof|st|no|vs|e.g|i.e|approx|ca|inc|ltd|jr|sr|u.s|u.k|fig|vol|mt|ft|al|z.b|d.h|"
    "bzw|usw|nr|str|ave|dept|gen|col|lt|sgt|rev|hon"
)
_ABBREVIATIONS = frozenset(_WITH_FULL_STOP.split("|"))
_LAST_WORD = re.compile(r"[\w.]*\w(?=\.$)")
# What must not stand at the end of a text that was cut between two words.
_DANGLING = " \t\n,;:-–—(["
LETTERS_OF_USUAL_WORD, LETTERS_OF_TOKEN = 7, 4


def word_count(text: str) -> int:
    """Words between spaces; in Chinese, Japanese and Thai each character is one."""
    return sum(1 for _ in _PIECE.finditer(text))


def token_count(text: str) -> int:
    """About as many tokens as CLIP's text encoder makes of a text, rather too many: a usual word
    is one, a long word one for each four letters, a digit or a mark one, a letter beyond ASCII
    one more."""
    count = 0
    for piece in _PIECE.finditer(text):
        for token in _TOKEN.finditer(piece[0]):
            letters = len(token[0])
            is_usual = letters <= LETTERS_OF_USUAL_WORD
            count += 1 if is_usual else -(-letters // LETTERS_OF_TOKEN)
            count += 0 if token[0].isascii() else sum(ord(letter) > 127 for letter in token[0])
    return count


def sentence_ends(text: str) -> Iterator[int]:
    """The places behind the sentences of a text that is divided by full stops or lines."""
    for found in _END.finditer(text):
        if found[0] == ".":
            last = _LAST_WORD.search(text[: found.end()])
            word = last[0].lower() if last else ""
            # An initial, an abbreviation, or the number of a list.
            is_initial = len(word) == 1 and word.isalpha() and word not in "ai"
            if word in _ABBREVIATIONS or is_initial or word.isdigit():
                continue
        yield found.start() if found[0].startswith("\n") else found.end()


def first_sentence(text: str) -> str:
    text = text.strip()
    return next((text[:end].strip() for end in sentence_ends(text) if text[:end].strip()), text)


def shortened(text: str, most: int, count: Callable[[str], int]) -> str:
    """As many sentences as fit; if not even one does, as many words as fit."""
    if count(text) <= most:
        return text
    best = ""
    for end in sentence_ends(text):
        if count(text[:end]) > most:
            break
        best = text[:end].strip()
    if best:
        return best
    for piece in _PIECE.finditer(text):
        if count(text[: piece.end()]) > most:
            break
        best = text[: piece.end()]
    return best.rstrip(_DANGLING)
