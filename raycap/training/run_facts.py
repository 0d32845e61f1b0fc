"""The facts of a training run, which its log holds from the start: device, data, words, parameters
and steps."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from raycap.device import Precision
from raycap.training.data import TrainingData
from raycap.training.dataset import CaptionDataset
from raycap.training.network import Network
from raycap.training.setup import TrainingSetup


def data_facts(
    setup: TrainingSetup, training: TrainingData, validation: CaptionDataset
) -> dict[str, Any]:
    """Pictures and captions of each side, and what the vocabulary knows of the words."""
    coverage, options = setup.coverage, setup.options
    sides = {
        ", ".join(options.training_splits): training,
        options.validation_split: validation,
    }
    return {
        "pictures": {split: len(dataset) for split, dataset in sides.items()},
        "captions": {split: dataset.count_captions() for split, dataset in sides.items()},
        "vocabulary": len(setup.vocabulary),
        "words_cut": None if coverage is None else coverage.cut,
        "unknown_words": None if coverage is None else coverage.unknown,
    }


def network_facts(
    setup: TrainingSetup, network: Network, precision: Precision, workers: int
) -> dict[str, Any]:
    """Where and what is trained."""
    frozen = sum(part.numel() for part in network.parameters() if not part.requires_grad)
    if network.encoder is None:  # its features were made before
        frozen += parameter_count(setup.encoder)
    trained = sum(part.numel() for part in network.parameters() if part.requires_grad)
    return {
        "device": str(precision.device),
        "precision": precision.name,
        "reason": precision.reason,
        "workers": workers,
        "parameters_trained": trained,
        "parameters_frozen": frozen,
    }


def parameter_count(network: nn.Module) -> int:
    return sum(part.numel() for part in network.parameters())


def facts_as_text(facts: Mapping[str, Any]) -> list[str]:
    """The facts for people, in lines."""
    data = [
        f"{split}: {count:,} pictures, {facts['captions'][split]:,} captions"
        for split, count in facts["pictures"].items()
    ]
    if "model" in facts:  # it is fine-tuned
        of_words = f"model: {facts['model']} ({facts['family']}), asked {facts['prompt']!r}"
    else:
        of_words = f"vocabulary: {facts['vocabulary']:,} words"
        if facts["words_cut"] is not None:
            of_words += (
                f", {facts['words_cut']:,} rare ones cut (they occur {facts['unknown_words']:,} "
                "times)"
            )
    many = f"{facts['workers']} workers, each on " if facts["workers"] > 1 else ""
    return [
        f"device: {many}{facts['device']} in {facts['precision']} ({facts['reason']})",
        *data,
        of_words,
        f"parameters: {facts['parameters_trained']:,} trained, "
        f"{facts['parameters_frozen']:,} frozen",
        f"steps: {facts['steps_per_epoch']:,} per epoch, {facts['steps']:,} in all",
    ]
