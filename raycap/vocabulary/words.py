"""The vocabulary: a number for each word, special tokens first, and its JSON file."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from raycap.errors import UserError
from raycap.storage import whole_file
from raycap.vocabulary.cleaning import Cleaning

# Never change these: captioner folders, search and training rely on them.
PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = 1  # of the JSON file


@dataclass(frozen=True)
class VocabularyOptions:
    """Which words are in the vocabulary."""

    cleaning: Cleaning = field(default_factory=Cleaning)
    """How a caption becomes words."""
    min_count: int = 5
    """Words that occur fewer times in the training captions become <unk>."""
    max_size: int | None = None
    """Maximum number of words without special tokens, the most frequent first; None for no
    limit."""
    glove: str = ""
    """GloVe text file (path or URI, also .gz and .zip) with the initial embeddings; empty for
    none."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UserError(
                f"min_count is {self.min_count}: give at least 1, which keeps every word"
            )
        if self.max_size is not None and self.max_size < 1:
            raise UserError(
                f"max_size is {self.max_size}: give at least 1 word, or None for no limit"
            )


@dataclass(frozen=True)
class Vocabulary:
    """The words in the order of their numbers, special tokens first, and their cleaning."""

    words: tuple[str, ...]
    cleaning: Cleaning = field(default_factory=Cleaning)

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise UserError(
                f"a vocabulary starts with {' '.join(SPECIAL_TOKENS)}, not with {self.words[:4]}"
            )
        if len(self._numbers) != len(self.words):
            raise UserError("a word occurs twice in the vocabulary")

    @classmethod
    def build(cls, captions: Iterable[str], options: VocabularyOptions) -> Self:
        """The words of `captions` by decreasing count, then alphabetically."""
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(options.cleaning.words(caption))
        if not counts:
            raise UserError(
                "no words for the vocabulary: the captions are missing, or cleaning removes "
                "everything"
            )
        common = [(word, count) for word, count in counts.items() if count >= options.min_count]
        if not common:
            word, count = counts.most_common(1)[0]
            raise UserError(
                f"no word occurs {options.min_count} times (the most frequent, {word!r}, {count} "
                "times): lower --vocabulary.min-count or give more captions"
            )
        common.sort(key=lambda entry: (-entry[1], entry[0]))
        kept = [word for word, _ in common[: options.max_size]]
        return cls((*SPECIAL_TOKENS, *kept), options.cleaning)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """`<start>`, a number for each word of the cleaned caption (`<unk>` for unknown ones),
        `<end>`."""
        words = self.cleaning.words(caption)
        return [START, *(self._numbers.get(word, UNK) for word in words), END]

    def decode(self, numbers: Iterable[int]) -> str:
        """The words up to the first `<end>`, joined by spaces, without special tokens."""
        words = []
        for number in numbers:
            if number == END:
                break
            if not 0 <= number < len(self.words):  # -1 would be the last word
                raise ValueError(
                    f"{number} is not the number of a word: there are {len(self.words)} words"
                )
            if number >= len(SPECIAL_TOKENS):
                words.append(self.words[number])
        return " ".join(words)

    def to_json(self) -> str:
        """The text of the file, with a digest that detects changes."""
        content = {"format": FORMAT, "cleaning": asdict(self.cleaning), "words": list(self.words)}
        return json.dumps({**content, "sha256": _digest(content)}, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The vocabulary that `to_json` wrote. Raises UserError for other text."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"the vocabulary is not whole JSON ({error}): copy it from its source again"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise UserError("this JSON is not a vocabulary: it has no format version")
        if content["format"] != FORMAT:
            raise UserError(
                f"the vocabulary has format {content['format']}, this version reads {FORMAT}: "
                "use the version of raycap that wrote it, or train again"
            )
        digest = content.pop("sha256", None)
        if digest != _digest(content):
            raise UserError(
                "the vocabulary was changed since it was written (its digest differs): copy it "
                "from its source again"
            )
        return cls(tuple(content["words"]), Cleaning(**content["cleaning"]))

    def save(self, path: str | Path) -> None:
        """Write the JSON file; it appears whole."""
        with whole_file(Path(path)) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote. Raises UserError with the reason if that fails."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such vocabulary file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a vocabulary: it is not UTF-8 text") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
