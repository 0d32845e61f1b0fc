"""The vocabulary: a number for each word, special tokens first, and its JSON file."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

from raycap.errors import UserError
from raycap.storage import whole_file
from raycap.vocabulary.cleaning import Cleaning
from raycap.vocabulary.tokenisers import (
    START_OF_WORD,
    SUBWORDS,
    Merges,
    TokeniserName,
    joined,
    learn_subwords,
    subword_splitter,
    word_splitter,
)

# Never change these: captioner folders, search and training rely on them.
PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
# Of the JSON file. A vocabulary of words at spaces has format 1, which earlier versions read too.
FORMAT, FORMAT_OF_WORDS = 2, 1


@dataclass(frozen=True)
class VocabularyOptions:
    """Which words are in the vocabulary."""

    cleaning: Cleaning = field(default_factory=Cleaning)
    """How a caption becomes words."""
    tokeniser: TokeniserName = "words"
    """What a word is: words (split at spaces), spacy (spaCy's rules for English: man's is man and
    's; needs raycap[spacy]), or subwords (pieces of words, learned from the captions; needs
    raycap[subwords])."""
    min_count: int = 5
    """Words that occur fewer times in the training captions become <unk>; of subwords: pairs that
    occur fewer times stay apart."""
    max_size: int | None = None
    """Maximum number of words without special tokens, the most frequent first; None for no
    limit, of subwords for 5,000."""
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


class Coverage(NamedTuple):
    """How much of some captions a vocabulary knows."""

    known: int  # different words that it has
    cut: int  # different words that it lacks
    unknown: int  # words of the captions that become <unk>


@dataclass(frozen=True)
class Vocabulary:
    """The words in the order of their numbers, special tokens first, and their cleaning."""

    words: tuple[str, ...]
    cleaning: Cleaning = field(default_factory=Cleaning)
    tokeniser: TokeniserName = "words"
    merges: Merges = ()  # of subwords, in the order in which they are applied

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
        split = word_splitter(options.tokeniser, options.cleaning)
        for caption in captions:
            counts.update(split(caption))
        return cls.of_counts(counts, options)

    @classmethod
    def of_counts(cls, counts: Counter[str], options: VocabularyOptions) -> Self:
        """As `build`, from how often each word occurs in the captions."""
        if not counts:
            raise UserError(
                "no words for the vocabulary: the captions are missing, or cleaning removes "
                "everything"
            )
        if options.tokeniser == "subwords":
            most = options.max_size or SUBWORDS
            pieces, merges = learn_subwords(counts, most, options.min_count)
            return cls((*SPECIAL_TOKENS, *pieces), options.cleaning, "subwords", merges)
        common = [(word, count) for word, count in counts.items() if count >= options.min_count]
        if not common:
            word, count = counts.most_common(1)[0]
            raise UserError(
                f"no word occurs {options.min_count} times (the most frequent, {word!r}, {count} "
                "times): lower --vocabulary.min-count or give more captions"
            )
        common.sort(key=lambda entry: (-entry[1], entry[0]))
        kept = [word for word, _ in common[: options.max_size]]
        return cls((*SPECIAL_TOKENS, *kept), options.cleaning, options.tokeniser)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def coverage(self, counts: Counter[str]) -> "Coverage":
        """How much of captions with these words it knows."""
        known = [count for word, count in counts.items() if UNK not in self._numbers_of(word)]
        return Coverage(len(known), len(counts) - len(known), counts.total() - sum(known))

    def encode(self, caption: str) -> list[int]:
        """`<start>`, a number for each word or subword of the cleaned caption (`<unk>` for unknown
        ones), `<end>`."""
        words = self.split(caption)
        return [START, *(number for word in words for number in self._numbers_of(word)), END]

    @cached_property
    def split(self) -> Callable[[str], list[str]]:
        """Splits a caption into whole words."""
        return word_splitter(self.tokeniser, self.cleaning)

    @cached_property
    def _subwords(self) -> Callable[[str], list[str]]:
        return subword_splitter(self.words, self.merges, SPECIAL_TOKENS[UNK])

    def _numbers_of(self, word: str) -> list[int]:
        if self.tokeniser == "subwords":
            return [self._numbers[piece] for piece in self._subwords(word)]
        return [self._numbers.get(word, UNK)]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is built when it is used: not all of it can be sent to other processes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

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
        return joined(words) if self.tokeniser == "subwords" else " ".join(words)

    def whole_words(self) -> list[str]:
        """The words after the special tokens, as they are written; "" for a part of a word."""
        words = self.words[len(SPECIAL_TOKENS) :]
        if self.tokeniser != "subwords":
            return list(words)
        return [word[1:] if word.startswith(START_OF_WORD) else "" for word in words]

    def to_json(self) -> str:
        """The text of the file, with a digest that detects changes."""
        content: dict[str, Any] = {
            "format": FORMAT_OF_WORDS,
            "cleaning": asdict(self.cleaning),
            "words": list(self.words),
        }
        if self.tokeniser != "words":
            merges = [list(merge) for merge in self.merges]
            content |= {"format": FORMAT, "tokeniser": self.tokeniser, "merges": merges}
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
        if content["format"] not in (FORMAT, FORMAT_OF_WORDS):
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
        merges = tuple((str(first), str(second)) for first, second in content.get("merges", ()))
        tokeniser = content.get("tokeniser", "words")
        if tokeniser not in get_args(TokeniserName):
            raise UserError(f"the vocabulary has an unknown tokeniser: {tokeniser!s:.40}")
        cleaning = Cleaning(**content["cleaning"])
        return cls(tuple(content["words"]), cleaning, tokeniser, merges)

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
