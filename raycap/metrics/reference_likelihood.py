"""Loss, perplexity and token accuracy of a captioner on the words of the references."""

import numpy as np

from raycap.metrics.scores import Floats, Score, ScoreFacts

LOSS = ScoreFacts(
    "loss",
    "loss on the references",
    "cross-entropy of the references' words under the captioner, in nats per word",
    better="lower",
    format="{:.3f}",
    log_name="validation_loss",
)
PERPLEXITY = ScoreFacts(
    "perplexity",
    "perplexity on the references",
    "e to the power of the loss: among how many words the captioner wavers",
    better="lower",
)
TOKEN_ACCURACY = ScoreFacts(
    "token_accuracy",
    "token accuracy on the references",
    "share of the references' words that the captioner puts first",
    format="{:.1%}",
    log_name="accuracy",
)
LIKELIHOOD_SCORES = (LOSS, PERPLEXITY, TOKEN_ACCURACY)


def reference_likelihood(sums: Floats, vocabulary: str) -> tuple[Score, ...]:
    """Scores from sums [pictures, 3]: cross-entropy in nats, words predicted, words; zeros for a
    picture that was not measured.

    The signature names the vocabulary, because a captioner that knows fewer words predicts those
    more easily.
    """
    measured = int((sums[:, 2] > 0).sum())
    words = f"{sums[:, 2].sum():.0f}"
    signature = f"tokens:vocabulary {vocabulary}|end:yes|words:{words}|pictures:{measured}"
    return (
        Score(LOSS, sums, _loss, signature),
        Score(PERPLEXITY, sums, _perplexity, signature),
        Score(TOKEN_ACCURACY, sums, _accuracy, signature),
    )


def _loss(sums: Floats) -> Floats:
    return _per_word(sums[..., 0], sums[..., 2])


def _perplexity(sums: Floats) -> Floats:
    return np.asarray(np.exp(_loss(sums)))


def _accuracy(sums: Floats) -> Floats:
    return _per_word(sums[..., 1], sums[..., 2])


def _per_word(sums: Floats, words: Floats) -> Floats:
    """NaN where there are no words."""
    return np.asarray(np.where(words > 0, sums / np.maximum(words, 1), np.nan))
