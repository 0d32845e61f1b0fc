"""What a fine-tuning run needs, and which options of a training run do not apply to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raycap.captioners.huggingface.given_words import check_family
from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions
from raycap.captioners.kinds import CAPTIONERS, kind_of_model
from raycap.errors import UserError
from raycap.images import Encoded, Reading
from raycap.images.reading import LIMITS
from raycap.options import kind_of, to_plain
from raycap.sources import SOURCES, Source
from raycap.storage import RunFolder
from raycap.training.options import Train
from raycap.training.setup import MAY_CHANGE
from raycap.training.store import PictureTables

# Options of a training run that say nothing to one that fine-tunes.
OF_TRAINED = (
    "features",
    "data",
    "window",
    "start_from",
    "embedding_lr",
    "encoder_lr",
    "batch_norm",
    "cache_frozen_stages",
    "compile",
    "neighbours",
    "augmentation",
    "distillation",
    "self_critical",
    "objective.attention_penalty",
    "objective.scheduled_sampling",
    "optimiser.averaging",
    "validation.padded_length",
    "validation.samples_every",
)
# Options of the captioner that cannot be learned, with the reason.
OF_CAPTIONING: dict[str, str] = {
    "quantize": "weights in 8 or 4 bits are not fine-tuned here; --precision bf16 halves those of "
    "fp32",
    "adapter": "a model that has an adapter is not fine-tuned here; merge it into the model first "
    "(peft's merge_and_unload)",
    "spread": "a model that is divided over GPUs is not fine-tuned here",
    "dtype": "a run has --precision",
    "keep_prompt": "captions are learned as people wrote them, without a prompt",
    "start": "captions are learned from their first word",
    "schema": "captions are learned as people wrote them",
    "tags": "captions are learned as people wrote them",
    "prompts": "one prompt is learned",
    "prompt_column": "one prompt is learned, the same for all pictures",
    "base": "it is for captioners that were fine-tuned",
}


@dataclass(frozen=True)
class FineTuningSetup:
    """Everything that a worker needs, except the pictures themselves."""

    options: Train
    captioner: HuggingFaceOptions
    pictures: PictureTables


def check_applies(
    options: Train, captioner: object, sections: Mapping[str, tuple[Any, Any]]
) -> HuggingFaceModel:
    """The options of the model. Raises UserError for options that do not apply. Reads nothing.

    `sections` are those of a trained captioner, such as decoder, each with its default.
    """
    if options.self_critical.epochs:
        raise UserError(_does_not_apply("train.self_critical.epochs", options.model))
    usual, asked = to_plain(Train()), to_plain(options)
    for name in OF_TRAINED:
        if _value(asked, name) != _value(usual, name):
            raise UserError(_does_not_apply(f"train.{name}", options.model))
    for name, (part, default) in sections.items():
        if type(part) is not type(default):
            raise UserError(_does_not_apply(name, options.model))
        changed = list(_changed(to_plain(part), to_plain(default), name))
        if changed:
            raise UserError(_does_not_apply(changed[0], options.model))
    if not isinstance(captioner, HuggingFaceModel):
        kind = "none" if captioner is None else kind_of(captioner, CAPTIONERS)
        raise UserError(
            f"train.model is {options.model}, and captioner is of the kind {kind}: only models of "
            "the kind huggingface are fine-tuned, so leave out --captioner"
        )
    for name, reason in OF_CAPTIONING.items():
        if getattr(captioner, name) != getattr(HuggingFaceModel(), name):
            flag = name.replace("_", "-")
            raise UserError(f"--captioner.{flag}: {reason}. Leave it out")
    RunFolder(options.out)  # raises UserError if there is no such store
    return captioner


def _does_not_apply(name: str, model: str) -> str:
    return (
        f"{name} is for captioners that are trained from their parts, and {model} is fine-tuned: "
        "leave it out"
    )


def _value(options: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted option."""
    value: Any = options
    for part in name.split("."):
        value = value[part]
    return value


def _changed(part: Mapping[str, Any], default: Mapping[str, Any], name: str) -> Iterator[str]:
    """The dotted names of the options that differ."""
    for option, value in part.items():
        dotted, usual = f"{name}.{option}", default.get(option)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            yield from _changed(value, usual, dotted)
        elif value != usual:
            yield dotted


def resolve_captioner(options: Train, asked: HuggingFaceModel) -> HuggingFaceOptions:
    """The model that is fine-tuned, with everything decided. Reads its config, not its weights."""
    import_peft()
    kind = kind_of_model(options.model)
    if kind == "endpoint":
        raise UserError(
            f"{options.model} is a server, whose weights are not here: give the model itself, a "
            "folder or its name on the Hugging Face hub"
        )
    if kind == "trained":
        raise UserError(
            f"{options.model} is no model of Hugging Face: give a folder that transformers has "
            "saved, a name of the hub such as HuggingFaceTB/SmolVLM2-500M-Video-Instruct, or a "
            "short name such as smolvlm. To go on from a captioner that raycap trained, leave out "
            "--model and give --start-from"
        )
    captioner = asked.captioner(options.model, None, options.precision)
    if captioner.adapter[0]:
        raise UserError(
            f"{options.model} was fine-tuned already: give its base model, {captioner.model}, and "
            "all captions to learn from"
        )
    if captioner.stages[-1].names:
        raise UserError(
            f"--captioner.prompt is {captioner.prompt!r}: one prompt is learned, the same for all "
            "pictures, so leave out what stands in braces"
        )
    check_family(options.model, captioner.family, captioner.dialect)
    if isinstance(captioner.intake(), Encoded):
        raise UserError(f"{options.model} takes files, and only models that take pixels learn")
    return captioner


def import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("--model needs peft: pip install 'raycap[huggingface]'") from None
    return peft


def tuning_identity(
    captioner: HuggingFaceOptions, options: Train, reading: Reading, source: Source | None
) -> dict[str, Any]:
    """The options that determine the result of a run."""
    train = to_plain(options)
    left_out = {*MAY_CHANGE, "model", *(name for name in OF_TRAINED if "." not in name)}
    identity = {
        "model": captioner.identity(),
        "reading": {name: each for name, each in to_plain(reading).items() if name not in LIMITS},
        "train": {name: value for name, value in train.items() if name not in left_out},
    }
    if source is not None:
        identity["source"] = to_plain(source, SOURCES)
    return identity
