"""Teacher forcing: scores how well a decoder predicts each word of given captions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.vocabulary import END, PAD


def pad_captions(captions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The captions of all pictures in one array [B, R, T + 1], padded with PAD to the longest."""
    references = max(len(of_picture) for of_picture in captions)
    longest = max(len(caption) for of_picture in captions for caption in of_picture)
    words = np.full((len(captions), references, longest), PAD, np.int64)
    for row, of_picture in enumerate(captions):
        for column, caption in enumerate(of_picture):
            words[row, column, : len(caption)] = caption
    return torch.from_numpy(words)


def decoder_inputs(words: Tensor) -> Tensor:
    """The words [B, R, T] that a decoder reads to predict the next words of captions [B, R, T +
    1]: all but the last one, with PAD instead of `<end>`."""
    return words[..., :-1].masked_fill(words[..., :-1] == END, PAD)


class ScoredWords(NamedTuple):
    """The predictions for the N words of captions."""

    mask: Tensor  # [B, R, T] where there is a word to predict
    objective: Tensor  # smoothed cross-entropy, summed; has a gradient
    cross_entropy: Tensor  # [N] of the true word
    correct: Tensor  # [N] whether the true word was the most likely one
    attention: Tensor | None  # [B, R, T, P]


def score_words(
    decoder: Decoder,
    memory: Tensors,
    words: Tensor,
    inputs: Tensor | None = None,
    smoothing: float = 0.0,
) -> ScoredWords:
    """Score the words of captions [B, R, T + 1]. If `inputs` [B, R, T] are given, the decoder
    reads them instead of the captions."""
    targets = words[..., 1:]  # [B, R, T]
    mask = targets != PAD
    unrolled = decoder.unroll(memory, decoder_inputs(words) if inputs is None else inputs)
    # About half of a batch is padding, for which no logits are computed.
    logits = decoder.logits(unrolled.outputs[mask])  # [N, V]
    objective, cross_entropy, correct = _CrossEntropy.apply(logits, targets[mask], smoothing)
    return ScoredWords(mask, objective, cross_entropy, correct, unrolled.attention)


def loss_by_picture(decoder: Decoder, memory: Tensors, words: Tensor) -> Tensor:
    """[B, 3] for captions [B, R, T + 1]: each picture's cross-entropy, words predicted correctly,
    and words."""
    scored = score_words(decoder, memory, words)
    ones = torch.ones_like(scored.cross_entropy)
    each = torch.stack([scored.cross_entropy, scored.correct.float(), ones], 1)  # [N, 3]
    picture = scored.mask.nonzero()[:, 0]  # [N]
    return each.new_zeros(len(words), 3).index_add_(0, picture, each)


def score_padding(decoder: Decoder, memory: Tensors, words: Tensor, length: int) -> Tensor:
    """[3] for captions [B, R, T + 1] that are padded to `length` words: the cross-entropy of all
    padding, padding predicted correctly, padding.

    This is how notebooks count it whose layers are masked and whose loss is not: behind the end of
    a caption the decoder's output stays as it is, and PAD is the word to be predicted.
    """
    mask = words[..., 1:] != PAD  # [B, R, T]
    outputs = decoder.unroll(memory, decoder_inputs(words)).outputs  # [B, R, T, O]
    lengths = mask.sum(2)
    last = (lengths - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, outputs.shape[3])
    is_caption = lengths > 0
    logits = decoder.logits(outputs.gather(2, last).squeeze(2)[is_caption]).float()  # [N, V]
    padding = (length - lengths[is_caption]).clamp(min=0).float()  # [N]
    cross_entropy = -logits.log_softmax(1)[:, PAD]
    is_correct = (logits.argmax(1) == PAD).float()
    return torch.stack(
        [(cross_entropy * padding).sum(), (is_correct * padding).sum(), padding.sum()]
    )


class _CrossEntropy(torch.autograd.Function):
    """From scores [N, V]: the sum of the smoothed cross-entropy, the plain cross-entropy of each
    word [N], and whether each word has the highest score [N].

    It is one fused function, because with separate torch operations, each with its own pass over
    [N, V], it took five times as long on a CPU: about 5% of a training step.
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
