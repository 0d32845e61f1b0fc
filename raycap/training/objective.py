"""Cross-entropy over the true words only, as sums, so that the parts of a batch add up however it is split."""

from typing import Any, NamedTuple

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
    foretold = _foretold(decoder, memory, words, read, options.label_smoothing)
    true = foretold.true
    penalty = foretold.objective.new_zeros(())
    if options.attention_penalty and foretold.attention is not None:
        penalty = options.attention_penalty * unevenness(foretold.attention, true)
    counts = [foretold.surprise.sum(), foretold.right.sum(), true.sum(), true.any(2).sum()]
    return Sums(foretold.objective, penalty, torch.stack([count.float() for count in counts]))


def by_picture(decoder: Decoder, memory: Tensors, words: Tensor) -> Tensor:
    """Of each picture's captions [B, R, T + 1]: cross-entropy, words guessed right, words; [B, 3]."""
    foretold = _foretold(decoder, memory, words)
    each = torch.stack([foretold.surprise, foretold.right.float(), torch.ones_like(foretold.surprise)], 1)  # [N, 3]
    picture = foretold.true.nonzero()[:, 0]  # [N]
    return each.new_zeros(len(words), 3).index_add_(0, picture, each)


class _Foretold(NamedTuple):
    """What a decoder expected at each of the N true words."""

    true: Tensor  # [B, R, T] where a word is to be said
    objective: Tensor  # smoothed cross-entropy, summed; carries the gradient
    surprise: Tensor  # [N] of the word that came
    right: Tensor  # [N] whether it was the likeliest
    attention: Tensor | None  # [B, R, T, P]


def _foretold(
    decoder: Decoder, memory: Tensors, words: Tensor, read: Tensor | None = None, smoothing: float = 0.0
) -> _Foretold:
    following = words[..., 1:]  # [B, R, T]
    true = following != PAD
    unrolled = decoder.unroll(memory, before(words) if read is None else read)
    scores = decoder.scores(unrolled.outputs[true])  # [N, V]: padding, half of a batch, is never scored
    objective, surprise, right = _CrossEntropy.apply(scores, following[true], smoothing)
    return _Foretold(true, objective, surprise, right, unrolled.attention)


class _CrossEntropy(torch.autograd.Function):
    """Of scores [N, V]: the cross-entropy, smoothed and summed; that of each word [N], plain; and whether the word
    was scored highest [N]. All in one walk.

    As separate operations of torch, each with its own pass over [N, V], this cost five times as much on a
    processor, some 5% of a whole step.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, wanted: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        odds = scores.to(torch.float32, copy=True)
        highest, own = odds.amax(1), odds.gather(1, wanted.unsqueeze(1)).squeeze(1)  # [N]
        mean = odds.mean(1)
        odds.sub_(highest.unsqueeze(1)).exp_()
        total = odds.sum(1)
        surprise, right = total.log() + highest - own, own >= highest
        ctx.save_for_backward(odds, total, wanted)
        ctx.smoothing, ctx.numbers = smoothing, scores.dtype
        ctx.mark_non_differentiable(surprise, right)
        return (surprise + smoothing * (own - mean)).sum(), surprise, right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        odds, total, wanted = ctx.saved_tensors
        # In place: these are read once.
        odds.mul_(gradient / total.unsqueeze(1)).sub_(gradient * ctx.smoothing / odds.shape[1])
        odds.scatter_add_(1, wanted.unsqueeze(1), (gradient * (ctx.smoothing - 1)).expand(len(wanted), 1))
        return odds.to(ctx.numbers), None, None


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
