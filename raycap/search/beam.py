"""Beam search for many pictures at once."""

import torch
from torch import Tensor
from torch.nn import functional

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors
from raycap.search import Beam
from raycap.search.captions import (
    SearchResult,
    add_attention,
    best_first,
    empty_captions,
    enough_done,
    next_word_log_probabilities,
    search_result,
    select_captions,
    select_pictures,
    split_by,
)
from raycap.vocabulary import END, PAD, START

BLOCK = 64  # values of which only the highest is looked at first


@torch.no_grad()
def beam_search(
    options: Beam,
    decoder: Decoder,
    memory: Tensors,
    *,
    attention: bool,
    word_bonus: Tensor | None = None,
) -> SearchResult:
    """The `best` captions of each picture in `memory`. With `word_bonus` [B, V], `total` and
    `score` contain it until the end."""
    some = next(iter(memory.values()))  # any tensor of the memory: [B, ...]
    state = decoder.initial_state(memory, 1)
    beams = empty_captions(len(some), options.width, options.max_length, some.device)
    # Only one of the beams may continue as long as all of them are the same.
    beams["total"][:, 0] = 0.0
    ended = empty_captions(len(some), options.best, options.max_length, some.device)
    if word_bonus is not None:
        for captions in (beams, ended):
            captions["bonus"] = torch.zeros_like(captions["total"])
    row = torch.arange(len(some), device=some.device)
    pictures = {
        "row": row,
        "count": torch.zeros_like(row),  # of captions that have ended
        "done": torch.zeros_like(row, dtype=torch.bool),
    }
    last_words = torch.full_like(beams["words"][..., 0], START)
    results = []
    for position in range(options.max_length):
        if position == 0:  # all beams of a picture are the same
            step = _for_each_beam(decoder.step(last_words[:, :1], state, memory), options.width)
        else:
            step = decoder.step(last_words, state, memory)
        if attention and position == 0 and step.attention is not None:
            add_attention(beams, step.attention)
            add_attention(ended, step.attention)
        candidates, parents = _best_continuations(options, beams, step, position, word_bonus)
        ended = select_captions(*add_ended(options, ended, candidates, pictures))
        # The first `width` candidates that have not ended become the beams.
        has_ended = (candidates["words"][..., position] == END).to(torch.uint8)
        going_on = torch.argsort(has_ended, dim=1, stable=True)[:, : options.width]
        beams = select_captions(candidates, going_on)
        state = select_captions(step.state, parents.gather(1, going_on))
        pictures["done"] = pictures["done"] | are_done(options, beams, ended, pictures)
        if enough_done(pictures["done"]):
            done, remaining = split_by(pictures["done"])
            results.append(select_pictures(ended | pictures, done))
            memory, state, beams, ended, pictures = (
                select_pictures(tensors, remaining)
                for tensors in (memory, state, beams, ended, pictures)
            )
            if word_bonus is not None:
                word_bonus = word_bonus.index_select(0, remaining)
            if not len(remaining):
                break
        last_words = beams["words"][..., position]
    else:
        # If too few captions have ended, unfinished ones follow them.
        both = {name: torch.cat([ended[name], beams[name]], 1) for name in ended}
        results.append(best_first(both, options.best) | pictures)
    return search_result([without_bonus(options, part) for part in results])


def without_bonus(options: Beam, captions: Tensors) -> Tensors:
    """With the captioner's own log-probabilities; in the order that they have with the bonus."""
    if "bonus" not in captions:
        return captions
    lengths = (captions["words"] != PAD).sum(2).clamp(min=1)
    score = captions["bonus"] / lengths**options.length_penalty
    own = {"total": captions["total"] - captions["bonus"], "score": captions["score"] - score}
    return captions | own


def _for_each_beam(step: DecoderStep, width: int) -> DecoderStep:
    """The step of one caption of each picture [B, 1, ...] as that of `width` beams."""

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.expand(-1, width, *tensor.shape[2:])

    state = {name: repeated(part) for name, part in step.state.items()}
    attention = None if step.attention is None else repeated(step.attention)
    return DecoderStep(repeated(step.logits), state, attention)


def _best_continuations(
    options: Beam,
    beams: Tensors,
    step: DecoderStep,
    position: int,
    word_bonus: Tensor | None,
) -> tuple[Tensors, Tensor]:
    """The best continuations [B, 2K] of the beams [B, K], best first, and the beam that each
    continues.

    Each beam has only one continuation with `<end>`. So of 2K continuations, at least K go on.
    """
    said = beams["words"][..., :position]
    totals = next_word_log_probabilities(options, step.logits, said)  # [B, K, V]
    if word_bonus is not None:
        without = totals.gather(2, said)
        totals += word_bonus.unsqueeze(1)
        totals.scatter_(2, said, without)
    totals += beams["total"].unsqueeze(2)
    total, index = _highest_of_few(totals.flatten(1), 2 * options.width)
    parents, words = index // totals.shape[2], index % totals.shape[2]
    candidates = select_captions(beams, parents)
    if word_bonus is not None:
        is_said = (candidates["words"][..., :position] == words.unsqueeze(2)).any(2)
        candidates["bonus"] += word_bonus.gather(1, words).masked_fill(is_said, 0.0)
    candidates["words"][..., position] = words
    candidates["total"] = total
    candidates["score"] = total / (position + 1) ** options.length_penalty
    if "attention" in candidates and step.attention is not None:
        weights = torch.take_along_dim(step.attention, parents.unsqueeze(2), 1)
        candidates["attention"][:, :, position] = weights
    return candidates, parents


def _highest_of_few(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `highest`, without sorting. `topk` says any of equal values: if there are some, as hardly
    ever, they are sorted after all. Finding that out makes a device wait."""
    if values.shape[1] < BLOCK * (count + 1):
        return highest(values, count)
    blocks = _in_blocks(values)
    maxima, best = blocks.amax(2).topk(count + 1)
    best = best[:, :count].sort(1).values
    in_best = torch.take_along_dim(blocks, best.unsqueeze(2), 1).flatten(1)
    in_order, order = in_best.topk(count + 1)
    differ = torch.cat([maxima[:, :-1] > maxima[:, 1:], in_order[:, :-1] > in_order[:, 1:]])
    if not bool(differ.all()):
        return highest(values, count)
    order = order[:, :count]
    return in_order[:, :count], best.gather(1, order // BLOCK) * BLOCK + order % BLOCK


def highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest values of [B, M], highest first, and their indices. Unlike `topk`, it is
    deterministic: of equal values, the first one is taken.

    The highest values are in the `count` blocks with the highest maxima, so only these are sorted.
    """
    blocks = _in_blocks(values)
    by_maximum = torch.sort(blocks.amax(2), dim=1, descending=True, stable=True).indices
    best = by_maximum[:, :count].sort(1).values
    in_best = torch.take_along_dim(blocks, best.unsqueeze(2), 1).flatten(1)  # [B, count * size]
    in_order, order = torch.sort(in_best, dim=1, descending=True, stable=True)
    in_order, order = in_order[:, :count], order[:, :count]
    return in_order, best.gather(1, order // BLOCK) * BLOCK + order % BLOCK


def _in_blocks(values: Tensor) -> Tensor:
    """[B, M] as [B, blocks, BLOCK], with -inf at the end."""
    padding = -values.shape[1] % BLOCK
    padded = functional.pad(values, (0, padding), value=-torch.inf) if padding else values
    return padded.view(len(values), -1, BLOCK)


def add_ended(
    options: Beam, ended: Tensors, candidates: Tensors, pictures: Tensors
) -> tuple[Tensors, Tensor]:
    """The best ended captions [B, N] and those that end at this position, side by side, and the
    indices of the best N of them. Also updates the number of ended captions in `pictures`."""
    new = {name: tensor[:, : options.width] for name, tensor in candidates.items()}
    possible = (new["total"] > -torch.inf) & ~pictures["done"].unsqueeze(1)
    new["finished"] = (new["words"] == END).any(2) & possible
    new["score"] = new["score"].masked_fill(~new["finished"], -torch.inf)
    new["total"] = new["total"].masked_fill(~new["finished"], -torch.inf)
    pictures["count"] += new["finished"].sum(1)
    both = {name: torch.cat([ended[name], new[name]], 1) for name in ended}
    # Only captions that have ended have a score.
    best = torch.argsort(both["score"], dim=1, descending=True, stable=True)
    return both, best[:, : options.best]


def are_done(options: Beam, beams: Tensors, ended: Tensors, pictures: Tensors) -> Tensor:
    """Which pictures [B] are done: they have `width` ended captions, or no beam can become better
    than the worst ended caption that is kept.

    The log-probability of a beam can only fall, and its length is at most max_length. This gives
    an upper bound for its score. With a bonus it may rise, and there is none.
    """
    enough = pictures["count"] >= options.width
    if "bonus" in beams:
        return enough
    bound = beams["total"].amax(1) / options.max_length**options.length_penalty
    settled: Tensor = ended["score"][:, -1] >= bound
    return settled | enough
