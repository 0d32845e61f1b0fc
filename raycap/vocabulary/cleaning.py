"""Splits a caption into words: lower case, punctuation, short words, numbers, length."""

import unicodedata
from dataclasses import dataclass

from raycap.errors import UserError

# Endings that are words in captions that are tokenised already (Flickr8k: "a man 's dog").
_ENDINGS = frozenset({"'s", "'re", "'ve", "'ll", "'d", "'m"})


@dataclass(frozen=True)
class Cleaning:
    """How a caption becomes words."""

    lowercase: bool = True
    """Convert words to lower case."""
    remove_punctuation: bool = True
    """Remove punctuation and symbols; if off, each is a word of its own ("dog." gives "dog" and
    ".")."""
    keep_joined: bool = True
    """Keep hyphens and apostrophes within words (t-shirt, man's), as the metrics do; if off, they
    are punctuation, and removed punctuation leaves no gap: tshirt, mans, as in many tutorials."""
    drop_single_letters: bool = False
    """Drop words of one character, "a" and "i" among them, as many tutorials do."""
    drop_numbers: bool = False
    """Drop words that contain a digit, as many tutorials do."""
    max_words: int | None = 40
    """Maximum number of words of a caption; the rest is cut off. None for no limit."""

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < 1:
            raise UserError(
                f"max_words is {self.max_words}: keep at least 1 word of a caption, or None for "
                "no limit"
            )

    def words(self, caption: str) -> list[str]:
        """The words of `caption` in their order."""
        text = self.normalised(caption)
        # By Unicode category: \w would cut the vowel signs out of Hindi and Thai words.
        marks = {character for character in text if unicodedata.category(character)[0] in "PS"}
        if self.keep_joined:
            marks -= {"-", "'"}
        # Unless the tutorials are followed, "red,blue" is two words.
        gap = " " if self.keep_joined else ""
        replacements = {
            ord(mark): gap if self.remove_punctuation else f" {mark} " for mark in marks
        }
        words = text.translate(replacements).split()
        if self.keep_joined and self.remove_punctuation:
            words = [word if word in _ENDINGS else word.strip("-'") for word in words]
        return self.kept([word for word in words if word])

    def normalised(self, caption: str) -> str:
        """The caption with one spelling for each word."""
        text = caption.lower() if self.lowercase else caption
        return unicodedata.normalize("NFC", text).replace("\u2019", "'")

    def kept(self, words: list[str]) -> list[str]:
        """The words that are not dropped, up to `max_words`."""
        if self.drop_single_letters:
            words = [word for word in words if len(word) > 1]
        if self.drop_numbers:
            words = [word for word in words if not any(character.isdigit() for character in word)]
        return words[: self.max_words]
