"""What may be said next, and how probable it is."""

import torch
from torch import Tensor

from raycap.search import SearchOptions
from raycap.vocabulary import END, PAD, START, UNK


def next_words(options: SearchOptions, scores: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities [B, K, V] of the word after `words` [B, K, t], -inf where it may not be said.

    They are the model's own: what is forbidden takes its probability with it.
    """
    said = words.shape[2]
    allowed = torch.log_softmax(scores, -1, dtype=torch.float32)
    end = allowed[..., END].clone()
    allowed[..., [PAD, START] if options.allow_unknown else [PAD, START, UNK]] = -torch.inf
    if 0 < options.no_repeat_ngram <= said:
        _forbid_repeats(allowed, words, options.no_repeat_ngram)
    if options.no_stutter and said:
        allowed.scatter_(2, words[..., -1:], -torch.inf)
    if said < options.min_length:
        allowed[..., END] = -torch.inf
        # A caption that may say nothing more is closed, however short.
        allowed[..., END] = torch.where(allowed.amax(-1) == -torch.inf, end, -torch.inf)
    return allowed


def _forbid_repeats(allowed: Tensor, words: Tensor, length: int) -> None:
    runs = words.unfold(2, length, 1)  # [B, K, t - n + 1, n]
    suffix = words[..., words.shape[2] - length + 1 :].unsqueeze(2)  # [B, K, 1, n - 1]
    repeats = (runs[..., :-1] == suffix).all(-1)  # [B, K, t - n + 1]
    # Added, not written: a word may close several runs of which only one is said again.
    allowed.scatter_add_(2, runs[..., -1], torch.where(repeats, -torch.inf, 0.0))
