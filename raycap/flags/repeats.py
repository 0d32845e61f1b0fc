"""Finds loops: words, phrases or sentences that a model writes again and again."""

import itertools
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from raycap.flags.words import sentences, words_of

# The longest phrase that is looked for, in words.
LONGEST_PHRASE = 80
# The most words that are looked at: a loop shows early.
MOST_WORDS = 4000
LONG_TEXT = 40  # words
_LETTERS_IN_A_ROW = re.compile(r"([^\W\d_])\1{7,}|([^\w\s])\2{24,}")
_PHRASE_END = re.compile(r"[,;:.!?\n、，。！？；|]+")


def has_repeats(text: str) -> bool:
    words = words_of(text)[:MOST_WORDS]
    if _LETTERS_IN_A_ROW.search(text) or any(_is_stuttered(word) for word in words):
        return True
    return (
        _phrase_follows_itself(words)
        or _sentence_comes_again(text)
        or _phrase_comes_again(text)
        or _has_few_phrases(words)
    )


def _is_stuttered(word: str) -> bool:
    """hahahahahahaha, or a word written many times without spaces."""
    if len(word) < 12:
        return False
    letters = np.frombuffer(word.encode("utf-32-le"), np.uint32)
    return any(
        longest_run(letters, period) >= max(10, 3 * period)
        for period in range(1, min(24, len(word) // 3) + 1)
    )


def longest_run(items: NDArray[np.uint32], period: int) -> int:
    """The most items in a row that are equal to the item one period later."""
    if len(items) <= period:
        return 0
    breaks = np.flatnonzero(items[:-period] != items[period:])
    ends = np.concatenate([[-1], breaks, [len(items) - period]])
    return int(np.diff(ends).max()) - 1


def _phrase_follows_itself(words: list[str]) -> bool:
    if len(set(itertools.pairwise(words))) == max(0, len(words) - 1):
        return False  # in a loop, two words follow each other twice
    numbers: dict[str, int] = {}
    items = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.uint32)
    for period in range(1, min(LONGEST_PHRASE, len(words) - 1) + 1):
        run = longest_run(items, period)
        if period == 1:
            is_loop = run >= 3  # four times the same word
        elif period < 5:
            is_loop = run >= 2 * period  # three times the same phrase
        elif period < 7:
            is_loop = run >= period
        else:
            # Twice, with another word such as "and" between, and perhaps cut off in a word.
            is_loop = run >= period - (1 if period == 7 else 2)
        if is_loop and not _is_of_numbers(items, period, run, numbers.get("#", -1)):
            return True
    return False


def _is_of_numbers(items: NDArray[np.uint32], period: int, run: int, number: int) -> bool:
    """Whether the phrase consists of numbers: a row of scores is no loop."""
    equal = items[:-period] == items[period:]
    for start in range(len(equal) - run + 1):
        if equal[start : start + run].all():
            return bool((items[start : start + period] == number).mean() > 0.5)
    return False


def _sentence_comes_again(text: str) -> bool:
    counts = Counter(tuple(words_of(sentence)) for sentence in sentences(text))
    return any(
        (count >= 3 and len(words) >= 4) or (count >= 2 and len(words) >= 8)
        for words, count in counts.items()
    )


def _phrase_comes_again(text: str) -> bool:
    """One phrase between commas, at least five times and in every third place."""
    phrases = [tuple(words_of(phrase)) for phrase in _PHRASE_END.split(text) if phrase.strip()]
    counts = Counter(phrase for phrase in phrases if len(phrase) >= 2)
    most = max(counts.values(), default=0)
    return most >= 5 and 3 * most >= len(phrases)


def _has_few_phrases(words: list[str]) -> bool:
    """A long text of which more than half is phrases of four words that were there before."""
    if len(words) < LONG_TEXT:
        return False
    phrases = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 2 * len(set(phrases)) < len(phrases)
