"""Validation after an epoch: loss and accuracy on the references, and the scores of captions."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raycap.decoders.decoder import Tensors
from raycap.decoders.teacher_forcing import score_padding
from raycap.metrics import METRICS, Corpus
from raycap.training.captions import CaptionWriter
from raycap.training.dataset import CaptionDataset, read_ahead
from raycap.training.distributed import WorkerGroup
from raycap.training.loss import caption_loss
from raycap.training.options import Objective, Validation

USED_METRICS = ("bleu", "rouge_l", "cider_d")
CAPTION_SCORES = tuple(facts.name for name in USED_METRICS for facts in METRICS[name].scores)
HEALTH_SCORES = ("cut_off", "distinct", "vocabulary")
ATTENTION_PICTURES = 12  # pictures whose attention maps are kept for the report


class ValidationResult(NamedTuple):
    """The result of a validation."""

    figures: dict[str, Any]  # for the log
    pictures: list[dict[str, Any]]  # key, caption, CIDEr-D and references of each


class WrittenCaption(NamedTuple):
    """The caption of the picture in this row of the store."""

    row: int
    caption: str


@torch.no_grad()
def validate(
    writer: CaptionWriter, dataset: CaptionDataset, options: Validation, group: WorkerGroup
) -> ValidationResult:
    """Caption and score the validation pictures, each worker its share. All workers return the
    same result."""
    network, device = writer.network, writer.precision.device
    network.eval()
    counts = torch.zeros(4, device=device)
    padding = torch.zeros(3, device=device)
    plain = Objective(label_smoothing=0.0)
    written: list[WrittenCaption] = []
    own_rows = dataset.rows[group.rank :: group.size]
    starts = range(0, len(own_rows), options.batch)
    batches = [own_rows[start : start + options.batch] for start in starts]
    for batch in read_ahead(batches, dataset.batch):
        batch = batch.to(device)
        memory, vectors = writer.read(batch.pictures)
        counts += caption_loss(network.decoder, memory, batch.words, plain).counts
        if options.padded_length:
            padding += score_padding(network.decoder, memory, batch.words, options.padded_length)
        written += write_captions(writer, memory, vectors, batch.rows, dataset)
    network.train()

    cross_entropy, correct, words, _ = group.sum(counts).tolist()
    written = sorted(group.gather(written))
    references = [dataset.store.references(one.row) for one in written]
    corpus = Corpus([one.caption for one in written], references)
    figures_of_captions, cider_d = score_captions(corpus)
    sample_rows = spread(dataset.rows, options.samples)
    figures = {
        "validation_loss": cross_entropy / words,
        "perplexity": float(np.exp(cross_entropy / words)),
        "accuracy": correct / words,
        **figures_of_captions,
        "samples": samples_of(dataset, [one for one in written if one.row in sample_rows]),
    }
    if options.padded_length:
        padding_loss, padding_correct, padded = group.sum(padding).tolist()
        figures["padded_loss"] = (cross_entropy + padding_loss) / (words + padded)
        figures["padded_accuracy"] = (correct + padding_correct) / (words + padded)
    pictures = []
    for one, score, captions in zip(written, cider_d, references, strict=True):
        key = dataset.store.key(one.row)
        pictures.append(
            {"key": key, "caption": one.caption, "cider_d": score, "references": captions}
        )
    return ValidationResult(figures, pictures)


def score_captions(corpus: Corpus) -> tuple[dict[str, Any], list[float]]:
    """The scores of captions for the log, and the CIDEr-D of each."""
    scores = {
        score.name: score
        for name in (*USED_METRICS, "health")
        for score in METRICS[name]().compute(corpus)
    }
    figures: dict[str, Any] = {
        name: scores[name].value for name in (*CAPTION_SCORES, *HEALTH_SCORES)
    }
    figures["vocabulary"] = round(scores["vocabulary"].value)
    return figures, scores["cider_d"].per_picture.tolist()


def write_captions(
    writer: CaptionWriter,
    memory: Tensors,
    vectors: Tensor,
    rows: np.ndarray,
    dataset: CaptionDataset,
) -> list[WrittenCaption]:
    """Captions of the pictures in these rows, which the decoder has read."""
    keys = [dataset.store.key(row) for row in rows]
    texts = writer.texts(memory, vectors, keys)
    return [WrittenCaption(int(row), text) for row, text in zip(rows, texts, strict=True)]


@torch.no_grad()
def write_samples(
    writer: CaptionWriter, dataset: CaptionDataset, options: Validation
) -> list[dict[str, str]]:
    """Captions of a few pictures, for samples in the middle of an epoch."""
    writer.network.eval()
    rows = spread(dataset.rows, options.samples)
    batch = dataset.batch(rows).to(writer.precision.device)
    written = write_captions(writer, *writer.read(batch.pictures), rows, dataset)
    writer.network.train()
    return samples_of(dataset, written)


@torch.no_grad()
def attention_maps(writer: CaptionWriter, dataset: CaptionDataset) -> list[dict[str, Any]]:
    """For a few pictures, the words of the caption and the attention [T][P] for each word."""
    rows = spread(dataset.rows, ATTENTION_PICTURES)
    batch = dataset.batch(rows).to(writer.precision.device)
    keys = [dataset.store.key(row) for row in rows]
    writer.network.eval()
    memory, vectors = writer.read(batch.pictures)
    found = [captions for captions, _ in writer.find(memory, vectors, keys, attention=True)]
    writer.network.train()
    maps = []
    for row, hypotheses in zip(batch.rows, found, strict=True):
        attention = hypotheses[0].attention if hypotheses else None  # [T, P] of the best
        if attention is None:
            continue
        words = [dataset.vocabulary.words[word] for word in hypotheses[0].words]
        shares = [[round(share, 4) for share in of_word] for of_word in attention.tolist()]
        maps.append({"key": dataset.store.key(row), "words": words, "attention": shares})
    return maps


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows at equal distances, always the same."""
    chosen: np.ndarray = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return chosen


def samples_of(dataset: CaptionDataset, written: list[WrittenCaption]) -> list[dict[str, str]]:
    """Captions for the log, each with its key and one reference."""
    return [
        {
            "key": dataset.store.key(one.row),
            "caption": one.caption,
            "reference": dataset.store.references(one.row)[0],
        }
        for one in written
    ]
