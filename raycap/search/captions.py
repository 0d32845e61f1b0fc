"""The captions that a search builds, and the result of a search.

The captions of a batch are a dict of tensors [B, K, ...]: K captions of each of B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Tensors
from raycap.search import Hypothesis, SearchOptions
from raycap.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    from raycap.search.cuda import HostCopy

# From one in so many pictures that are done, the others are copied to a smaller batch.
SHARE_DONE = 12


class SearchResult(NamedTuple):
    """N captions of each of B pictures, best first. Missing ones have a log-probability of
    -inf."""

    words: Tensor  # [B, N, T] the words and `<end>`, then PAD
    log_probability: Tensor  # [B, N]
    score: Tensor  # [B, N]
    finished: Tensor  # [B, N] whether the caption has its `<end>`
    attention: Tensor | None  # [B, N, T, P]
    on_host: HostCopy | None = None  # the same, on its way to the host

    def hypotheses(self) -> list[list[Hypothesis]]:
        """The captions of each picture, best first."""
        parts = [part for part in self[:5] if part is not None]
        if self.on_host is not None:
            parts = self.on_host.wait()
        words, totals, scores, are_finished = (part.tolist() for part in parts[:4])
        attention = parts[4].cpu() if len(parts) > 4 else None
        hypotheses: list[list[Hypothesis]] = [[] for _ in words]
        for b, captions in enumerate(words):
            for n, tokens in enumerate(captions):
                if totals[b][n] == -torch.inf:
                    continue
                kept = tuple(token for token in tokens if token not in (END, PAD))
                looked = None if attention is None else attention[b, n, : len(kept)]
                hypotheses[b].append(
                    Hypothesis(kept, totals[b][n], scores[b][n], are_finished[b][n], looked)
                )
        return hypotheses


def empty_captions(pictures: int, captions: int, length: int, device: torch.device) -> Tensors:
    """`captions` of each picture, without words and with a probability of 0."""
    return {
        "words": torch.full((pictures, captions, length), PAD, device=device),
        "total": torch.full((pictures, captions), -torch.inf, device=device),
        "score": torch.full((pictures, captions), -torch.inf, device=device),
        "finished": torch.zeros(pictures, captions, dtype=torch.bool, device=device),
    }


def add_attention(captions: Tensors, attention: Tensor) -> None:
    """Allocate the attention weights of all words, given those of the first [B, K, P]."""
    captions["attention"] = attention.new_zeros(*captions["words"].shape, attention.shape[-1])


def next_word_log_probabilities(options: SearchOptions, logits: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities [B, K, V] of the word after `words` [B, K, t]; -inf for forbidden words.

    The other words keep the log-probabilities of the model, without renormalisation.
    """
    length = words.shape[2]
    log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
    for word in (PAD, START) if options.allow_unknown else (PAD, START, UNK):
        log_probabilities[..., word] = -torch.inf
    if 0 < options.no_repeat_ngram <= length:
        _forbid_repeated_ngrams(log_probabilities, words, options.no_repeat_ngram)
    if options.no_stutter and length:
        log_probabilities.scatter_(2, words[..., -1:], -torch.inf)
    if length < options.min_length:
        end = log_probabilities[..., END].clone()
        log_probabilities[..., END] = -torch.inf
        # If all words are forbidden, the caption ends, even if it is too short.
        stuck = log_probabilities.amax(-1) == -torch.inf
        log_probabilities[..., END] = torch.where(stuck, end, -torch.inf)
    return log_probabilities


def _forbid_repeated_ngrams(log_probabilities: Tensor, words: Tensor, n: int) -> None:
    ngrams = words.unfold(2, n, 1)  # [B, K, t - n + 1, n]
    suffix = words[..., words.shape[2] - n + 1 :].unsqueeze(2)  # [B, K, 1, n - 1]
    repeats = (ngrams[..., :-1] == suffix).all(-1)  # [B, K, t - n + 1]
    # Added and not assigned: several n-grams may end in the same word, and a later one that is no
    # repetition would otherwise overwrite the -inf.
    log_probabilities.scatter_add_(2, ngrams[..., -1], torch.where(repeats, -torch.inf, 0.0))


def select_pictures(tensors: Tensors, pictures: Tensor) -> Tensors:
    """The pictures at some indices of each tensor [B, ...]."""
    return {name: tensor.index_select(0, pictures) for name, tensor in tensors.items()}


def select_captions(tensors: Tensors, captions: Tensor) -> Tensors:
    """For each picture the captions at the indices [B, M] of each tensor [B, K, ...]."""
    width = next(iter(tensors.values())).shape[1]
    first = torch.arange(0, len(captions) * width, width, device=captions.device)
    rows = (first.unsqueeze(1) + captions).flatten()
    selected = {}
    for name, tensor in tensors.items():
        some = tensor.flatten(0, 1).index_select(0, rows)
        selected[name] = some.view(*captions.shape, *tensor.shape[2:])
    return selected


def best_first(captions: Tensors, count: int) -> Tensors:
    """The `count` best of the captions [B, K]: finished ones first, then by score. Ties keep their
    order."""
    by_score = torch.argsort(captions["score"], dim=1, descending=True, stable=True)
    finished = captions["finished"].gather(1, by_score).to(torch.uint8)
    by_finished = torch.argsort(finished, dim=1, descending=True, stable=True)
    return select_captions(captions, by_score.gather(1, by_finished)[:, :count])


def split_by(done: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the pictures that are done, and of the others."""
    return done.nonzero().squeeze(1), (~done).nonzero().squeeze(1)


def enough_done(done: Tensor) -> bool:
    """Whether enough pictures [B] are done to make it worth copying the others to a smaller
    batch."""
    return SHARE_DONE * int(done.sum()) >= len(done)


def search_result(parts: Sequence[Tensors]) -> SearchResult:
    """The captions of all pictures, sorted by `row`, the place in the original batch."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return finished_result(select_pictures(whole, torch.argsort(whole["row"])))


def finished_result(whole: Tensors) -> SearchResult:
    """The result with these captions [B, N]."""
    missing = whole["total"] == -torch.inf
    words = whole["words"].masked_fill(missing.unsqueeze(2), PAD)
    return SearchResult(
        words, whole["total"], whole["score"], whole["finished"], whole.get("attention")
    )
