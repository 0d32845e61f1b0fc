"""The matrices beside the layers of a model (LoRA, by peft): the only weights that are trained."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raycap.captioners.huggingface.captioner import HuggingFaceCaptioner
from raycap.captioners.huggingface.given_words import GivenWords
from raycap.captioners.huggingface.loading import (
    OpenModel,
    model_without_weights,
    open_model,
)
from raycap.captioners.huggingface.options import HuggingFaceOptions
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
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=adapted_layers(opened.model, lora),
        )
        torch.manual_seed(seed)
        # It puts its layers into the model, in place.
        self.adapted = peft.get_peft_model(opened.model, config)
        self.adapted.eval()
        self.captioner = HuggingFaceCaptioner(
            options, opened=OpenModel(opened.model, opened.processor, precision)
        )
        self.given_words = GivenWords(self.captioner)
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


def check_lora(options: HuggingFaceOptions, lora: Lora) -> None:
    """Raises UserError if the model has no layers such as asked for. Its weights are not read."""
    if not options.asked.trust_remote_code:  # such code may not run without weights
        adapted_layers(model_without_weights(options), lora)


def adapted_layers(model: Any, lora: Lora) -> str:
    """The expression that fits the names of the layers with an adapter."""
    layers = lora.layers or layers_of_language_model(model)
    named = dict(model.named_modules())
    fitting = [name for name in named if re.fullmatch(layers, name)]
    if not fitting:
        examples = ", ".join([name for name, each in named.items() if is_linear(each)][-3:])
        raise UserError(
            f"--lora.layers is {layers!r}, which fits no layer of the model: give an expression "
            f"that fits whole names, such as {examples}"
        )
    for name in fitting:
        if not is_linear(named[name]) or predicts_words(named[name], model):
            raise UserError(
                f"--lora.layers is {layers!r}, which fits {name or 'the whole model'} too: only "
                "linear layers can have an adapter, and not the one that predicts words, which "
                "often shares its weights with the words that are read"
            )
    return layers


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
    linear = {
        inner.rpartition(".")[2]
        for inner, each in part.named_modules()
        if is_linear(each) and not predicts_words(each, model)
    }
    return rf"{re.escape(name)}\..*\b({'|'.join(sorted(map(re.escape, linear)))})"


def is_linear(layer: Any) -> bool:
    # Conv1D: the linear layers of GPT-2.
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def predicts_words(layer: Any, model: Any) -> bool:
    """Whether a linear layer has an output for each word."""
    words = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    return words is not None and getattr(layer, "out_features", None) == words
