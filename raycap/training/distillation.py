"""Distillation: learning from another captioner, the teacher, which words are how likely, besides
the true words.

    teacher = read_teacher(options.distillation, device)
    distilled_loss(decoder, features, words, objective, teacher)
"""

import torch
from torch import Tensor

from raycap.captioners.trained import CaptionerPlan
from raycap.captioners.trained.checks import read_config
from raycap.captioners.trained.folder import decoder_of, digest_of, plan_of, words_of
from raycap.decoders.decoder import Decoder
from raycap.decoders.teacher_forcing import decoder_inputs
from raycap.encoders import ENCODERS
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.options import to_plain
from raycap.shipped import place_of
from raycap.training.loss import CaptionLoss, attention_penalty
from raycap.training.options import Distillation, Objective
from raycap.vocabulary import PAD, Vocabulary

# Options of encoders that do not tell one from another: their weights have a digest.
OF_WEIGHTS = ("weights", "trainable")


class Teacher:
    """The decoder of a captioner folder. It reads the features of the run's own encoder."""

    def __init__(self, decoder: Decoder, options: Distillation) -> None:
        self.decoder, self.options = decoder.eval().requires_grad_(False), options

    @torch.no_grad()
    def probabilities(
        self, features: tuple[Tensor, Tensor], inputs: Tensor, mask: Tensor
    ) -> Tensor:
        """[N, V] for the N words where `mask` [B, R, T] is True, after reading `inputs`."""
        memory = self.decoder.prepare(*features)
        logits = self.decoder.logits(self.decoder.unroll(memory, inputs).outputs[mask])
        return torch.softmax(logits.float() / self.options.temperature, 1)


def read_teacher(options: Distillation, device: torch.device) -> Teacher:
    """The teacher of a run."""
    return Teacher(decoder_of(options.teacher).to(device), options)


def check_teacher(
    options: Distillation, plan: CaptionerPlan, encoder: Encoder, vocabulary: Vocabulary
) -> None:
    """Raise UserError if the teacher has another encoder or other words than the run."""
    if words_of(options.teacher).to_json() != vocabulary.to_json():
        raise UserError(
            f"{options.teacher} knows other words than this run: leave out train.start_from, so "
            "that the run gets the words of its teacher, or choose another teacher"
        )
    place = place_of(options.teacher)
    ours, theirs = (
        {name: value for name, value in to_plain(one, ENCODERS).items() if name not in OF_WEIGHTS}
        for one in (plan.encoder, plan_of(place).encoder)
    )
    if ours != theirs or read_config(place)["encoder_sha256"] != digest_of(encoder):
        raise UserError(
            f"{options.teacher} has another encoder than this run, or other weights of it: give "
            "the same encoder and weights, or choose another teacher"
        )


def distilled_loss(
    decoder: Decoder,
    features: tuple[Tensor, Tensor],
    words: Tensor,
    objective: Objective,
    teacher: Teacher,
    inputs: Tensor | None = None,
) -> CaptionLoss:
    """As `caption_loss`, with a share of the loss for the teacher's probabilities."""
    weight, temperature = teacher.options.weight, teacher.options.temperature
    smoothing = objective.label_smoothing
    targets = words[..., 1:]  # [B, R, T]
    mask = targets != PAD
    inputs = decoder_inputs(words) if inputs is None else inputs
    unrolled = decoder.unroll(decoder.prepare(*features), inputs)
    logits = decoder.logits(unrolled.outputs[mask]).float()  # [N, V]
    log_probabilities = torch.log_softmax(logits, 1)
    own = log_probabilities.gather(1, targets[mask].unsqueeze(1)).squeeze(1)  # [N]
    true = (smoothing - 1) * own - smoothing * log_probabilities.mean(1)
    theirs = teacher.probabilities(features, inputs, mask)
    softened = torch.log_softmax(logits / temperature, 1)
    # The gradients of softened distributions are smaller by the square of the temperature.
    learned = -(theirs * softened).sum(1) * temperature**2
    total = ((1 - weight) * true + weight * learned).sum()
    penalty = total.new_zeros(())
    if objective.attention_penalty and unrolled.attention is not None:
        penalty = objective.attention_penalty * attention_penalty(unrolled.attention, mask)
    is_right = own >= log_probabilities.amax(1)
    counts = [-own.detach().sum(), is_right.sum(), mask.sum(), mask.any(2).sum()]
    return CaptionLoss(total, penalty, torch.stack([count.float() for count in counts]))
