"""Cross-entropy over the true words only, as sums, so that the parts of a batch add up however it is split."""

from typing import NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.training import Objective
from raycap.vocabulary import END, PAD


class Sums(NamedTuple):
    """What a batch adds to a loss and to its report."""

    objective: Tensor  # smoothed cross-entropy, to be divided by words; carries the gradient
    penalty: Tensor  # of attention, to be divided by captions; carries a gradient too
    counts: Tensor  # float32 [4]: cross-entropy, words guessed right, words, captions


def sums(decoder: Decoder, memory: Tensors, words: Tensor, options: Objective, read: Tensor | None = None) -> Sums:
    """Of captions [B, R, T + 1]; `read` [B, R, T] are the words to be read where they are not the true ones."""
    foretold = _foretold(decoder, memory, words, read)
    surprise, true = foretold.surprise.sum(), foretold.true
    objective = surprise
    if options.label_smoothing:
        everywhere = -foretold.log_probability.mean(1).sum()
        objective = (1 - options.label_smoothing) * surprise + options.label_smoothing * everywhere
    penalty = surprise.new_zeros(())
    if options.attention_penalty and foretold.attention is not None:
        penalty = options.attention_penalty * unevenness(foretold.attention, true)
    counts = [surprise.detach(), foretold.right.sum(), true.sum(), true.any(2).sum()]
    return Sums(objective, penalty, torch.stack([count.float() for count in counts]))


def by_picture(decoder: Decoder, memory: Tensors, words: Tensor) -> Tensor:
    """Of each picture's captions [B, R, T + 1]: cross-entropy, words guessed right, words; [B, 3]."""
    foretold = _foretold(decoder, memory, words, None)
    each = torch.stack([foretold.surprise, foretold.right.float(), torch.ones_like(foretold.surprise)], 1)  # [N, 3]
    picture = foretold.true.nonzero()[:, 0]  # [N]
    return each.new_zeros(len(words), 3).index_add_(0, picture, each)


class _Foretold(NamedTuple):
    """What a decoder expected at each of the N true words."""

    true: Tensor  # [B, R, T] where a word is to be said
    log_probability: Tensor  # [N, V]
    surprise: Tensor  # [N] of the word that came
    right: Tensor  # [N] whether it was the likeliest
    attention: Tensor | None  # [B, R, T, P]


def _foretold(decoder: Decoder, memory: Tensors, words: Tensor, read: Tensor | None) -> _Foretold:
    following = words[..., 1:]  # [B, R, T]
    true = following != PAD
    unrolled = decoder.unroll(memory, before(words) if read is None else read)
    scores = decoder.scores(unrolled.outputs[true])  # [N, V]: padding, half of a batch, is never scored
    log_probability = torch.log_softmax(scores, -1, dtype=torch.float32)
    wanted = following[true]  # [N]
    surprise = -log_probability.gather(1, wanted.unsqueeze(1)).squeeze(1)
    return _Foretold(true, log_probability, surprise, scores.argmax(1) == wanted, unrolled.attention)


def before(words: Tensor) -> Tensor:
    """The words read, [B, R, T], when each must say the next of [B, R, T + 1]: all but the last, and no `<end>`."""
    return words[..., :-1].masked_fill(words[..., :-1] == END, PAD)


def unevenness(attention: Tensor, true: Tensor) -> Tensor:
    """How far the attention [B, R, T, P] is from looking once at each place, summed over captions; `true` [B, R, T]
    are the words that there are."""
    looked = (attention * true.unsqueeze(3)).sum(2)  # [B, R, P]
    return ((1 - looked) ** 2).mean(2)[true.any(2)].sum()


@torch.no_grad()
def words_read(decoder: Decoder, memory: Tensors, words: Tensor, chance: float) -> Tensor:
    """Scheduled sampling: the words [B, R, T] to read when each is, by `chance`, one that the captioner would say.

    Walked word by word, since what it says depends on what it has read. No gradient goes through a drawn word, so
    the captions can then be unrolled as always.
    """
    read = before(words)
    state = decoder.begin(memory, read.shape[1])
    for place in range(read.shape[2] - 1):
        step = decoder.step(read[..., place], state, memory)
        state = step.state
        probable = torch.softmax(step.scores, -1, dtype=torch.float32).flatten(0, 1)
        said = torch.multinomial(probable, 1).view(read.shape[:2])  # [B, R]
        swapped = (torch.rand(said.shape, device=said.device) < chance) & (read[..., place + 1] != PAD)
        # PAD would end the caption for the decoder, which packs captions by their length.
        swapped &= (said != PAD) & (said != END)
        read[..., place + 1] = torch.where(swapped, said, read[..., place + 1])
    return read
