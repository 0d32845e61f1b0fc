"""How well a captioner foretells what people said, from its own figures: loss, token accuracy, perplexity."""

import numpy as np

from raycap.metrics.answers import Answer, Floats


def of_true_words(figures: Floats, vocabulary: str) -> tuple[Answer, ...]:
    """From each picture's cross-entropy (nats), words foretold, and words: [pictures, 3], zeros where not known.

    The signature names the vocabulary, for a captioner that knows fewer words is surprised less by those it knows.
    """
    judged = int((figures[:, 2] > 0).sum())
    signature = (
        f"tokens:vocabulary {vocabulary}|end:yes|words:{figures[:, 2].sum():.0f}|pictures:{judged}"
    )
    return (
        Answer("loss", figures, _loss, signature),
        Answer("perplexity", figures, _perplexity, signature),
        Answer("token_accuracy", figures, _accuracy, signature),
    )


def _loss(sums: Floats) -> Floats:
    return _for_each_word(sums[..., 0], sums[..., 2])


def _perplexity(sums: Floats) -> Floats:
    return np.asarray(np.exp(_loss(sums)))


def _accuracy(sums: Floats) -> Floats:
    return _for_each_word(sums[..., 1], sums[..., 2])


def _for_each_word(sums: Floats, words: Floats) -> Floats:
    """NaN where there are no words."""
    return np.asarray(np.where(words > 0, sums / np.maximum(words, 1), np.nan))
