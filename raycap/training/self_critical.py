"""Self-critical training: draw captions, reward them by the metric, push up those that beat their like."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.metrics import CiderReward
from raycap.search import Sample
from raycap.training import SelfCritical
from raycap.training.batches import Lesson
from raycap.training.bleu_reward import BleuReward
from raycap.training.objective import before
from raycap.vocabulary import PAD, START, UNK


class Critic:
    """Rewards of drawn captions by the references of the training pictures, `<end>` counted everywhere: without it
    a captioner learns to stop in mid-sentence."""

    def __init__(self, lesson: Lesson, options: SelfCritical) -> None:
        self.options = options
        self._places = np.sort(lesson.places)
        references = [lesson.captions(place) for place in self._places]
        self._cider = CiderReward(references)
        self._bleu = BleuReward(references) if options.bleu_4 else None

    def rewards(self, captions: np.ndarray, places: np.ndarray) -> np.ndarray:
        """[B, K] of captions [B, K, T], of the pictures at `places` [B] in the store."""
        pictures = np.repeat(np.searchsorted(self._places, places), captions.shape[1])
        flat = captions.reshape(-1, captions.shape[2])
        rewards = self._cider(flat, pictures)
        if self._bleu is not None:
            share = self.options.bleu_4
            rewards = (1 - share) * rewards + share * 10 * self._bleu(flat, pictures)
        return rewards.reshape(captions.shape[:2])

    def draw(self, decoder: Decoder, memory: Tensors, seeds: Sequence[int]) -> Tensor:
        """Captions [B, K, T] with their `<end>`, then PAD."""
        own = self.options
        search = Sample(samples=own.samples, max_length=own.max_length, temperature=own.temperature)
        words = search.search(decoder, memory, seeds=seeds).words
        return words[..., : int((words != PAD).any(0).any(0).sum())]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """How much better each of [B, K] is than the mean of the picture's others."""
    others: np.ndarray = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    better: np.ndarray = rewards - others
    return better


def likelihood(decoder: Decoder, memory: Tensors, drawn: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The log-probability of each drawn word [N] of captions [B, K, T] under the search that drew it, and a mask
    [B, K, T] of where they stand."""
    started = torch.cat([torch.full_like(drawn[..., :1], START), drawn], 2)
    true = drawn != PAD
    scores = decoder.scores(decoder.unroll(memory, before(started)).outputs[true]).float() / temperature  # [N, V]
    # What the search never says takes no part, or its gradient would push at words that cannot be drawn.
    scores = scores.index_fill(1, torch.tensor([PAD, START, UNK], device=scores.device), -torch.inf)
    return torch.log_softmax(scores, 1).gather(1, drawn[true].unsqueeze(1)).squeeze(1), true
