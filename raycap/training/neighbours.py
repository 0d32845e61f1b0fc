"""The end of a training run: the captioner remembers the training photos and their captions."""

from pathlib import Path

import numpy as np
import torch

from raycap.captioners.trained.folder import add_neighbours
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.device import Precision
from raycap.training.dataset import CaptionDataset, read_ahead
from raycap.training.network import Network, load_weights
from raycap.training.validation import spread

BATCH = 256
MOST_CALIBRATED = 5_000  # validation pictures that say which distances are usual


def remember_photos(
    captioner: Path,
    network: Network,
    training: CaptionDataset,
    validation: CaptionDataset,
    most: int,
    precision: Precision,
) -> None:
    """Write neighbours.safetensors into the captioner folder. Of more than `most` photos, some at
    equal distances are remembered.

    The network gets the weights of the folder, the best ones: its encoder may have been trained.
    """
    load_weights(network, str(captioner))
    network.eval()
    rows = spread(training.rows, most)
    captions = [[words[1:-1] for words in training.captions(row)] for row in rows]
    neighbours = build_neighbours(_vectors(network, training, rows, precision), captions)
    usual = spread(validation.rows, MOST_CALIBRATED)
    calibrated = neighbours.calibrated(_vectors(network, validation, usual, precision))
    add_neighbours(captioner, calibrated)


@torch.no_grad()
def _vectors(
    network: Network, dataset: CaptionDataset, rows: np.ndarray, precision: Precision
) -> np.ndarray:
    """The vectors [N, D] of pictures whose features or pixels are in the store."""
    store, found = dataset.store, []
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    for batch in read_ahead(batches, lambda batch: store.rows[batch]):
        if network.encoder is not None:
            pictures = torch.from_numpy(batch).to(precision.device)
            with precision.autocast():
                _, vectors = network.features(pictures)
            found.append(vectors.float().cpu().numpy())
        else:
            found.append(batch[:, -1].astype(np.float32))
    return np.concatenate(found)
