"""A caption to its words: lower-casing, punctuation, short words, numbers, length."""

import unicodedata
from dataclasses import dataclass

from raycap.errors import UserError

# Endings that already tokenised captions (Flickr8k: "a man 's dog") carry as words of their own.
_ENDINGS = frozenset({"'s", "'re", "'ve", "'ll", "'d", "'m"})


@dataclass(frozen=True)
class Cleaning:
    """How a caption becomes words."""

    lowercase: bool = True
    """Write every word in small letters."""
    remove_punctuation: bool = True
    """Drop punctuation and symbols; when off, each is a word of its own ("dog." gives "dog" and ".")."""
    keep_joined: bool = True
    """Keep hyphens and apostrophes within words (t-shirt, man's), as the metrics do; when off they are punctuation
    like any other, and punctuation that is removed leaves no gap: tshirt, mans, as many tutorials write it."""
    drop_single_letters: bool = False
    """Drop words of one character, as many tutorials do ("a" and "i" go too)."""
    drop_numbers: bool = False
    """Drop words that hold a digit, as many tutorials do."""
    max_words: int | None = 40
    """Keep this many words of a caption and cut the rest off; None for no limit."""

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < 1:
            raise UserError(
                f"max_words is {self.max_words}: keep at least 1 word of a caption, or None for no limit"
            )

    def words(self, caption: str) -> list[str]:
        """The words of `caption` in their order."""
        text = unicodedata.normalize(
            "NFC", caption.lower() if self.lowercase else caption
        )  # one spelling per word
        words = self._split(text.replace("\u2019", "'"))  # ' for ’
        if self.drop_single_letters:
            words = [word for word in words if len(word) > 1]
        if self.drop_numbers:
            words = [word for word in words if not any(character.isdigit() for character in word)]
        return words[: self.max_words]

    def _split(self, text: str) -> list[str]:
        # By Unicode category, for \w would cut the vowel signs out of Hindi or Thai words.
        marks = {character for character in text if unicodedata.category(character)[0] in "PS"}
        if self.keep_joined:
            marks -= {"-", "'"}
        gap = (
            " " if self.keep_joined else ""
        )  # "red,blue" is two words, unless asked to do as the tutorials do
        words = text.translate(
            {ord(mark): gap if self.remove_punctuation else f" {mark} " for mark in marks}
        ).split()
        if self.keep_joined and self.remove_punctuation:
            words = [word if word in _ENDINGS else word.strip("-'") for word in words]
        return [word for word in words if word]
