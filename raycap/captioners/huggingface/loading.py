"""Opens models and their processors, and says what is wrong with them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from raycap.captioners.huggingface import files
from raycap.captioners.huggingface.dialects import (
    PREFIX,
    TASK,
    check_prompt,
    default_prompt,
    dialect_of,
)
from raycap.captioners.huggingface.intakes import intake_of
from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions
from raycap.captioners.presets import Preset
from raycap.captioners.stages import resolve_stages
from raycap.device import Precision, PrecisionName
from raycap.errors import UserError

if TYPE_CHECKING:
    import torch


# What a model can do instead of an option that its dialect lacks.
_INSTEAD = {
    ("start", "prefix"): ". Its prompt is the start: --prompt TEXT --captioner.keep-prompt",
}


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(
            "models of the Hugging Face hub need transformers: pip install 'raycap[huggingface]'"
        ) from None
    return transformers


def resolve(
    asked: HuggingFaceModel,
    model: str,
    preset: Preset | None,
    num_captions: int,
    precision: PrecisionName,
) -> HuggingFaceOptions:
    """The captioner with everything decided that its captions depend on."""
    import_transformers()
    if "://" in model:
        raise UserError(
            f"{model} is not on a disk: copy the folder to one that all machines see, or give the "
            "name of a model on the Hugging Face hub"
        )
    folder = Path(model).expanduser()
    digest, revision = "", asked.revision
    sizes: tuple[tuple[str, int], ...] = ()
    if folder.is_dir():
        if asked.revision:
            raise UserError(
                f"--captioner.revision is for models of the hub, and {model} is a folder: leave "
                "it out"
            )
        model = str(folder.resolve())
        files.check_weights(folder, asked.allow_pickle)
        found = files.model_files(folder, asked.allow_pickle, asked.trust_remote_code)
        digest, sizes = files.digest_of(found), files.sizes_of(found)
    config = load_config(asked, model, revision)
    if not digest:
        # The commit that the name stands for now: all workers open the same one.
        revision = getattr(config, "_commit_hash", None) or asked.revision
    processor = load_processor(asked, model, revision)
    family = str(config.model_type)
    dialect = asked.dialect if asked.dialect != "auto" else dialect_of(family, processor)
    if dialect is None:
        raise UserError(
            f"{model} is of the family {family!r}, and nothing says how it is asked: its "
            f"processor has no chat template, and it is none of {', '.join((*PREFIX, *TASK))}. "
            "Give --captioner.dialect chat, prefix (the prompt begins the caption) or task (the "
            "prompt names a task)"
        )
    default = preset.prompt if preset and preset.dialect == dialect else ""
    stages = resolve_stages(asked, default or default_prompt(family, dialect))
    for stage in stages:
        check_prompt(stage.text + stage.system + stage.start, processor)
        for option in ("system", "start", "structure"):
            if getattr(stage, option) and dialect != "chat":
                flag = {"structure": "schema or tags"}.get(option, option)
                raise UserError(
                    f"--captioner.{flag}: that is for models that chat, and {model} is asked as "
                    f"{dialect!r}: leave it out{_INSTEAD.get((option, dialect), '')}"
                )
    pixels, resized = intake_of(processor, asked.max_pixels)
    return HuggingFaceOptions(
        asked=asked,
        model=model,
        revision=revision,
        digest=digest,
        sizes=sizes,
        adapter=_adapter(asked.adapter),
        family=family,
        dialect=dialect,
        stages=stages,
        pixels=pixels,
        resized=resized,
        num_captions=num_captions,
        precision=precision,
    )


def load_config(asked: HuggingFaceModel, model: str, revision: str) -> Any:
    transformers = import_transformers()
    with _explained(model):
        return transformers.AutoConfig.from_pretrained(
            model, revision=revision or "main", trust_remote_code=asked.trust_remote_code
        )


def load_processor(asked: HuggingFaceModel, model: str, revision: str) -> Any:
    """The processor. Where a model has only a tokenizer and an image processor, both of them."""
    transformers = import_transformers()
    how = {"revision": revision or "main", "trust_remote_code": asked.trust_remote_code}
    with _explained(model):
        processor = transformers.AutoProcessor.from_pretrained(model, **how)
        if not hasattr(processor, "image_processor"):
            processor = SimpleNamespace(
                image_processor=transformers.AutoImageProcessor.from_pretrained(model, **how),
                tokenizer=transformers.AutoTokenizer.from_pretrained(model, **how),
            )
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # new tokens follow the prompt's last
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


class OpenModel(NamedTuple):
    """A model on its device, ready to generate."""

    model: Any
    processor: Any
    precision: Precision


def open_model(options: HuggingFaceOptions, precision: Precision) -> OpenModel:
    processor = load_processor(options.asked, options.model, options.revision)
    model = load_model(options, precision, processor.tokenizer.pad_token_id)
    return OpenModel(model, processor, precision)


def model_without_weights(options: HuggingFaceOptions) -> Any:
    """The layers of a model with their names, on no device."""
    import torch

    transformers = import_transformers()
    config = load_config(options.asked, options.model, options.revision)
    with _explained(options.model), torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


def load_model(options: HuggingFaceOptions, precision: Precision, padding: int | None) -> Any:
    """The model on its device, ready to generate. `padding` is the token that fills batches."""
    transformers = import_transformers()
    asked = options.asked
    if options.digest:
        files.check_same(Path(options.model), options.sizes)
    how: dict[str, Any] = {
        "revision": options.revision or "main",
        "trust_remote_code": asked.trust_remote_code,
        "use_safetensors": None if asked.allow_pickle else True,
        "dtype": precision.dtype,
    }
    if asked.attention:
        how["attn_implementation"] = asked.attention
    if asked.quantize != "none":
        how["quantization_config"] = _quantization(asked.quantize, precision.dtype)
        how["device_map"] = {"": precision.device}
    if asked.spread:
        how["device_map"] = "auto"
    with _explained(options.model), _quiet():
        try:
            model = transformers.AutoModelForImageTextToText.from_pretrained(options.model, **how)
        except ValueError as error:
            # Code that comes with a model often knows it as a language model only.
            if not (asked.trust_remote_code and "Unrecognized configuration" in str(error)):
                raise
            model = transformers.AutoModelForCausalLM.from_pretrained(options.model, **how)
    if asked.adapter:
        model = _with_adapter(model, options.adapter)
    if "device_map" not in how:
        model = model.to(precision.device)
    model.eval()
    _choose_ourselves(model, padding)
    return model


def _choose_ourselves(model: Any, padding: int | None) -> None:
    """Take from the model's own settings what draws words: the options say it. Others, such as a
    penalty for repetition, stay."""
    for part in (
        model,
        getattr(model, "text_decoder", None),
        getattr(model, "language_model", None),
    ):
        settings = getattr(part, "generation_config", None)
        if settings is not None:
            settings.do_sample = False
            for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "max_length"):
                setattr(settings, name, None)
            settings.num_beams = 1
            settings.early_stopping = False
            settings.length_penalty = 1.0
            settings.num_return_sequences = 1
            if settings.pad_token_id is None:
                settings.pad_token_id = padding


def _quantization(bits: str, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: F401
    except ImportError:
        raise UserError(
            f"--captioner.quantize {bits} needs bitsandbytes: pip install bitsandbytes"
        ) from None
    config: Any = import_transformers().BitsAndBytesConfig
    if bits == "8bit":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _adapter(name: str) -> tuple[str, str]:
    """An adapter's folder or name, and its digest or commit; empty for none."""
    if not name:
        return "", ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        files.check_weights(folder, allow_pickle=False)
        return str(folder.resolve()), files.digest_of(files.model_files(folder, False, False))
    from transformers.utils.hub import cached_file, extract_commit_hash

    name, _, revision = name.partition("@")
    with _explained(name):
        path = cached_file(name, "adapter_config.json", revision=revision or "main")
        commit = extract_commit_hash(path, None)
    return name, commit or revision


def _with_adapter(model: Any, adapter: tuple[str, str]) -> Any:
    try:
        from peft import PeftModel  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError("--captioner.adapter needs peft: pip install peft") from None
    name, version = adapter
    how: dict[str, Any] = {} if Path(name).is_dir() else {"revision": version}
    with _explained(name):
        adapted = PeftModel.from_pretrained(model, name, use_safetensors=True, **how)
        return adapted.merge_and_unload()


@contextlib.contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turns what transformers raises while it opens something into UserError with a remedy."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, AttributeError, ImportError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason, whole = lines[0][:300], str(error)
        if isinstance(error, ImportError):
            remedy = f"a package is missing. {' '.join(line.strip() for line in lines)[:300]}"
        elif "trust_remote_code" in whole:
            remedy = (
                "it comes with Python code of its own. If you have read that code and trust it, "
                "give --captioner.trust-remote-code"
            )
        elif "safetensors" in whole and isinstance(error, OSError):
            remedy = (
                "its weights are not safetensors but pickle files, which can run code. Give "
                "--captioner.allow-pickle if you trust them"
            )
        elif "does not recognize this architecture" in whole or "Unrecognized" in whole:
            remedy = (
                "transformers does not know this family as a model that captions pictures. A "
                "newer transformers may (pip install -U transformers), or serve the model and "
                f"give its URL as --model. It says: {reason}"
            )
        elif "gated" in whole or "401" in whole:
            remedy = f"accept its licence on its page and log in (hf auth login). {reason}"
        else:
            remedy = (
                "give a folder with a model that transformers has saved, a name of the Hugging "
                f"Face hub such as Qwen/Qwen2.5-VL-3B-Instruct, or a preset. It says: {reason}"
            )
        raise UserError(f"cannot open {model}: {remedy}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and notes of transformers: rows and errors are what a user reads."""
    theirs: Any = import_transformers().utils.logging
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
