"""Diversity and health of captions, without a look at the references: what good scores may hide."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from raycap.metrics.answers import Answer, Floats, mean_answer
from raycap.metrics.corpus import Corpus
from raycap.metrics.tokenise import tokenise

# A caption that ends in one of these was cut off: "a man in a".
_UNFINISHED = re.compile(
    r"(?:^| )(?:an?|the|this|his|her|its|their|my|your|our|some|and|or|but|with|without|of|in|on|at|to|from|for|"
    r"into|onto|beside|between|against|while|as|is|are|was|were|be|being|has|have|having|very)$"
)
# A phrase of one to four tokens twice in a row, or three tokens that come again later.
_REPEATED = re.compile(r"(?:^| )(?:(\S+(?: \S+){0,3}) \1|(\S+ \S+ \S+) (?:.* )?\2)(?= |$)")


@dataclass(frozen=True)
class Health:
    """Distinct captions, words used, mean length; shares of captions cut off, repetitive, novel."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """One answer for each number; `novel` only where the training captions are known."""
        captions = corpus.tokens
        signature = f"tokens:ptb|end:no|pictures:{len(captions)}"
        times = Counter(captions)
        pictures = Counter(word for caption in captions for word in set(caption.split()))
        shares = [
            [sum(1 / pictures[word] for word in set(caption.split()))] for caption in captions
        ]
        marks = {
            "length": [len(caption.split()) for caption in captions],
            "cut_off": [bool(_UNFINISHED.search(caption)) for caption in captions],
            "repetitive": [bool(_REPEATED.search(caption)) for caption in captions],
        }
        if corpus.learned:
            learned = set(tokenise(corpus.learned))
            marks["novel"] = [caption not in learned for caption in captions]
        return (
            mean_answer(
                "distinct",
                np.array([1 / times[caption] for caption in captions]),
                signature,
                False,
            ),
            # A word's 1 is shared among the pictures that use it, so that the sum is the vocabulary's size.
            Answer("vocabulary", np.array(shares, np.float64), _total, signature, resamples=False),
            *(
                mean_answer(name, np.array(values, np.float64), signature)
                for name, values in marks.items()
            ),
        )


def _total(sums: Floats) -> Floats:
    return sums[..., 0]
