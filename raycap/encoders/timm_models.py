"""Encoders from timm's models. The grid is the last feature map or the patch tokens, the vector is
the input of the classifier."""

import difflib
import math
from typing import Any

from torch import Tensor, nn

from raycap.encoders import RANDOM, Timm
from raycap.encoders.encoder import Encoder, Trunk
from raycap.encoders.preprocessing import Preprocessing, check_patches
from raycap.encoders.weights import download_error, fixed_seed, load_weights, read_weights
from raycap.errors import UserError

RESIZE_OF_CROP_MODE = {"center": "crop", "squash": "squash", "border": "pad"}
# Names of the last stage, or of all stages, in timm's networks.
WHOLE_LAST_STAGES = ("layer4", "s4")
LISTS_OF_STAGES = ("stages", "blocks", "layers", "levels")


class TimmTrunk(Trunk):
    """A timm network without its classifier."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        features = self.network.forward_features(pixels)
        grid = self._grid(features)
        vector = self.network.forward_head(features, pre_logits=True)
        if vector.shape != grid.shape[:2]:
            # A few small networks widen the vector for their classifier; decoders want width D.
            vector = grid.mean((2, 3))
        return grid, vector

    def _grid(self, features: Tensor) -> Tensor:
        """The grid [B, D, H, H], from a feature map with channels first or last, or from tokens
        without the prefix tokens."""
        width: int = self.network.num_features
        shape = list(features.shape) if isinstance(features, Tensor) else []
        if len(shape) == 4 and shape[1] == width:
            return features
        if len(shape) == 4 and shape[3] == width:
            return features.permute(0, 3, 1, 2)
        if len(shape) == 3 and shape[2] == width:
            prefix = getattr(self.network, "num_prefix_tokens", 0) or 0
            patches = features[:, prefix:]
            side = math.isqrt(patches.shape[1])
            if side * side == patches.shape[1]:
                return patches.transpose(1, 2).reshape(-1, width, side, side)
        raise UserError(
            f"timm's {self.name} gives no square grid ({shape or 'several maps'}): choose another "
            "model"
        )

    def last_stage(self) -> list[nn.Module]:
        """The last stage or block, and the layers after it."""
        children = dict(self.network.named_children())
        for name in WHOLE_LAST_STAGES + LISTS_OF_STAGES:
            if name in children:
                break
        else:
            raise UserError(
                f"raycap does not know the last stage of timm's {self.name}: train none or all of "
                "it (trainable)"
            )
        stage = children[name]
        if name in LISTS_OF_STAGES:
            stage = list(stage.children())[-1]
        index = list(children).index(name)
        return [stage, *list(children.values())[index + 1 :]]


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"the encoder timm needs the package timm ({error}): pip install 'raycap[timm]'"
        ) from error
    return timm


def preprocessing(options: Timm) -> Preprocessing:
    """timm's data config of the model, with the options that are set."""
    timm = _timm()
    config = timm.data.resolve_data_config(pretrained_cfg=_pretrained_config(timm, options.model))
    height, width = config["input_size"][1:]
    if options.size is None and height != width:
        raise UserError(
            f"timm's {options.model} takes pictures of {width}x{height}: give it a square `size`"
        )
    return Preprocessing(
        options.size or height,
        options.resize or RESIZE_OF_CROP_MODE[config["crop_mode"]],  # type: ignore[arg-type]
        options.interpolation or config["interpolation"],
        options.mean or config["mean"],
        options.std or config["std"],
    )


def _pretrained_config(timm: Any, model: str) -> dict[str, Any]:
    """timm's config of the pretrained weights with this name."""
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise UserError(f"timm has no model {model!r}{hint}")
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # an unknown tag behind the dot
        known = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise UserError(f"timm has no weights {model!r}: it has {', '.join(known)}") from error
    return config.to_dict() if config else {}


def build(options: Timm, pretrained: bool) -> Encoder:
    """The encoder of one of timm's networks."""
    timm, wanted = _timm(), preprocessing(options)
    config = _pretrained_config(timm, options.model)
    download = pretrained and options.weights == "timm"
    try:
        with fixed_seed():
            network = timm.create_model(options.model, pretrained=download, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise download_error(f"timm's {options.model}", error) from error
    if pretrained and options.weights not in ("timm", RANDOM):
        heads = config.get("classifier", "head")
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        load_weights(network, read_weights(options.weights), options.weights, heads)
    try:
        if options.size and hasattr(network, "set_input_size"):
            patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
            check_patches(options.size, patch if isinstance(patch, int) else patch[0])
            network.set_input_size(img_size=options.size)  # interpolates position embeddings
        return Encoder(TimmTrunk(network, options.model), wanted, options.grid, options.trainable)
    except AssertionError as error:  # timm's error for a wrong size
        raise UserError(
            f"timm's {options.model} cannot take pictures of {wanted.size} pixels: {error}"
        ) from error
