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
    following = words[..., 1:]  # [B, R, T]
    true = following != PAD
    unrolled = decoder.unroll(memory, before(words) if read is None else read)
    scores = decoder.scores(unrolled.outputs[true])  # [N, V]: padding, half of a batch, is never scored
    objective, surprise, right = _Surprise.apply(scores, following[true], options.label_smoothing)
    penalty = surprise.new_zeros(())
    if options.attention_penalty and unrolled.attention is not None:
        penalty = options.attention_penalty * unevenness(unrolled.attention, true)
    counts = [surprise, right, true.sum(), true.any(2).sum()]
    return Sums(objective, penalty, torch.stack([count.float() for count in counts]))


class _Surprise(torch.autograd.Function):
    """Cross-entropy of scores [N, V], smoothed and plain, and how many words were scored highest, in one walk.

    As separate operations of torch, each with its own pass over [N, V], this cost five times as much on a processor
    (argmax alone twice), some 5% of a whole step.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, wanted: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        odds = scores.to(torch.float32, copy=True)
        highest, own = odds.amax(1, keepdim=True), odds.gather(1, wanted.unsqueeze(1))  # [N, 1]
        right = (own >= highest).sum()
        mean = odds.mean(1, keepdim=True)
        odds.sub_(highest).exp_()
        total = odds.sum(1, keepdim=True)
        surprise = (total.log() + highest - own).sum()
        objective = surprise + smoothing * (own - mean).sum()
        ctx.save_for_backward(odds, total, wanted)
        ctx.smoothing, ctx.numbers = smoothing, scores.dtype
        ctx.mark_non_differentiable(surprise, right)
        return objective, surprise, right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        odds, total, wanted = ctx.saved_tensors
        odds.mul_(gradient / total).sub_(gradient * ctx.smoothing / odds.shape[1])  # in place: read once
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
