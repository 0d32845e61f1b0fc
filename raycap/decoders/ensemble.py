"""Several decoders as one: the probability of a word is the mean of theirs.

    decoder = EnsembleDecoder([first, second])
    decoder.step(words, state, memory).logits.softmax(-1)    # the mean of both

All of them read the features of the same encoder, which runs once.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors, Unrolled


class EnsembleDecoder(Decoder):
    """Memories and states hold those of each decoder: `hidden` of the second one is `1.hidden`."""

    def __init__(self, members: Sequence[Decoder]) -> None:
        # It has none of the parts that its members have.
        nn.Module.__init__(self)
        self.members = nn.ModuleList(members)
        self.vocabulary_size = members[0].vocabulary_size
        self.output_width = sum(member.output_width for member in members)

    def prepare(self, grid: Tensor, vector: Tensor) -> Tensors:
        return _joined([member.prepare(grid, vector) for member in self._decoders()])

    def initial_state(self, memory: Tensors, captions: int) -> Tensors:
        members = enumerate(self._decoders())
        return _joined([member.initial_state(_part(memory, n), captions) for n, member in members])

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        return _mean_step(
            [
                member.step(words, _part(state, number), _part(memory, number))
                for number, member in enumerate(self._decoders())
            ]
        )

    def fixed_state(self, memory: Tensors, captions: int, length: int) -> Tensors:
        members = enumerate(self._decoders())
        return _joined(
            [member.fixed_state(_part(memory, n), captions, length) for n, member in members]
        )

    def step_at(
        self, position: Tensor, words: Tensor, state: Tensors, memory: Tensors
    ) -> DecoderStep:
        return _mean_step(
            [
                member.step_at(position, words, _part(state, number), _part(memory, number))
                for number, member in enumerate(self._decoders())
            ]
        )

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        unrolled = [
            member.unroll(_part(memory, number), words)
            for number, member in enumerate(self._decoders())
        ]
        return Unrolled(
            torch.cat([one.outputs for one in unrolled], -1),
            _mean([one.attention for one in unrolled if one.attention is not None]),
        )

    def logits(self, outputs: Tensor) -> Tensor:
        widths = [member.output_width for member in self._decoders()]
        parts = zip(self._decoders(), torch.split(outputs, widths, -1), strict=True)
        return _log_mean([member.logits(part) for member, part in parts])

    def _decoders(self) -> list[Decoder]:
        return [member for member in self.members if isinstance(member, Decoder)]


def _joined(parts: Sequence[Tensors]) -> Tensors:
    return {
        f"{number}.{name}": tensor
        for number, part in enumerate(parts)
        for name, tensor in part.items()
    }


def _part(joined: Tensors, number: int) -> Tensors:
    """Those of one member."""
    prefix = f"{number}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in joined.items()
        if name.startswith(prefix)
    }


def _mean_step(steps: Sequence[DecoderStep]) -> DecoderStep:
    return DecoderStep(
        _log_mean([step.logits for step in steps]),
        _joined([step.state for step in steps]),
        _mean([step.attention for step in steps if step.attention is not None]),
    )


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean probabilities, in float32."""
    each = torch.stack([torch.log_softmax(one, -1, dtype=torch.float32) for one in logits])
    return torch.logsumexp(each, 0) - math.log(len(logits))


def _mean(attentions: Sequence[Tensor]) -> Tensor | None:
    """Of the members that have attention."""
    return torch.stack(list(attentions)).mean(0) if attentions else None
