"""The training photos that a captioner remembers, and what it is not sure of.

With a frozen encoder they are known before the first step, so that validation captions as the
finished captioner does. With a trained one they are encoded at the end, with the best weights.
"""

import dataclasses

import numpy as np
import torch

from raycap.captioners.trained.doubt import Doubt, fit_doubt, signs_of
from raycap.captioners.trained.folder import add_neighbours
from raycap.captioners.trained.neighbours import (
    Neighbours,
    build_neighbours,
    from_file,
    to_file,
)
from raycap.device import Precision
from raycap.metrics import METRICS, Corpus
from raycap.search import Beam, SearchChoice
from raycap.storage import RunFolder
from raycap.training.captions import CaptionWriter
from raycap.training.data import TrainingData
from raycap.training.dataset import CaptionDataset, read_ahead
from raycap.training.distributed import WorkerGroup
from raycap.training.network import Network, load_weights

REMEMBERED = "remembered"  # in the run's folder, until the run ends
MOST_CALIBRATED = 5_000  # validation pictures that say what is usual
FEWEST_CALIBRATED = 40  # captions that tell wrong ones from right ones
WRONG = 0.25  # of the validation captions, those with the lowest CIDEr-D
NOT_SURE_OF = 0.1  # of the validation captions
# Where the run's own search asks no neighbours: that of the captioner that ships. Another search
# that does may be chosen for captioning.
CONSENSUS, FUSION = 4.0, 3.0


def photos_for_run(
    out: RunFolder,
    network: Network,
    training: TrainingData,
    validation: CaptionDataset,
    most: int,
    precision: Precision,
    group: WorkerGroup,
) -> Neighbours:
    """The training photos, for all workers. The leader collects them, unless the run has done so
    before it was interrupted."""
    name = f"{REMEMBERED}/{most}.safetensors"
    if group.leads and not out.exists(name):
        found = collect_photos(network, training, validation, most, precision)
        out.write(name, to_file(found))
    group.wait()
    content = out.read(name)
    assert content is not None
    return from_file(content, None, len(training.vocabulary), name)


def collect_photos(
    network: Network,
    training: TrainingData,
    validation: CaptionDataset,
    most: int,
    precision: Precision,
) -> Neighbours:
    """The training photos as the network sees them. Of more than `most`, some at equal distances
    are remembered."""
    was_training = network.training
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
    network.train(was_training)
    return neighbours.calibrated(np.concatenate(usual))


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


def complete_captioner(
    captioner: str,
    writer: CaptionWriter,
    training: TrainingData,
    validation: CaptionDataset,
    most: int,
    batch: int,
) -> None:
    """Give the captioner folder the photos, and what it is not sure of.

    The network gets the weights of the folder, the best ones: its encoder may have been trained.
    """
    network, precision = writer.network, writer.precision
    load_weights(network, captioner)
    network.eval()
    neighbours = writer.neighbours or collect_photos(
        network, training, validation, most, precision
    )
    search = search_with_doubt(writer.search)
    if search is not None:
        own = dataclasses.replace(writer, search=search, neighbours=neighbours)
        doubt = find_doubt(own, neighbours, validation, batch)
        neighbours = dataclasses.replace(neighbours, doubt=doubt)
    add_neighbours(captioner, neighbours)


def search_with_doubt(search: SearchChoice) -> Beam | None:
    """The search whose captions are judged: the run's own, with consensus. None where the kind of
    search has no consensus."""
    if not isinstance(search, Beam):
        return None
    if search.consensus:
        return search
    return dataclasses.replace(search, consensus=CONSENSUS, fusion=FUSION)


@torch.no_grad()
def find_doubt(
    writer: CaptionWriter, neighbours: Neighbours, validation: CaptionDataset, batch: int
) -> Doubt | None:
    """How likely a caption is wrong, from the captions of validation pictures; None if there are
    too few."""
    count = min(MOST_CALIBRATED, len(validation))
    rows = validation.rows[np.linspace(0, len(validation) - 1, count).astype(int)]
    batches = [rows[start : start + batch] for start in range(0, count, batch)]
    captions, references, signs = [], [], []
    for each in read_ahead(batches, validation.batch):
        each = each.to(writer.precision.device)
        memory, vectors = writer.read(each.pictures)
        keys = [validation.store.key(row) for row in each.rows]
        familiar = neighbours.familiar(vectors.float().cpu().numpy())
        found = writer.find(memory, vectors, keys)
        for row, share, (hypotheses, columns) in zip(each.rows, familiar, found, strict=True):
            if hypotheses:
                best = hypotheses[0]
                captions.append(writer.vocabulary.decode(best.words))
                references.append(validation.store.references(row))
                score = best.log_probability / max(len(best.words) + best.finished, 1)
                signs.append((score, share, columns["agreement"]))
    if len(captions) < FEWEST_CALIBRATED:
        return None
    [cider] = METRICS["cider_d"]().compute(Corpus(captions, references))
    is_wrong = cider.per_picture <= np.quantile(cider.per_picture, WRONG)
    return fit_doubt(signs_of(*np.array(signs).T), is_wrong, NOT_SURE_OF)
