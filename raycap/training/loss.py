"""The loss: cross-entropy over the words of captions.

Losses are sums, not means. So the losses of the parts of a step add up to the same value, however
the step is divided into parts and among workers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import decoder_inputs, score_words
from raycap.training.options import Objective
from raycap.vocabulary import END, PAD


class CaptionLoss(NamedTuple):
    """The sums of a batch for the loss and for the log."""

    objective: Tensor  # smoothed cross-entropy, to be divided by words; has a gradient
    penalty: Tensor  # of the attention, to be divided by captions; has a gradient too
    counts: Tensor  # float32 [4]: cross-entropy, words predicted correctly, words, captions


def caption_loss(
    decoder: Decoder,
    memory: Tensors,
    words: Tensor,
    options: Objective,
    inputs: Tensor | None = None,
) -> CaptionLoss:
    """The loss of captions [B, R, T + 1]. If `inputs` [B, R, T] are given, the decoder reads them
    instead of the true words."""
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
    """How far the attention [B, R, T, P] over a caption is from a total of 1 at each position,
    summed over captions. `mask` [B, R, T] is True where there is a word."""
    looked = (attention * mask.unsqueeze(3)).sum(2)  # [B, R, P]
    return ((1 - looked) ** 2).mean(2)[mask.any(2)].sum()


@torch.no_grad()
def scheduled_sampling_inputs(
    decoder: Decoder, memory: Tensors, words: Tensor, probability: float
) -> Tensor:
    """Scheduled sampling: decoder inputs [B, R, T] in which each word is replaced, with this
    probability, by a word sampled from the decoder.

    The decoder goes through the captions word by word, because its distribution depends on the
    words before. There is no gradient through sampled words, so the loss is then computed as
    usual.
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
