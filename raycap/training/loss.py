"""The loss: cross-entropy over the words of captions.

Losses are sums, not means: the parts of a step, which are computed one after the other or on
several workers, then add up to the same loss however the step is divided.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.training.options import Objective
from raycap.vocabulary import END, PAD


class CaptionLoss(NamedTuple):
    """What the captions of a batch add to the loss and to the log."""

    objective: Tensor  # smoothed cross-entropy, to be divided by words; has a gradient
    penalty: Tensor  # of attention, to be divided by captions; has a gradient too
    counts: Tensor  # float32 [4]: cross-entropy, words predicted correctly, words, captions


def caption_loss(
    decoder: Decoder,
    memory: Tensors,
    words: Tensor,
    options: Objective,
    inputs: Tensor | None = None,
) -> CaptionLoss:
    """The loss of captions [B, R, T + 1]; `inputs` [B, R, T] are read in place of the true
    words."""
    scored = _score_words(decoder, memory, words, inputs, options.label_smoothing)
    penalty = scored.objective.new_zeros(())
    if options.attention_penalty and scored.attention is not None:
        penalty = options.attention_penalty * attention_penalty(scored.attention, scored.mask)
    counts = [
        scored.cross_entropy.sum(),
        scored.correct.sum(),
        scored.mask.sum(),
        scored.mask.any(2).sum(),
    ]
    stacked = torch.stack([count.float() for count in counts])
    return CaptionLoss(scored.objective, penalty, stacked)


def loss_by_picture(decoder: Decoder, memory: Tensors, words: Tensor) -> Tensor:
    """[B, 3] for captions [B, R, T + 1]: each picture's cross-entropy, words predicted correctly,
    and words."""
    scored = _score_words(decoder, memory, words)
    ones = torch.ones_like(scored.cross_entropy)
    each = torch.stack([scored.cross_entropy, scored.correct.float(), ones], 1)  # [N, 3]
    picture = scored.mask.nonzero()[:, 0]  # [N]
    return each.new_zeros(len(words), 3).index_add_(0, picture, each)


class _ScoredWords(NamedTuple):
    """What the decoder predicted at each of the N true words."""

    mask: Tensor  # [B, R, T] where there is a word to predict
    objective: Tensor  # smoothed cross-entropy, summed; has a gradient
    cross_entropy: Tensor  # [N] of the true word
    correct: Tensor  # [N] whether the true word was the most likely one
    attention: Tensor | None  # [B, R, T, P]


def _score_words(
    decoder: Decoder,
    memory: Tensors,
    words: Tensor,
    inputs: Tensor | None = None,
    smoothing: float = 0.0,
) -> _ScoredWords:
    targets = words[..., 1:]  # [B, R, T]
    mask = targets != PAD
    unrolled = decoder.unroll(memory, decoder_inputs(words) if inputs is None else inputs)
    # Padding, half of a batch, is never scored.
    scores = decoder.scores(unrolled.outputs[mask])  # [N, V]
    objective, cross_entropy, correct = _CrossEntropy.apply(scores, targets[mask], smoothing)
    return _ScoredWords(mask, objective, cross_entropy, correct, unrolled.attention)


class _CrossEntropy(torch.autograd.Function):
    """Of scores [N, V]: the smoothed cross-entropy, summed; the plain one of each word [N]; and
    whether each word was scored highest [N]. All in one pass over the scores.

    As separate operations of torch, each with its own pass over [N, V], this took five times as
    long on a CPU, about 5% of a whole step.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        exponentials = scores.to(torch.float32, copy=True)
        highest = exponentials.amax(1)  # [N]
        own = exponentials.gather(1, targets.unsqueeze(1)).squeeze(1)  # [N]
        mean = exponentials.mean(1)
        exponentials.sub_(highest.unsqueeze(1)).exp_()
        total = exponentials.sum(1)
        cross_entropy = total.log() + highest - own
        correct = own >= highest
        ctx.save_for_backward(exponentials, total, targets)
        ctx.smoothing, ctx.dtype = smoothing, scores.dtype
        ctx.mark_non_differentiable(cross_entropy, correct)
        return (cross_entropy + smoothing * (own - mean)).sum(), cross_entropy, correct

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        exponentials, total, targets = ctx.saved_tensors
        # In place: the saved tensors are read once.
        smoothed = gradient * ctx.smoothing / exponentials.shape[1]
        exponentials.mul_(gradient / total.unsqueeze(1)).sub_(smoothed)
        at_target = (gradient * (ctx.smoothing - 1)).expand(len(targets), 1)
        exponentials.scatter_add_(1, targets.unsqueeze(1), at_target)
        return exponentials.to(ctx.dtype), None, None


def decoder_inputs(words: Tensor) -> Tensor:
    """The words [B, R, T] that a decoder reads to predict the next ones of [B, R, T + 1]: all but
    the last, and no `<end>`."""
    return words[..., :-1].masked_fill(words[..., :-1] == END, PAD)


def attention_penalty(attention: Tensor, mask: Tensor) -> Tensor:
    """How far attention [B, R, T, P] is from looking once at each position, summed over captions;
    `mask` [B, R, T] says where there is a word."""
    looked = (attention * mask.unsqueeze(3)).sum(2)  # [B, R, P]
    return ((1 - looked) ** 2).mean(2)[mask.any(2)].sum()


@torch.no_grad()
def scheduled_sampling_inputs(
    decoder: Decoder, memory: Tensors, words: Tensor, probability: float
) -> Tensor:
    """Scheduled sampling: decoder inputs [B, R, T] in which each word is, with that probability,
    one that the decoder itself would write there.

    The decoder goes through the captions word by word, since what it writes depends on what it has
    read. No gradient goes through a sampled word, so the captions can then be unrolled as usual.
    """
    inputs = decoder_inputs(words)
    state = decoder.begin(memory, inputs.shape[1])
    for position in range(inputs.shape[2] - 1):
        step = decoder.step(inputs[..., position], state, memory)
        state = step.state
        probabilities = torch.softmax(step.scores, -1, dtype=torch.float32).flatten(0, 1)
        sampled = torch.multinomial(probabilities, 1).view(inputs.shape[:2])  # [B, R]
        following = inputs[..., position + 1]
        replace = torch.rand(sampled.shape, device=sampled.device) < probability
        replace &= following != PAD
        # PAD would end the caption for the decoder, which packs captions by their length.
        replace &= (sampled != PAD) & (sampled != END)
        inputs[..., position + 1] = torch.where(replace, sampled, following)
    return inputs
