"""The matrices beside the layers of a model (LoRA, by peft): the only weights that are trained."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raycap.captioners.huggingface.captioner import HuggingFaceCaptioner
from raycap.captioners.huggingface.loading import OpenModel, open_model
from raycap.captioners.huggingface.options import HuggingFaceOptions
from raycap.captioners.huggingface.true_words import TrueWords
from raycap.device import Precision
from raycap.errors import UserError
from raycap.training.fine_tuning.setup import import_peft
from raycap.training.options import Lora

# The files that peft writes, and that a captioner's folder has.
FILES = ("adapter_config.json", "adapter_model.safetensors")


class AdaptedModel:
    """A captioner with an adapter in it. The weights of its model are frozen."""

    def __init__(
        self, options: HuggingFaceOptions, lora: Lora, precision: Precision, seed: int
    ) -> None:
        peft = import_peft()
        opened = open_model(options, precision)
        opened.model.requires_grad_(False)
        layers = lora.layers or layers_of_language_model(opened.model)
        check_layers(opened.model, layers)
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers
        )
        torch.manual_seed(seed)
        # It puts its layers into the model, in place.
        self.adapted = peft.get_peft_model(opened.model, config)
        self.adapted.eval()
        self.captioner = HuggingFaceCaptioner(
            options, opened=OpenModel(opened.model, opened.processor, precision)
        )
        self.true_words = TrueWords(self.captioner)
        named = self.adapted.named_parameters()
        self.weights: dict[str, nn.Parameter] = {
            name: weight for name, weight in named if weight.requires_grad
        }
        modules = self.adapted.named_modules()
        self._dropouts = [module for name, module in modules if name.endswith(".lora_dropout")]

    def train(self, is_on: bool = True) -> None:
        """Switch the adapter's dropout. The model itself always works as it does in captioning."""
        for module in self._dropouts:
            module.train(is_on)

    def tensors(self) -> dict[str, Tensor]:
        """The trained weights, for a checkpoint."""
        return {f"adapter.{name}": weight.data for name, weight in self.weights.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(tensors[f"adapter.{name}"])

    def files(self) -> dict[str, bytes]:
        """The adapter as peft writes it."""
        with tempfile.TemporaryDirectory() as folder:
            self.adapted.save_pretrained(folder, save_embedding_layers=False)
            return {name: (Path(folder) / name).read_bytes() for name in FILES}

    def counts(self) -> tuple[int, int]:
        """How many numbers are trained, and how many are frozen."""
        trained = sum(weight.numel() for weight in self.weights.values())
        return trained, sum(each.numel() for each in self.adapted.parameters()) - trained


def layers_of_language_model(model: Any) -> str:
    """A regular expression that fits the names of all linear layers of the model's language part,
    without the one that predicts words."""
    part = model.get_decoder()
    if hasattr(part, "image_encoder"):  # GIT, where that is the whole model
        part = part.encoder
    name = next((name for name, each in model.named_modules() if each is part), "")
    if not name:
        raise UserError(
            "nothing says which part of this model writes words: name the layers that learn "
            r"(--lora.layers '.*language_model.*\.(q_proj|v_proj)')"
        )
    output = model.get_output_embeddings()
    linear = {
        inner.rpartition(".")[2]
        for inner, each in part.named_modules()
        if is_linear(each) and each is not output
    }
    return rf"{re.escape(name)}\..*\b({'|'.join(sorted(map(re.escape, linear)))})"


def check_layers(model: Any, layers: str) -> None:
    """Raises UserError if no linear layer has a name that fits."""
    linear = [name for name, each in model.named_modules() if is_linear(each)]
    if not any(re.fullmatch(layers, name) for name in linear):
        examples = ", ".join(linear[-3:])
        raise UserError(
            f"--lora.layers is {layers!r}, which fits no linear layer of the model: give an "
            f"expression that fits whole names, such as {examples}"
        )


def is_linear(layer: Any) -> bool:
    # Conv1D: the linear layers of GPT-2.
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
