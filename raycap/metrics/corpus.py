"""The input of metrics: for each picture a caption and its references, tokenised and counted
once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from raycap.errors import UserError
from raycap.metrics.ngrams import Captions, Grams, ReferenceGrams
from raycap.metrics.tokenise import tokenise


@dataclass(frozen=True)
class Corpus:
    """Captions of pictures and the references to compare them with."""

    captions: Sequence[str]  # one for each picture
    references: Sequence[Sequence[str]]  # at least one for each picture
    # The captions of the training data, to count novel captions; empty if unknown.
    training_captions: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.captions:
            raise UserError("no captions to score")
        if len(self.captions) != len(self.references):
            raise UserError(
                f"{len(self.captions)} captions, but references for {len(self.references)} "
                "pictures"
            )
        bare = [str(row) for row, references in enumerate(self.references) if not references]
        if bare:
            raise UserError(
                f"{len(bare)} picture(s) have no references (rows {', '.join(bare[:5])}): leave "
                "them out"
            )

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens of each caption, joined by spaces."""
        return tokenise(self.captions)

    @cached_property
    def reference_tokens(self) -> list[list[str]]:
        """The tokens of each picture's references, each joined by spaces."""
        flat = iter(tokenise(chain.from_iterable(self.references)))
        return [[next(flat) for _ in references] for references in self.references]

    @cached_property
    def _numbered(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        numbers: dict[str, int] = {}
        ours = [to_numbers(caption.split(), numbers) for caption in self.tokens]
        theirs = [
            [to_numbers(caption.split(), numbers) for caption in captions]
            for captions in self.reference_tokens
        ]
        return ours, theirs

    @cached_property
    def numbers(self) -> Captions:
        """The captions as token numbers."""
        return Captions.of(self._numbered[0])

    @cached_property
    def reference_grams(self) -> ReferenceGrams:
        """The references' n-grams of 1 to 4 tokens."""
        return ReferenceGrams(self._numbered[1])

    @cached_property
    def grams(self) -> list[Grams]:
        """The captions' n-grams of 1 to 4 tokens."""
        return list(self.reference_grams.look_up(self.numbers))

    def signature(self, tokens: str = "ptb", **more: object) -> str:
        """How a score was computed. Only scores with the same signature can be compared."""
        counts = [len(references) for references in self.references]
        few, many = min(counts), max(counts)
        parts = {
            "tokens": tokens,
            "end": "no",
            "references": str(few) if few == many else f"{few}-{many}",
            "pictures": len(self.captions),
            **more,
        }
        return "|".join(f"{name}:{value}" for name, value in parts.items())


def to_numbers(words: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """The numbers of the words. A word that is not in `numbers` is added with the next number."""
    return [numbers.setdefault(word, len(numbers)) for word in words]
