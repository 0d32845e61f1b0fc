"""The loss: cross-entropy over the words of captions.

Losses are sums, not means: the parts of a step, which are computed one after the other or on
several workers, then add up to the same loss however the step is divided.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import decoder_inputs, score_words
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
    scored = score_words(decoder, memory, words, inputs, options.label_smoothing)
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
    state = decoder.initial_state(memory, inputs.shape[1])
    for position in range(inputs.shape[2] - 1):
        step = decoder.step(inputs[..., position], state, memory)
        state = step.state
        probabilities = torch.softmax(step.logits, -1, dtype=torch.float32).flatten(0, 1)
        sampled = torch.multinomial(probabilities, 1).view(inputs.shape[:2])  # [B, R]
        following = inputs[..., position + 1]
        replace = torch.rand(sampled.shape, device=sampled.device) < probability
        replace &= following != PAD
        # PAD would end the caption for the decoder, which packs captions by their length.
        replace &= (sampled != PAD) & (sampled != END)
        inputs[..., position + 1] = torch.where(replace, sampled, following)
    return inputs
