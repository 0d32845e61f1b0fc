"""Self-critical training: sample captions, score them with the metric, and raise the probability
of those that are better than the other samples of the same picture."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import decoder_inputs
from raycap.metrics import CiderReward, DocumentFrequencies
from raycap.metrics.ngrams import Captions, Ints, ReferenceGrams
from raycap.search import Sample
from raycap.storage import RunFolder, whole_path
from raycap.training.checkpoint import local_file
from raycap.training.data import TrainingData
from raycap.training.options import SelfCritical
from raycap.vocabulary import END, PAD, START, UNK

FREQUENCIES = "frequencies.bin"  # in the run's folder
LONGEST_NGRAM = 4


class CaptionReward:
    """The rewards of sampled captions, computed with the references of their pictures and the
    document frequencies of the training data.

    `<end>` counts as a word. Otherwise a captioner learns to stop in mid-sentence.
    """

    def __init__(self, frequencies: DocumentFrequencies, options: SelfCritical) -> None:
        self._cider = CiderReward(frequencies)
        self._bleu_weight = options.bleu_4

    def __call__(self, captions: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Rewards [B, K] of captions [B, K, T] of pictures with the references `words`
        [B, R, T + 1]."""
        references = [
            [[token for token in one if token != PAD] for one in of_picture if one[0] != PAD]
            for of_picture in words.tolist()
        ]
        pictures = np.repeat(np.arange(len(captions)), captions.shape[1])
        flat = captions.reshape(-1, captions.shape[2])
        rewards = self._cider(flat, references, pictures)
        if self._bleu_weight:
            bleu = 10 * BleuReward(references)(flat, pictures)
            rewards = (1 - self._bleu_weight) * rewards + self._bleu_weight * bleu
        return rewards.reshape(captions.shape[:2])


def document_frequencies(folder: RunFolder, training: TrainingData) -> DocumentFrequencies:
    """The document frequencies of the training captions, from the run's folder. If they are not
    there, they are counted and written."""
    if not folder.exists(FREQUENCIES):
        counted = count_frequencies(training)
        if folder.is_local:
            with whole_path(Path(folder.path(FREQUENCIES))) as part:
                counted.write(part)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                counted.write(Path(scratch) / FREQUENCIES)
                folder.put(FREQUENCIES, f"{scratch}/{FREQUENCIES}")
    with local_file(folder, FREQUENCIES) as file:
        return DocumentFrequencies.open(file)


def count_frequencies(training: TrainingData) -> DocumentFrequencies:
    """The document frequencies of the training captions."""
    encode = training.vocabulary.encode
    encoded = ([encode(one) for one in own] for own in training.references())
    return DocumentFrequencies.counted(encoded)


def draw_captions(
    decoder: Decoder, memory: Tensors, options: SelfCritical, seeds: Sequence[int]
) -> Tensor:
    """Sample captions [B, K, T], with their `<end>`, then PAD. `seeds` has one for each
    picture."""
    search = Sample(
        samples=options.samples, max_length=options.max_length, temperature=options.temperature
    )
    words = search.search(decoder, memory, seeds=seeds).words
    return words[..., : int((words != PAD).any(0).any(0).sum())]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """The difference between each reward [B, K] and the mean of the picture's other rewards."""
    others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    difference: np.ndarray = rewards - others
    return difference


def log_likelihood(
    decoder: Decoder, memory: Tensors, drawn: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The log-probability [N] of each word of the sampled captions [B, K, T], at the temperature
    of sampling, and the mask [B, K, T] of these words."""
    started = torch.cat([torch.full_like(drawn[..., :1], START), drawn], 2)
    mask = drawn != PAD
    outputs = decoder.unroll(memory, decoder_inputs(started)).outputs[mask]
    scores = decoder.logits(outputs).float() / temperature  # [N, V]
    # Words that are never sampled are excluded, so that they get no gradient.
    scores = scores.index_fill(
        1, torch.tensor([PAD, START, UNK], device=scores.device), -torch.inf
    )
    chosen = torch.log_softmax(scores, 1).gather(1, drawn[mask].unsqueeze(1)).squeeze(1)
    return chosen, mask


class BleuReward:
    """BLEU-4 of single captions, on token numbers.

    For n-grams with n above 1, 1 is added to both counts (BLEU+1, Lin and Och 2004). Otherwise
    nearly every single caption would have a score of 0.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        """`references`: the captions of each picture as token numbers. `<start>` is ignored,
        `<end>` counts as a token."""
        counted = [
            [[token for token in caption if token not in (PAD, START)] for caption in of_picture]
            for of_picture in references
        ]
        self._grams = ReferenceGrams(counted)
        # The lengths of each picture's references.
        self._lengths = [np.array([len(one) for one in of_picture]) for of_picture in counted]

    def __call__(
        self, captions: npt.NDArray[np.integer], pictures: Ints
    ) -> npt.NDArray[np.float32]:
        """The rewards [B] of `captions` [B, T], whose pictures are `pictures` [B]."""
        ended = np.cumsum(captions == END, axis=1) - (captions == END)  # 0 up to the first <end>
        counts = (ended == 0) & (captions != PAD) & (captions != START)
        flat = Captions(captions[counts].astype(np.int64), np.nonzero(counts)[0], len(captions))
        total = np.zeros(flat.count)
        for n, ours in enumerate(self._grams.look_up(flat), start=1):
            rows, theirs = self._grams.matches(n, ours, pictures)
            most = np.zeros(len(ours.count), np.int64)  # the most often in one reference
            np.maximum.at(most, rows, self._grams.grams[n - 1].count[theirs])
            found = np.bincount(ours.caption, np.minimum(ours.count, most), flat.count)
            written = np.maximum(flat.lengths - n + 1, 0)
            extra = 0 if n == 1 else 1
            precision = (found + extra) / np.maximum(written + extra, 1)
            total += np.log(np.maximum(precision, 1e-9))
        nearest = np.array(
            [self._nearest_length(*pair) for pair in zip(pictures, flat.lengths, strict=True)]
        )
        brevity = np.minimum(0, 1 - nearest / np.maximum(flat.lengths, 1e-9))
        return np.exp(total / LONGEST_NGRAM + brevity).astype(np.float32)

    def _nearest_length(self, picture: int, length: int) -> int:
        """The length of the reference that is closest in length; the shorter one of two."""
        lengths = np.sort(self._lengths[picture])
        return int(lengths[np.abs(lengths - length).argmin()])
