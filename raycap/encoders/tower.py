"""Any picture model of timm: its last map or patch tokens are the grid, what its classifier reads is the vector."""

import difflib
import math
from typing import Any

from torch import Tensor, nn

from raycap.encoders import RANDOM, Timm
from raycap.encoders.encoder import Encoder, Trunk
from raycap.encoders.preprocessing import Preprocessing, check_patches
from raycap.encoders.weights import fill, read, repeatable, undelivered
from raycap.errors import UserError

RESIZE_OF_CROP_MODE = {"center": "crop", "squash": "squash", "border": "pad"}
LAST_STAGES = (
    "layer4",
    "s4",
    "stages",
    "blocks",
    "layers",
    "levels",
)  # as timm's networks name their stages


class Tower(Trunk):
    """A timm network without its classifier."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D, H, H], [B, D]."""
        features = self.network.forward_features(pixels)
        cells = self._map(features)
        pooled = self.network.forward_head(features, pre_logits=True)
        # a few small networks widen the vector for their classifier; the grid's own mean then fits the decoders
        return cells, pooled if pooled.shape == cells.shape[:2] else cells.mean((2, 3))

    def _map(self, features: Tensor) -> Tensor:
        """[B, D, H, H] from a map in either order of axes, or from tokens of which the first may be no patches."""
        width: int = self.network.num_features
        shape = list(features.shape) if isinstance(features, Tensor) else []
        if len(shape) == 4 and shape[1] == width:
            return features
        if len(shape) == 4 and shape[3] == width:
            return features.permute(0, 3, 1, 2)
        if len(shape) == 3 and shape[2] == width:
            patches = features[:, getattr(self.network, "num_prefix_tokens", 0) or 0 :]
            side = math.isqrt(patches.shape[1])
            if side * side == patches.shape[1]:
                return patches.transpose(1, 2).reshape(-1, width, side, side)
        raise UserError(
            f"timm's {self.name} gives no square grid ({shape or 'several maps'}): take another model"
        )

    def last_stage(self) -> list[nn.Module]:
        """The last stage or block, and what follows it."""
        children = dict(self.network.named_children())
        name = next((name for name in LAST_STAGES if name in children), None)
        if name is None:
            raise UserError(
                f"no last stage is known of timm's {self.name}: train none or all of it (trainable)"
            )
        stage, after = children[name], list(children)[list(children).index(name) + 1 :]
        whole = name in ("layer4", "s4")
        return [
            stage if whole else list(stage.children())[-1],
            *(children[later] for later in after),
        ]


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"the encoder timm needs the package timm ({error}): pip install 'raycap[timm]'"
        ) from error
    return timm


def preprocessing(options: Timm) -> Preprocessing:
    """timm's data config of the model, where no option says otherwise."""
    timm = _timm()
    config = timm.data.resolve_data_config(pretrained_cfg=_card(timm, options.model))
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


def _card(timm: Any, model: str) -> dict[str, Any]:
    """What timm knows of the weights that the name stands for."""
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        raise UserError(
            f"timm has no model {model!r}{'; close: ' + ', '.join(close) if close else ''}"
        )
    try:
        card = timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # the tag behind the dot
        known = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise UserError(f"timm has no weights {model!r}: it has {', '.join(known)}") from error
    return card.to_dict() if card else {}


def build(options: Timm, pretrained: bool) -> Encoder:
    """The network with its weights and without its classifier."""
    timm, wanted = _timm(), preprocessing(options)
    card = _card(timm, options.model)
    download = pretrained and options.weights == "timm"
    try:
        with repeatable():
            network = timm.create_model(options.model, pretrained=download, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise undelivered(f"timm's {options.model}", error) from error
    if pretrained and options.weights not in ("timm", RANDOM):
        heads = card.get("classifier", "head")
        fill(
            network,
            read(options.weights),
            options.weights,
            (heads,) if isinstance(heads, str) else tuple(heads),
        )
    try:
        if options.size and hasattr(network, "set_input_size"):
            patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
            check_patches(options.size, patch if isinstance(patch, int) else patch[0])
            network.set_input_size(img_size=options.size)  # stretches the places of the patches
        return Encoder(Tower(network, options.model), wanted, options.grid, options.trainable)
    except AssertionError as error:  # timm's way of refusing a size
        raise UserError(
            f"timm's {options.model} cannot take pictures of {wanted.size} pixels: {error}"
        ) from error
