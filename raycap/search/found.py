"""What a search found, for training and for everyone else, and how a batch of captions is kept."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Tensors
from raycap.search import Hypothesis
from raycap.vocabulary import END, PAD


class Found(NamedTuple):
    """The captions of B pictures, N of each, best first; where there are fewer, a log-probability of -inf."""

    words: Tensor  # [B, N, T] the words and `<end>`, then PAD
    log_probability: Tensor  # [B, N]
    score: Tensor  # [B, N]
    finished: Tensor  # [B, N] whether `<end>` was said
    attention: Tensor | None  # [B, N, T, P]

    def hypotheses(self) -> list[list[Hypothesis]]:
        """For each picture its captions, best first."""
        words, log_probability, score, finished = (part.tolist() for part in self[:4])
        attention = None if self.attention is None else self.attention.cpu()
        found: list[list[Hypothesis]] = [[] for _ in words]
        for b, captions in enumerate(words):
            for n, tokens in enumerate(captions):
                if log_probability[b][n] == -torch.inf:
                    continue
                said = tuple(token for token in tokens if token not in (END, PAD))
                looked = None if attention is None else attention[b, n, : len(said)]
                found[b].append(
                    Hypothesis(said, log_probability[b][n], score[b][n], finished[b][n], looked)
                )
        return found


def blank(pictures: int, captions: int, length: int, device: torch.device) -> Tensors:
    """`captions` of each picture that do not exist yet: no words, impossible."""
    return {
        "words": torch.full((pictures, captions, length), PAD, device=device),
        "total": torch.full((pictures, captions), -torch.inf, device=device),
        "score": torch.full((pictures, captions), -torch.inf, device=device),
        "finished": torch.zeros(pictures, captions, dtype=torch.bool, device=device),
    }


def watch(attention: Tensor, *groups: Tensors) -> None:
    """Make room for where each word's attention [B, K, P] looked, in each group of captions."""
    for captions in groups:
        captions["attention"] = attention.new_zeros(*captions["words"].shape, attention.shape[-1])


def pick(tensors: Tensors, pictures: Tensor) -> Tensors:
    """The pictures (places, or a mask [B]) of each tensor [B, ...]."""
    return {name: part[pictures] for name, part in tensors.items()}


def reorder(tensors: Tensors, captions: Tensor) -> Tensors:
    """For each picture the captions [B, M] of each tensor [B, K, ...]."""
    pictures = torch.arange(len(captions), device=captions.device).unsqueeze(1)
    return {name: part[pictures, captions] for name, part in tensors.items()}


def best_first(captions: Tensors, count: int) -> Tensors:
    """The `count` best of the captions [B, K]: finished ones first, then by score, then as they stood."""
    by_score = torch.argsort(captions["score"], dim=1, descending=True, stable=True)
    finished = captions["finished"].gather(1, by_score)
    by_end = torch.argsort(finished.to(torch.uint8), dim=1, descending=True, stable=True)
    return reorder(captions, by_score.gather(1, by_end)[:, :count])


def found(parts: Sequence[Tensors]) -> Found:
    """The captions of all pictures in the order of their `row`, as they were before done ones left the batch."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    whole = pick(whole, torch.argsort(whole["row"]))
    words = whole["words"].masked_fill((whole["total"] == -torch.inf).unsqueeze(2), PAD)
    return Found(words, whole["total"], whole["score"], whole["finished"], whole.get("attention"))


def worth_leaving(done: Tensor) -> bool:
    """Whether enough pictures [B] are done to pay for copying the memory of the others."""
    return 4 * int(done.sum()) >= len(done)
