"""Beam search for many pictures at once."""

import torch
from torch import Tensor
from torch.nn import functional

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors
from raycap.search import Beam
from raycap.search.found import (
    Found,
    best_first,
    blank,
    found,
    pick,
    reorder,
    watch,
    worth_leaving,
)
from raycap.search.rules import next_words
from raycap.vocabulary import END, START


@torch.no_grad()
def beam(options: Beam, decoder: Decoder, memory: Tensors, *, attention: bool) -> Found:
    """The `best` captions of each picture in `memory`."""
    some = next(iter(memory.values()))
    state = decoder.initial_state(memory, options.width)
    growing = blank(len(some), options.width, options.max_length, some.device)
    growing["total"][:, 0] = (
        0.0  # before their first word a picture's captions are all the same: one may grow
    )
    ended = blank(len(some), options.best, options.max_length, some.device)
    row = torch.arange(len(some), device=some.device)
    pictures = {
        "row": row,
        "count": torch.zeros_like(row),
        "done": torch.zeros_like(row, dtype=torch.bool),
    }
    last, gone = torch.full_like(growing["words"][..., 0], START), []
    for said in range(options.max_length):
        step = decoder.step(last, state, memory)
        if attention and said == 0 and step.attention is not None:
            watch(step.attention, growing, ended)
        more, parent = _continue(options, growing, step, said)
        ended = _collect(options, ended, more, pictures)
        on = _going_on(more["words"][..., said], options.width)
        growing, state = reorder(more, on), reorder(step.state, parent.gather(1, on))
        pictures["done"] = pictures["done"] | _done(options, growing, ended, pictures)
        if worth_leaving(pictures["done"]):
            stay = ~pictures["done"]
            gone.append(pick(ended | pictures, ~stay))
            memory, state, growing, ended, pictures = (
                pick(part, stay) for part in (memory, state, growing, ended, pictures)
            )
            if not len(pictures["row"]):
                return found(gone)
        last = growing["words"][..., said]
    # What still grows is returned where too few have ended, and behind those that have.
    both = {name: torch.cat([ended[name], growing[name]], 1) for name in ended}
    return found([*gone, best_first(both, options.best) | pictures])


def _continue(
    options: Beam, growing: Tensors, step: DecoderStep, said: int
) -> tuple[Tensors, Tensor]:
    """The best continuations [B, 2K] of the growing captions [B, K], best first, and whose they are.

    Each caption has one `<end>`, so of twice the width at least `width` go on.
    """
    allowed = growing["total"].unsqueeze(2) + next_words(
        options, step.logits, growing["words"][..., :said]
    )
    total, place = _highest(allowed.flatten(1), 2 * options.width)
    parent = place // allowed.shape[2]
    more = reorder(growing, parent)
    more["words"][..., said] = place % allowed.shape[2]
    more["total"], more["score"] = total, total / (said + 1) ** options.length_penalty
    if "attention" in more and step.attention is not None:
        more["attention"][:, :, said] = torch.take_along_dim(
            step.attention, parent.unsqueeze(2), 1
        )
    return more, parent


def _going_on(words: Tensor, width: int) -> Tensor:
    """The first `width` of the candidates whose last words [B, 2K] are no `<end>`."""
    return torch.argsort((words == END).to(torch.uint8), dim=1, stable=True)[:, :width]


def _highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of [B, M], best first, and their places; of equals the first, as `topk` does not promise.

    They lie in the `count` blocks with the highest maxima, so that only those are sorted.
    """
    size = 64
    blocks = functional.pad(values, (0, -values.shape[1] % size), value=-torch.inf).view(
        len(values), -1, size
    )
    best = (
        torch.sort(blocks.amax(2), dim=1, descending=True, stable=True)
        .indices[:, :count]
        .sort(1)
        .values
    )
    candidates = torch.take_along_dim(blocks, best.unsqueeze(2), 1).flatten(1)  # [B, count * size]
    highest, order = (
        part[:, :count] for part in torch.sort(candidates, dim=1, descending=True, stable=True)
    )
    return highest, best.gather(1, order // size) * size + order % size


def _collect(options: Beam, ended: Tensors, more: Tensors, pictures: Tensors) -> Tensors:
    """The best captions [B, N] that have ended, with those that just did."""
    new = {name: part[:, : options.width] for name, part in more.items()}
    possible = (new["total"] > -torch.inf) & ~pictures["done"].unsqueeze(1)
    new["finished"] = (new["words"] == END).any(2) & possible
    new["score"] = new["score"].masked_fill(~new["finished"], -torch.inf)
    new["total"] = new["total"].masked_fill(~new["finished"], -torch.inf)
    pictures["count"] += new["finished"].sum(1)
    return best_first(
        {name: torch.cat([ended[name], new[name]], 1) for name in ended}, options.best
    )


def _done(options: Beam, growing: Tensors, ended: Tensors, pictures: Tensors) -> Tensor:
    """Pictures [B] with `width` ended captions, or with none growing that could still overtake the worst kept.

    A growing caption's log-probability only falls, and its length ends at max_length: this bounds its score.
    """
    bound = growing["total"].amax(1) / options.max_length**options.length_penalty
    settled: Tensor = ended["score"][:, -1] >= bound
    return settled | (pictures["count"] >= options.width)
