"""How a caption is split: into words at spaces, into the words of spaCy, or into subwords.

words      a man's t-shirt  ->  a  man's  t-shirt
spacy      a man's t-shirt  ->  a  man  's  t  shirt
subwords   skateboarders    ->  skate  ##board  ##ers
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from raycap.errors import UserError
from raycap.vocabulary.cleaning import Cleaning

TokeniserName = Literal["words", "spacy", "subwords"]
START_OF_WORD = "\u2581"  # begins the first subword of a word
SUBWORDS = 5000  # with no max_size

Merges = tuple[tuple[str, str], ...]


def word_splitter(tokeniser: TokeniserName, cleaning: Cleaning) -> Callable[[str], list[str]]:
    """Splits a caption into whole words. Subwords are parts of those of `words`."""
    return functools.partial(_spacy_words, cleaning) if tokeniser == "spacy" else cleaning.words


def _spacy_words(cleaning: Cleaning, caption: str) -> list[str]:
    words = [token.text for token in _spacy()(cleaning.normalised(caption))]
    if cleaning.remove_punctuation:
        words = [word for word in words if any(character.isalnum() for character in word)]
    return cleaning.kept([word for word in words if word.strip()])


@functools.cache
def _spacy() -> Any:
    """spaCy's rules for English, which need no model."""
    try:
        import spacy
    except ImportError as error:
        raise UserError(
            "vocabulary.tokeniser spacy needs a package: pip install 'raycap[spacy]'"
        ) from error
    return spacy.blank("en").tokenizer


def learn_subwords(counts: Counter[str], most: int, least: int) -> tuple[list[str], Merges]:
    """At most `most` subwords by byte-pair encoding, and the merges that make them. Pairs that
    occur fewer than `least` times are not merged."""
    tokenizers = _tokenizers()
    tokeniser = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokeniser.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=most, min_frequency=least, show_progress=False
    )
    texts = (" ".join([START_OF_WORD + word] * count) for word, count in counts.items())
    tokeniser.train_from_iterator(texts, trainer)
    model = json.loads(tokeniser.to_str())["model"]
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    by_number = sorted(model["vocab"], key=model["vocab"].get)
    return by_number, tuple((first, second) for first, second in merges)


def subword_splitter(
    words: Sequence[str], merges: Merges, unknown: str
) -> Callable[[str], list[str]]:
    """Splits a word into subwords. A character that none of them has becomes `unknown`."""
    model = _tokenizers().models.BPE(
        vocab={word: number for number, word in enumerate(words)},
        merges=list(merges),
        unk_token=unknown,
    )

    @functools.lru_cache(100_000)  # the same words come again and again
    def split(word: str) -> list[str]:
        return [one.value for one in model.tokenize(START_OF_WORD + word)]

    return split


def joined(subwords: Sequence[str]) -> str:
    """The text of subwords."""
    return "".join(subwords).replace(START_OF_WORD, " ").strip()


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "vocabulary.tokeniser subwords needs a package: pip install 'raycap[subwords]'"
        ) from error
    return tokenizers
