"""Greedy search and sampling: captions that grow by one chosen word at a time, and do not compete."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors
from raycap.search import Greedy, Sample
from raycap.search.found import Found, best_first, blank, found, pick, watch, worth_leaving
from raycap.search.rules import next_words
from raycap.vocabulary import END, PAD, START


@torch.no_grad()
def draw(
    options: Greedy | Sample,
    decoder: Decoder,
    memory: Tensors,
    *,
    seeds: Sequence[int] | None = None,
    attention: bool = False,
) -> Found:
    """The best word each time, or words drawn by each picture's own seed."""
    some = next(iter(memory.values()))
    count = options.samples if isinstance(options, Sample) else 1
    state = decoder.initial_state(memory, count)
    captions = blank(len(some), count, options.max_length, some.device)
    captions["total"].zero_()
    pictures = {"row": torch.arange(len(some), device=some.device)}
    if isinstance(options, Sample):
        pictures["chance"] = _chances(options, seeds or [options.seed] * len(some)).to(some.device)
    last, gone = torch.full_like(captions["words"][..., 0], START), []
    for said in range(options.max_length):
        step = decoder.step(last, state, memory)
        if attention and said == 0 and step.attention is not None:
            watch(step.attention, captions)
        allowed = next_words(options, step.logits, captions["words"][..., :said])
        if isinstance(options, Sample):
            last = _drawn(options, allowed, pictures["chance"][..., said])
        else:
            last = allowed.argmax(2)
        _say(captions, last, allowed, step, said)
        done, state = captions["finished"].all(1), step.state
        if worth_leaving(done):
            gone.append(pick(best_first(captions, count) | pictures, done))
            memory, state, captions, pictures = (
                pick(part, ~done) for part in (memory, state, captions, pictures)
            )
            last = last[~done]
            if not len(last):
                return found(gone)
    return found([*gone, best_first(captions, count) | pictures])


def _say(captions: Tensors, words: Tensor, allowed: Tensor, step: DecoderStep, said: int) -> None:
    """Add the words [B, K] to the captions that go on."""
    going = ~captions["finished"]
    captions["words"][..., said] = torch.where(going, words, PAD)
    captions["total"] += allowed.gather(2, words.unsqueeze(2)).squeeze(2).masked_fill(~going, 0.0)
    captions["score"] = captions["total"] / (captions["words"] != PAD).sum(2)
    captions["finished"] |= going & (words == END)
    if "attention" in captions and step.attention is not None:
        captions["attention"][:, :, said] = step.attention


def _chances(options: Sample, seeds: Sequence[int]) -> Tensor:
    """A number from 0 to 1 for each word [B, K, T], made on the CPU so that every device draws the same."""
    shape = (options.samples, options.max_length)
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack(
        [torch.rand(shape, dtype=torch.float64, generator=source) for source in sources]
    )


def _drawn(options: Sample, allowed: Tensor, chance: Tensor) -> Tensor:
    """The words [B, K] that the chances [B, K] fall on, each word as wide as it is probable."""
    scaled = allowed / options.temperature
    if options.top_k:
        least = scaled.topk(min(options.top_k, scaled.shape[2]), 2).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if options.top_p < 1:
        probable = torch.softmax(scaled, 2)
        likeliest = torch.sort(probable, 2, descending=True).values
        enough = likeliest.cumsum(2) - likeliest >= options.top_p  # those before it already are
        least = likeliest.masked_fill(enough, torch.inf).amin(2, keepdim=True)
        scaled = scaled.masked_fill(probable < least, -torch.inf)
    # float64, so that a chance below 1 never falls behind the last possible word.
    reached = torch.softmax(scaled.double(), 2).cumsum(2)
    drawn = torch.searchsorted(
        reached, (chance * reached[..., -1]).unsqueeze(2), right=True
    ).squeeze(2)
    return drawn.clamp(
        max=reached.shape[2] - 1
    )  # of scores that are NaN it falls behind the last word
