"""The kinds of captioners, and which kind a model is.

    kind_of_model("shipped")                       ->  "trained"
    kind_of_model("Qwen/Qwen2.5-VL-3B-Instruct")   ->  "huggingface"
    kind_of_model("http://localhost:8000/v1")      ->  "endpoint"

Each kind has a class of options, `--captioner.NAME`, with a method that makes the captioner:

    def captioner(self, model, num_captions, precision) -> CaptionerOptions

To add a kind, write that class and its line in CAPTIONERS.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycap import plainjson
from raycap.captioners.endpoint.options import Endpoint
from raycap.captioners.huggingface.fine_tuned import is_fine_tuned
from raycap.captioners.huggingface.options import HuggingFaceModel
from raycap.captioners.presets import PRESETS
from raycap.captioners.vllm.options import Vllm
from raycap.finishing import Finishing
from raycap.options import choose, from_plain
from raycap.shipped import NAME as SHIPPED
from raycap.storage.location import locate
from raycap.uris import is_web

if TYPE_CHECKING:
    from raycap.captioners.protocol import Captioner, CaptionerOptions
    from raycap.device import PrecisionName


@dataclass(frozen=True)
class Trained:
    """A captioner that `raycap train` made. Its options are those of the command: --beam,
    --search, --attention, ..."""


CAPTIONERS: dict[str, Any] = {
    "trained": Trained,
    "huggingface": HuggingFaceModel,
    "endpoint": Endpoint,
    "vllm": Vllm,
}

CaptionerChoice = Trained | HuggingFaceModel | Endpoint | Vllm

# OWNER/NAME, as models of the Hugging Face hub are called.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def kind_of_model(model: str) -> str:
    """The name in CAPTIONERS of a model's kind."""
    if is_web(model):
        return "endpoint"
    if model in PRESETS:
        return "huggingface"
    if model == SHIPPED:
        return "trained"
    if is_fine_tuned(model):
        return "huggingface"
    fields = read_model_config(model)
    if fields is not None:
        return "huggingface" if is_of_hugging_face(fields) else "trained"
    is_hub_name = _HUB_NAME.fullmatch(model) and not locate(model).exists()
    return "huggingface" if is_hub_name else "trained"


def read_model_config(model: str) -> dict[str, Any] | None:
    """What config.json in a model's folder says; None if there is none."""
    file = locate(model) / "config.json"
    if not file.is_file():
        return None
    config: object = None
    with file.open() as opened, contextlib.suppress(ValueError):
        config = plainjson.loads(opened.read())
    return config if isinstance(config, dict) else {}


def is_of_raycap(fields: Mapping[str, Any]) -> bool:
    """Whether `raycap train` wrote this config.json."""
    return "format" in fields and "encoder" in fields


def is_of_hugging_face(fields: Mapping[str, Any]) -> bool:
    return not is_of_raycap(fields) and bool(
        fields.get("model_type") or fields.get("architectures")
    )


def load_captioner(
    model: str,
    kind: str,
    device: str,
    precision: PrecisionName,
    options: Mapping[str, Any],
) -> Captioner:
    """See `Captioner.load`."""
    kind = kind or kind_of_model(model)
    part = choose(CAPTIONERS, kind, "captioner")
    if part is Trained:
        from raycap.captioners.trained import TrainedCaptioner

        return TrainedCaptioner.read(model, device=device, precision=precision, **options)
    given = dict(options)
    num_captions = given.pop("num_captions", None)
    chosen = from_plain(part, given, "captioner")
    captioner: CaptionerOptions = chosen.captioner(model, num_captions, precision)
    opened = captioner.open(device, None)
    opened.finishing = Finishing(prompts=captioner.prompt_texts())
    return opened
