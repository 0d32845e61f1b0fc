"""What metrics judge: a caption for each picture and its references, tokenised and counted once for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from raycap.errors import UserError
from raycap.metrics.ngrams import Captions, Grams, ReferenceGrams
from raycap.metrics.tokenise import tokenise


@dataclass(frozen=True)
class Corpus:
    """Captions of pictures, the human captions they are measured by, and those the captioner learned from."""

    captions: Sequence[str]  # one for each picture
    references: Sequence[Sequence[str]]  # at least one for each picture
    learned: frozenset[str] = (
        frozenset()
    )  # training captions, to tell novel captions; none when not known

    def __post_init__(self) -> None:
        if not self.captions:
            raise UserError("no captions to judge")
        if len(self.captions) != len(self.references):
            raise UserError(
                f"{len(self.captions)} captions, but references for {len(self.references)} pictures"
            )
        bare = [str(place) for place, references in enumerate(self.references) if not references]
        if bare:
            raise UserError(
                f"{len(bare)} picture(s) have no references (rows {', '.join(bare[:5])}): leave them out"
            )

    @cached_property
    def tokens(self) -> list[str]:
        """Each caption's tokens, joined by spaces."""
        return tokenise(self.captions)

    @cached_property
    def reference_tokens(self) -> list[list[str]]:
        """The same of each picture's references."""
        flat = iter(tokenise(chain.from_iterable(self.references)))
        return [[next(flat) for _ in references] for references in self.references]

    @cached_property
    def _numbered(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        numbers: dict[str, int] = {}
        ours = [numbered(caption.split(), numbers) for caption in self.tokens]
        theirs = [
            [numbered(caption.split(), numbers) for caption in captions]
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
        """How a score was made; scores with the same signature compare."""
        counts = [len(references) for references in self.references]
        references = (
            f"{min(counts)}-{max(counts)}" if min(counts) != max(counts) else str(counts[0])
        )
        parts = {
            "tokens": tokens,
            "end": "no",
            "references": references,
            "pictures": len(self.captions),
            **more,
        }
        return "|".join(f"{name}:{value}" for name, value in parts.items())


def numbered(words: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """The words as numbers; a new word gets the next free one."""
    return [numbers.setdefault(word, len(numbers)) for word in words]
