"""Validation after an epoch: loss and accuracy on the references, and the scores of captions that
the captioner writes as it does in `raycap caption`."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raycap.device import Precision
from raycap.metrics import Corpus
from raycap.training.distributed import WorkerGroup
from raycap.training.fine_tuning.adapter import AdaptedModel
from raycap.training.fine_tuning.pictures import FittedPictures
from raycap.training.fine_tuning.step import word_loss
from raycap.training.options import Validation
from raycap.training.step import COUNTED
from raycap.training.validation import ValidationResult, score_captions, spread

log = logging.getLogger(__name__)


class Written(NamedTuple):
    """What was written for the picture in this row."""

    row: int
    caption: str
    error: str


@torch.no_grad()
def validate_captioner(
    model: AdaptedModel,
    store: FittedPictures,
    rows: NDArray[np.int64],
    options: Validation,
    precision: Precision,
    group: WorkerGroup,
) -> ValidationResult:
    """Caption and score the pictures in these rows, each worker its share. All workers return the
    same result. The loss is that of the first reference of each picture."""
    counts = torch.zeros(len(COUNTED), device=precision.device)
    written: list[Written] = []
    own_rows = rows[group.rank :: group.size]
    for start in range(0, len(own_rows), options.batch):
        batch = own_rows[start : start + options.batch].tolist()
        pictures = [store.pixels(row) for row in batch]
        tokens = [model.given_words.tokens(store.references(row)[0]) for row in batch]
        for places in model.given_words.together(pictures):
            with precision.autocast():
                scored = model.given_words(
                    [pictures[place] for place in places], [tokens[place] for place in places]
                )
            counts += word_loss(scored, 0.0)[1]
        written += write_captions(model, store, batch, pictures)

    cross_entropy, correct, words, _, _ = group.sum(counts).tolist()
    written = sorted(group.gather(written))
    failed = [each for each in written if each.error]
    if failed and group.leads:
        log.warning(
            "%d of %d validation pictures have no caption; the first: %s",
            len(failed),
            len(written),
            failed[0].error,
        )
    references = [store.references(each.row) for each in written]
    figures, cider_d = score_captions(Corpus([each.caption for each in written], references))
    shown = set(spread(rows, options.samples).tolist())
    pictures_of_log = [
        {
            "key": store.key(each.row),
            "caption": each.caption,
            "cider_d": score,
            "references": captions,
        }
        for each, score, captions in zip(written, cider_d, references, strict=True)
    ]
    samples = [
        {"key": store.key(each.row), "caption": each.caption, "reference": captions[0]}
        for each, captions in zip(written, references, strict=True)
        if each.row in shown
    ]
    figures_of_words: dict[str, Any] = {
        "validation_loss": cross_entropy / words,
        "perplexity": float(np.exp(cross_entropy / words)),
        "accuracy": correct / words,
    }
    return ValidationResult({**figures_of_words, **figures, "samples": samples}, pictures_of_log)


def write_captions(
    model: AdaptedModel,
    store: FittedPictures,
    rows: Sequence[int],
    pictures: Sequence[NDArray[np.uint8]],
) -> list[Written]:
    """The captions of these pictures, by the code of `raycap caption`."""
    about = [
        {"sha256": store.sha256(row), "width": picture.shape[1], "height": picture.shape[0]}
        for row, picture in zip(rows, pictures, strict=True)
    ]
    predictions = model.captioner.predict(pictures, about)
    return [
        Written(row, each.caption, each.error) for row, each in zip(rows, predictions, strict=True)
    ]
