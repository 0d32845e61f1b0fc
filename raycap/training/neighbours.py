"""The end of a training run: the captioner remembers the training photos and their captions."""

import numpy as np
import torch

from raycap.captioners.trained.folder import add_neighbours
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.device import Precision
from raycap.training.data import TrainingData
from raycap.training.dataset import CaptionDataset
from raycap.training.network import Network, load_weights

MOST_CALIBRATED = 5_000  # validation pictures that say which distances are usual


def remember_photos(
    captioner: str,
    network: Network,
    training: TrainingData,
    validation: CaptionDataset,
    most: int,
    precision: Precision,
) -> None:
    """Write neighbours.safetensors into the captioner folder. Of more than `most` photos, some at
    equal distances are remembered.

    The network gets the weights of the folder, the best ones: its encoder may have been trained.
    """
    load_weights(network, captioner)
    network.eval()
    whole = network.encoder is not None
    vectors, captions = [], []
    for sample in training.sample(most, whole):
        vectors.append(_vectors(network, sample.pictures, precision))
        captions += [[words[1:-1] for words in of_picture] for of_picture in sample.captions]
    neighbours = build_neighbours(np.concatenate(vectors), captions)
    usual = [
        _vectors(network, sample.pictures, precision)
        for sample in validation.sample(MOST_CALIBRATED, whole)
    ]
    add_neighbours(captioner, neighbours.calibrated(np.concatenate(usual)))


@torch.no_grad()
def _vectors(network: Network, rows: np.ndarray, precision: Precision) -> np.ndarray:
    """The vectors [B, D] of pictures, of which these are the vectors, or what the network reads if
    it has an encoder."""
    if network.encoder is None:
        return rows.astype(np.float32)
    pictures = torch.from_numpy(rows).to(precision.device)
    with precision.autocast():
        _, vectors = network.features(pictures)
    found: np.ndarray = vectors.float().cpu().numpy()
    return found
