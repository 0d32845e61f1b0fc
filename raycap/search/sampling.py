"""Greedy search and sampling: each caption is generated word by word, independently of others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors
from raycap.search import Greedy, Sample
from raycap.search.captions import (
    SearchResult,
    add_attention,
    best_first,
    empty_captions,
    enough_done,
    next_word_log_probabilities,
    search_result,
    select_pictures,
    split_by,
)
from raycap.vocabulary import END, PAD, START


@torch.no_grad()
def generate(
    options: Greedy | Sample,
    decoder: Decoder,
    memory: Tensors,
    *,
    seeds: Sequence[int] | None = None,
    attention: bool = False,
) -> SearchResult:
    """Captions of the most likely words (Greedy), or of words sampled with the seed of each
    picture (Sample)."""
    some = next(iter(memory.values()))
    count = options.samples if isinstance(options, Sample) else 1
    state = decoder.initial_state(memory, count)
    captions = empty_captions(len(some), count, options.max_length, some.device)
    captions["total"].zero_()
    pictures = {"row": torch.arange(len(some), device=some.device)}
    if isinstance(options, Sample):
        uniform = _uniform(options, seeds or [options.seed] * len(some))
        # Apple's GPUs have no float64.
        numbers = torch.float32 if some.device.type == "mps" else torch.float64
        pictures["uniform"] = uniform.to(some.device, numbers)  # [B, K, T]
    last_words = torch.full_like(captions["words"][..., 0], START)
    results = []
    for position in range(options.max_length):
        step = decoder.step(last_words, state, memory)
        if attention and position == 0 and step.attention is not None:
            add_attention(captions, step.attention)
        log_probabilities = next_word_log_probabilities(
            options, step.logits, captions["words"][..., :position]
        )
        if isinstance(options, Sample):
            last_words = _sample(options, log_probabilities, pictures["uniform"][..., position])
        else:
            last_words = log_probabilities.argmax(2)
        _append(captions, last_words, log_probabilities, step, position)
        done, state = captions["finished"].all(1), step.state
        if enough_done(done):
            ended, remaining = split_by(done)
            results.append(select_pictures(best_first(captions, count) | pictures, ended))
            memory, state, captions, pictures = (
                select_pictures(tensors, remaining)
                for tensors in (memory, state, captions, pictures)
            )
            last_words = last_words.index_select(0, remaining)
            if not len(remaining):
                return search_result(results)
    return search_result([*results, best_first(captions, count) | pictures])


def _append(
    captions: Tensors, words: Tensor, log_probabilities: Tensor, step: DecoderStep, position: int
) -> None:
    """Add the words [B, K] to the captions that are not finished."""
    going = ~captions["finished"]
    captions["words"][..., position] = torch.where(going, words, PAD)
    added = log_probabilities.gather(2, words.unsqueeze(2)).squeeze(2)  # [B, K]
    captions["total"] += added.masked_fill(~going, 0.0)
    captions["score"] = captions["total"] / (captions["words"] != PAD).sum(2)
    captions["finished"] |= going & (words == END)
    if "attention" in captions and step.attention is not None:
        captions["attention"][:, :, position] = step.attention


def _uniform(options: Sample, seeds: Sequence[int]) -> Tensor:
    """Random numbers from 0 to 1, one for each word [B, K, T]. They are made on the CPU, so that
    all devices sample the same words."""
    shape = (options.samples, options.max_length)
    numbers = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        numbers.append(torch.rand(shape, dtype=torch.float64, generator=generator))
    return torch.stack(numbers)


def _sample(options: Sample, log_probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The words [B, K] at the quantiles `uniform` [B, K] of the distribution [B, K, V]."""
    scaled = log_probabilities / options.temperature
    if options.top_k:
        least = scaled.topk(min(options.top_k, scaled.shape[2]), 2).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if options.top_p < 1:
        probabilities = torch.softmax(scaled, 2)
        descending = torch.sort(probabilities, 2, descending=True).values
        # A word is excluded if more likely words already reach top_p.
        cut_off = descending.cumsum(2) - descending >= options.top_p
        least = descending.masked_fill(cut_off, torch.inf).amin(2, keepdim=True)
        scaled = scaled.masked_fill(probabilities < least, -torch.inf)
    # In float64, so that a number below 1 never selects a word after the last possible one.
    cumulative = torch.softmax(scaled.to(uniform.dtype), 2).cumsum(2)
    quantile = (uniform * cumulative[..., -1]).unsqueeze(2)
    words = torch.searchsorted(cumulative, quantile, right=True).squeeze(2)
    # NaN logits would give an index after the last word.
    return words.clamp(max=cumulative.shape[2] - 1)
