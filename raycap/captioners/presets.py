"""Short names for models of the Hugging Face hub, with what each needs.

    raycap caption photos/ --model smolvlm --out captions/

A hub name that is not in this table works too.
"""

from dataclasses import dataclass
from typing import Literal

Dialect = Literal["chat", "prefix", "task"]
"""How a model is asked: in a chat with a picture, with the beginning of a caption, or with the
name of a task."""


@dataclass(frozen=True)
class Preset:
    """One model of the hub, as `--model NAME` takes it."""

    model: str
    """Its name on the hub."""
    dialect: Dialect
    prompt: str
    """What it is asked, where --captioner.prompt does not say; "" for nothing."""
    parameters: str
    gigabytes: float
    """Memory of its weights in bf16 or fp16, about. Work needs half as much again; fp32, twice."""
    licence: str
    """Of the weights, as its page says. Read it there before you rely on it."""
    notes: str = ""


_DESCRIBE = "Describe this picture in one sentence."

PRESETS: dict[str, Preset] = {
    "blip": Preset(
        "Salesforce/blip-image-captioning-base", "prefix", "", "0.25B", 0.5, "BSD-3-Clause",
        "short captions; runs on a CPU",
    ),
    "blip-large": Preset(
        "Salesforce/blip-image-captioning-large", "prefix", "", "0.47B", 0.9, "BSD-3-Clause",
        "short captions",
    ),
    "blip2": Preset(
        "Salesforce/blip2-opt-2.7b", "prefix", "", "3.7B", 7.5, "MIT", "short captions",
    ),
    "git": Preset(
        "microsoft/git-base-coco", "prefix", "", "0.18B", 0.4, "MIT",
        "short captions; runs on a CPU",
    ),
    "vit-gpt2": Preset(
        "nlpconnect/vit-gpt2-image-captioning", "prefix", "", "0.24B", 0.5, "Apache-2.0",
        "short captions; its weights may need --captioner.allow-pickle",
    ),
    "florence2": Preset(
        "florence-community/Florence-2-base", "task", "<DETAILED_CAPTION>", "0.23B", 0.5, "MIT",
        "<CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>; runs on a CPU",
    ),
    "florence2-large": Preset(
        "florence-community/Florence-2-large", "task", "<DETAILED_CAPTION>", "0.77B", 1.6, "MIT",
        "<CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>",
    ),
    "kosmos2": Preset(
        "microsoft/kosmos-2-patch14-224", "task", "An image of", "1.7B", 3.4, "MIT",
    ),
    "paligemma": Preset(
        "google/paligemma2-3b-pt-224", "task", "caption en", "3B", 6.1, "Gemma",
        "gated: accept its licence on the hub",
    ),
    "smolvlm": Preset(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "chat", _DESCRIBE, "0.5B", 1.0,
        "Apache-2.0", "the smallest that follows instructions",
    ),
    "qwen-vl": Preset(
        "Qwen/Qwen2.5-VL-3B-Instruct", "chat", _DESCRIBE, "3.8B", 7.5, "Qwen Research",
        "any size of picture: --captioner.max-pixels",
    ),
    "qwen-vl-7b": Preset(
        "Qwen/Qwen2.5-VL-7B-Instruct", "chat", _DESCRIBE, "8.3B", 16.6, "Apache-2.0",
        "any size of picture: --captioner.max-pixels",
    ),
    "internvl": Preset(
        "OpenGVLab/InternVL3-1B-hf", "chat", _DESCRIBE, "0.9B", 1.9, "see its page",
        "up to 12 tiles: --captioner.max-pixels",
    ),
    "llava": Preset(
        "llava-hf/llava-1.5-7b-hf", "chat", _DESCRIBE, "7.1B", 14.1, "Llama 2",
    ),
    "gemma3": Preset(
        "google/gemma-3-4b-it", "chat", _DESCRIBE, "4.3B", 8.6, "Gemma",
        "gated: accept its licence on the hub",
    ),
    "joycaption": Preset(
        "fancyfeast/llama-joycaption-beta-one-hf-llava", "chat",
        "Write a descriptive caption for this image in a formal tone.", "8.5B", 17.0,
        "see its page", "long captions for training sets of image generators",
    ),
}  # fmt: skip

HEADER = ("name", "model", "dialect", "size", "memory", "licence of the weights", "notes")


def preset_rows() -> list[tuple[str, ...]]:
    """The table for help and docs: a row for each preset, as in HEADER."""
    return [
        (
            name,
            preset.model,
            preset.dialect,
            preset.parameters,
            f"{preset.gigabytes:g} GB",
            preset.licence,
            preset.notes,
        )
        for name, preset in PRESETS.items()
    ]
