"""CIDEr and CIDEr-D, slow and plain from their definition (Vedantam et al. 2015)."""

import math
from collections import Counter

Tokens = list[str] | list[int]


def plain_cider(
    captions: list[Tokens], references: list[list[Tokens]], sigma: float | None = 6.0
) -> list[float]:
    """Each caption's CIDEr-D; plain CIDEr with `sigma` None."""
    seen: Counter[tuple] = Counter()
    for theirs in references:
        seen.update({gram for caption in theirs for gram in grams(caption)})

    def weights(caption: Tokens, n: int) -> dict[tuple, float]:
        return {
            gram: count * (math.log(len(references)) - math.log(max(1, seen[gram])))
            for gram, count in grams(caption).items()
            if len(gram) == n
        }

    def agreement(ours: Tokens, theirs: Tokens, n: int) -> float:
        mine, other = weights(ours, n), weights(theirs, n)
        if sigma is None:
            product = sum(mine[gram] * other.get(gram, 0) for gram in mine)
        else:
            product = sum(
                min(mine[gram], other.get(gram, 0)) * other.get(gram, 0) for gram in mine
            )
        norm = math.hypot(*mine.values()) * math.hypot(*other.values())
        apart = max(len(ours), 1) - max(len(theirs), 1)
        return (product / norm if norm else 0) * (
            math.exp(-(apart**2) / (2 * sigma**2)) if sigma else 1
        )

    return [
        10
        * sum(agreement(ours, each, n) for each in theirs for n in (1, 2, 3, 4))
        / 4
        / len(theirs)
        for ours, theirs in zip(captions, references, strict=True)
    ]


def grams(caption: Tokens) -> Counter[tuple]:
    return Counter(
        tuple(caption[start : start + n])
        for n in (1, 2, 3, 4)
        for start in range(len(caption) - n + 1)
    )
