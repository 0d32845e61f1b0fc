"""Recurrent decoders that look at the grid for each word: one cell, walked word by word."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from raycap.decoders.decoder import Decoder, DecoderStep, Tensors, Unrolled
from raycap.vocabulary import PAD


class AttentiveDecoder(Decoder):
    """Words enter (all at once), the cell advances (one word at a time), outputs leave (all at once)."""

    @abstractmethod
    def enter(self, embedded: Tensor) -> Tensor:
        """The words' share of the cell's input [..., G] from their vectors [..., E]."""

    @abstractmethod
    def advance(
        self, entering: Tensor, state: Tensors, memory: Tensors
    ) -> tuple[Tensor, Tensors, Tensor]:
        """One word [B, K, G] further: what leaves the cell [B, K, L], the state, the attention [B, K, P]."""

    def leave(self, leaving: Tensor, embedded: Tensor) -> Tensor:
        """Outputs [..., O] from what left the cell [..., L] and the words' vectors [..., E]."""
        return leaving

    def step(self, words: Tensor, state: Tensors, memory: Tensors) -> DecoderStep:
        embedded = self.embed(words)  # [B, K, E]
        leaving, state, attention = self.advance(self.enter(embedded), state, memory)
        return DecoderStep(self.logits(self.leave(leaving, embedded)), state, attention)

    def unroll(self, memory: Tensors, words: Tensor) -> Unrolled:
        there, back = _longest_first(words)
        words, memory = words[there], {name: part[there[0][:, 0]] for name, part in memory.items()}
        embedded = self.embed(words)  # [B, R, T, E]
        leaving, attention = self._walk(self.enter(embedded), memory, _boxes(words))
        return Unrolled(self.leave(leaving, embedded)[back], attention[back])

    def _walk(
        self, entering: Tensor, memory: Tensors, boxes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The cell over all words [B, R, T, G], each only where a caption still has one."""
        state = self.initial_state(memory, entering.shape[1])
        left, looked = [], []
        for word, (pictures, captions) in zip(entering.unbind(2), boxes, strict=True):
            missing = (0, 0, 0, word.shape[1] - captions, 0, word.shape[0] - pictures)
            state = {name: part[:pictures, :captions] for name, part in state.items()}
            memory = {name: part[:pictures] for name, part in memory.items()}
            leaving, state, attention = self.advance(word[:pictures, :captions], state, memory)
            left.append(functional.pad(leaving, missing))
            looked.append(functional.pad(attention, missing))
        return torch.stack(left, 2), torch.stack(looked, 2)


def _longest_first(words: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Where to look to have the longest captions of [B, R, T] in front, and where to look to have them back."""
    lengths = (words != PAD).sum(-1)  # [B, R]
    captions = torch.argsort(lengths, dim=1, descending=True, stable=True)
    pictures = torch.argsort(lengths.amax(1), descending=True, stable=True)
    there = pictures.unsqueeze(1), captions[pictures]
    return there, (torch.argsort(pictures).unsqueeze(1), torch.argsort(captions, 1))


def _boxes(words: Tensor) -> list[tuple[int, int]]:
    """For each time, how many pictures and how many captions of each hold all that still has a word of [B, R, T].

    A fifth more than the words themselves, where the padded batch is twice as much (Flickr8k, 32 pictures).
    """
    there = words != PAD
    sizes = []
    for present in (there.any(1), there.any(0)):  # [B, T] and [R, T]
        place = torch.arange(1, present.shape[0] + 1, device=words.device).unsqueeze(1)
        sizes.append((present * place).amax(0).clamp(min=1))
    pictures, captions = torch.stack(sizes).tolist()
    return list(zip(pictures, captions, strict=True))
