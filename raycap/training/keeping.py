"""The captioner that a run keeps, and captioners that a run starts from."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from raycap.captioner import folder
from raycap.refusal import Refusal
from raycap.training import Train
from raycap.training.batches import Lesson
from raycap.training.learner import under
from raycap.training.material import Material
from raycap.training.network import Network

CAPTIONER = "captioner"
SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "validation_loss", "accuracy")


def keep(out: Path, material: Material, network: Network, facts: dict[str, Any]) -> None:
    """Write the captioner folder; an encoder that was trained is in it."""
    folder.save(
        out / CAPTIONER,
        material.plan,
        material.vocabulary,
        network.encoder or material.encoder,
        network.decoder,
        facts,
        include_encoder=False,
        half=False,
    )


def start_from(network: Network, captioner: str) -> None:
    """Take the weights of a captioner folder."""
    tensors = folder.state_of(captioner)
    try:
        network.decoder.load_state_dict(under("decoder.", tensors))
        encoder = under("encoder.", tensors)
        if network.encoder is not None and encoder:
            network.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise Refusal(f"cannot start from the weights of {captioner}: {error}") from error


def facts_of(options: Train, train: Lesson, dev: Lesson, line: dict[str, Any]) -> dict[str, Any]:
    """What the model card says; `line` is the journal's of the epoch that is kept."""
    captions = pc.sum(pc.list_value_length(train.store.captions["references"].take(train.places))).as_py()
    splits = ", ".join(options.training_splits)
    return {
        "data": {
            "name": options.data_name or "not recorded",
            "learned from": f"{len(train):,} pictures, {captions:,} captions ({splits})",
            "judged by": f"{len(dev):,} pictures ({options.validation_split})",
        },
        "licence": options.data_licence or "of the data: not recorded",
        "training": {
            "phase": line["phase"].replace("_", "-"),
            "epoch": line["epoch"],
            "steps": line["step"],
            "pictures in a step": options.batch,
            "learning rate": options.lr,
            "seed": options.seed,
            "chosen by": options.validation.best_by,
            # What that had learned from, and under which terms, holds for this one too.
            **({"started from": options.start_from} if options.start_from else {}),
        },
        "scores": {f"{name} on {options.validation_split}": round(line[name], 4) for name in SCORES},
    }
