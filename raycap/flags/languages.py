"""Recognises languages: by their scripts, and those in Latin or Cyrillic letters by usual words.

    is_other_language("Zwei Hunde spielen im Schnee.", "en")  ->  True

A text that is too short to tell has no other language. The words are the usual small ones and some
that captions have again and again.
"""

import re
from collections.abc import Mapping

from raycap.flags.language_words import LETTERS, WORDS

SCRIPTS: Mapping[str, str] = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
    "kana": "\u3040-\u30ff\u31f0-\u31ff",
    "han": "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
}
_IN_LATIN = "en de fr es it pt nl sv da no fi pl cs ro hu tr vi id"
# By code, the scripts of a language.
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_IN_LATIN.split(), ("latin",)),
    "ru": ("cyrillic",),
    "uk": ("cyrillic",),
    "el": ("greek",),
    "he": ("hebrew",),
    "ar": ("arabic",),
    "hi": ("devanagari",),
    "th": ("thai",),
    "zh": ("han",),
    "ja": ("han", "kana"),
    "ko": ("hangul",),
}
# Languages that have most of their words in common.
ALIKE = ({"da", "no"},)

FEWEST_LETTERS = 8
# Of a text's letters that are in the scripts of its language; names in other scripts are usual.
LEAST_SHARE = 0.4
# Usual words of another language, and how many times as many as of the wanted one.
LEAST_POINTS, LEAST_RATIO = 2.0, 1.5

_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
_WORD = re.compile(r"[^\W\d_]+")


def is_other_language(text: str, wanted: str) -> bool:
    """Whether a text is certainly in another language than the wanted one."""
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    total = sum(counts.values())
    own = sum(counts[script] for script in LANGUAGES[wanted])
    # A sign of Chinese or Japanese says about as much as three letters.
    if total + 2 * (counts["han"] + counts["kana"] + counts["hangul"]) < FEWEST_LETTERS:
        return False
    if own < LEAST_SHARE * total:
        return True
    if wanted == "zh":
        return counts["kana"] > 0.1 * total
    if wanted == "ja":  # long Japanese texts have kana
        return counts["kana"] == 0 and counts["han"] >= FEWEST_LETTERS
    if wanted not in WORDS:
        return False
    points = word_points(text)
    alike = next((group for group in ALIKE if wanted in group), {wanted})
    of_wanted = max(points[language] for language in alike)
    of_others = max(value for language, value in points.items() if language not in alike)
    return of_others >= LEAST_POINTS and of_others > LEAST_RATIO * of_wanted


def word_points(text: str) -> dict[str, float]:
    """For each language with a list of words: how many of them the text has, and letters that
    few languages have."""
    words = _WORD.findall(text.lower())
    points = {}
    for language, usual in WORDS.items():
        letters = LETTERS.get(language, frozenset())
        points[language] = sum(
            1.0 if word in usual else 0.7 if letters and not letters.isdisjoint(word) else 0.0
            for word in words
        )
    return points
