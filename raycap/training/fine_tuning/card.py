"""The model card of a captioner that was fine-tuned: the README of its folder."""

from collections.abc import Mapping
from typing import Any

from raycap.captioners.trained.card import SECTIONS, USE
from raycap.training.fine_tuning.setup import FineTuningSetup
from raycap.training.validation import CAPTION_SCORES, HEALTH_SCORES


def card_of(setup: FineTuningSetup, line: Mapping[str, Any], learned: str, judged: int) -> str:
    """Markdown. `line` is the log line of the epoch that was kept, `learned` says from what it
    learned, `judged` by how many pictures it was validated."""
    options, captioner = setup.options, setup.captioner
    base = captioner.model
    where = f"commit {captioner.revision}" if captioner.revision else "a folder"
    if captioner.digest:
        where = f"a folder; SHA-256 of its files {captioner.digest}"
    splits, split = ", ".join(options.training_splits), options.validation_split
    lora = options.lora
    sections: dict[str, Mapping[str, Any] | str] = {
        "data": {
            "name": options.data_name or "not recorded",
            "learned from": f"{learned} ({splits})",
            "judged by": f"{judged:,} pictures ({split})",
        },
        "licence": {
            "of the data": options.data_licence or "not recorded",
            "of the base model": f"see {base}: it applies to this captioner too",
        },
        "training": {
            "epoch": line["epoch"],
            "steps": line["step"],
            "pictures in a step": options.batch,
            "learning rate": options.lr,
            "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}",
            "seed": options.seed,
            "chosen by": options.validation.best_by,
        },
        "scores": {
            f"{name} on {split}": round(line[name], 4)
            for name in (*CAPTION_SCORES, *HEALTH_SCORES, "validation_loss", "accuracy")
        },
    }
    text = [
        "# A captioner fine-tuned by raycap",
        "",
        f"- base model: {base} ({captioner.family}), {where}; its weights are not in this folder",
        f"- prompt: {captioner.prompt!r}, asked as {captioner.dialect!r}",
        "",
        USE,
    ]
    for name, title in SECTIONS.items():
        section = sections.get(name, "not recorded")
        said = (
            [f"- {fact}: {value}" for fact, value in section.items()]
            if isinstance(section, Mapping)
            else [section]
        )
        text += [f"## {title}", "", *said, ""]
    return "\n".join(text)
