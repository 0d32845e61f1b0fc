"""The vocabulary: every word has one number, the four special tokens the first four, and a file that says so."""

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

# Fixed for good: captioner folders, search and training rely on these numbers.
PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = 1  # of the JSON file; raise it when the meaning of its fields changes


@dataclass(frozen=True)
class Words:
    """Which words the captioner knows."""

    cleaning: Cleaning = field(default_factory=Cleaning)
    """How a caption becomes words."""
    min_count: int = 5
    """Words that occur less often in the training captions become <unk>."""
    max_size: int | None = None
    """Keep this many words at most, the commonest first (special tokens apart); None for no limit."""
    glove: str = ""
    """GloVe text file (path or URI; .gz and .zip too) that the word embeddings start from; empty for none."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UserError(
                f"min_count is {self.min_count}: it must be at least 1, which keeps every word"
            )
        if self.max_size is not None and self.max_size < 1:
            raise UserError(
                f"max_size is {self.max_size}: keep at least 1 word, or None for no limit"
            )


@dataclass(frozen=True)
class Vocabulary:
    """The words in the order of their numbers, special tokens first, and the cleaning that made them."""

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
    def build(cls, captions: Iterable[str], options: Words) -> Self:
        """The words of `captions` by falling count, then alphabetically: the same captions, the same numbers."""
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(options.cleaning.words(caption))
        if not counts:
            raise UserError(
                "no words to build a vocabulary from: the captions are missing, or cleaning leaves nothing"
            )
        common = [(word, count) for word, count in counts.items() if count >= options.min_count]
        if not common:
            raise UserError(
                f"no word occurs {options.min_count} times (the commonest, {counts.most_common(1)[0][0]!r}, "
                f"{max(counts.values())} times): lower the vocabulary's min_count or give more captions"
            )
        common.sort(key=lambda entry: (-entry[1], entry[0]))
        return cls(
            (*SPECIAL_TOKENS, *(word for word, _ in common[: options.max_size])), options.cleaning
        )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """`<start>`, a number for each word of the cleaned caption (`<unk>` for unknown ones), `<end>`."""
        return [
            START,
            *(self._numbers.get(word, UNK) for word in self.cleaning.words(caption)),
            END,
        ]

    def decode(self, numbers: Iterable[int]) -> str:
        """The words up to the first `<end>`, joined by spaces, special tokens left out."""
        words = []
        for number in numbers:
            if number == END:
                break
            if not 0 <= number < len(self.words):  # -1 would quietly be the last word
                raise ValueError(
                    f"{number} is not the number of a word: there are {len(self.words)} words"
                )
            if number >= len(SPECIAL_TOKENS):
                words.append(self.words[number])
        return " ".join(words)

    def to_json(self) -> str:
        """The file's text, with a digest by which a changed file is known."""
        content = {"format": FORMAT, "cleaning": asdict(self.cleaning), "words": list(self.words)}
        return json.dumps({**content, "sha256": _digest(content)}, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The vocabulary that `to_json` wrote; anything else is refused with the reason."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"the vocabulary is not whole JSON ({error}): take it from its source again"
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
                "the vocabulary was changed since it was written (its digest differs): take it anew"
            )
        return cls(tuple(content["words"]), Cleaning(**content["cleaning"]))

    def save(self, path: str | Path) -> None:
        """Write the JSON file; it appears whole."""
        with whole_file(Path(path)) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such vocabulary file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a vocabulary: it is not UTF-8 text") from error
        except UserError as refusal:
            raise UserError(f"{path}: {refusal}") from refusal


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
