"""A simple beam search to compare the fast one with: one caption at a time, in Python lists."""

import math

import torch

from raycap.decoders.decoder import Decoder, Tensors
from raycap.search import Beam, Hypothesis
from raycap.vocabulary import END, PAD, START, UNK


@torch.no_grad()
def slow_beam(
    options: Beam, decoder: Decoder, memory: Tensors, *, proven_stop: bool = True
) -> list[Hypothesis]:
    """The `best` captions of the one picture in `memory`, each tensor of which is [1, ...]."""
    growing = [([], 0.0, decoder.initial_state(memory, 1))]
    ended: list[Hypothesis] = []
    longest = options.max_length**options.length_penalty
    for length in range(1, options.max_length + 1):
        candidates = []
        for words, total, state in growing:
            last = torch.tensor([[words[-1] if words else START]])
            scores, after, _ = decoder.step(last, state, memory)
            totals = total + torch.log_softmax(scores[0, 0].float(), -1)
            totals[_forbidden(options, words, len(totals))] = -math.inf
            best = totals.topk(min(options.width + 1, len(totals)))  # one of them may be <end>
            for total_then, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if total_then > -math.inf:
                    candidates.append((total_then, words, word, after))
        # Stable: of equals the first stays first.
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, words, word, _ in candidates[: options.width]:
            if word == END:
                ended.append(
                    Hypothesis(tuple(words), total, total / length**options.length_penalty, True)
                )
        going = [candidate for candidate in candidates if candidate[2] != END][: options.width]
        growing = [([*words, word], total, state) for total, words, word, state in going]
        ended.sort(key=lambda hypothesis: -hypothesis.score)
        if not growing or len(ended) >= options.width:
            break
        best_possible = max(total for _, total, _ in growing) / longest
        if (
            proven_stop
            and len(ended) >= options.best
            and ended[options.best - 1].score >= best_possible
        ):
            break
    cut = [Hypothesis(tuple(words), total, total / longest, False) for words, total, _ in growing]
    return (ended + cut)[: options.best]


def _forbidden(options: Beam, words: list[int], vocabulary_size: int) -> list[int]:
    forbidden = {PAD, START} if options.allow_unknown else {PAD, START, UNK}
    n = options.no_repeat_ngram
    if 0 < n <= len(words):
        suffix = words[len(words) - n + 1 :]
        forbidden |= {
            words[i + n - 1] for i in range(len(words) - n + 1) if words[i : i + n - 1] == suffix
        }
    if options.no_stutter:
        forbidden |= set(words[-1:])
    if len(words) < options.min_length and len(forbidden | {END}) < vocabulary_size:
        forbidden.add(END)
    return sorted(forbidden)
