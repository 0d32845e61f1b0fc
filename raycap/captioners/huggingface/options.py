"""What the user chooses for a model that transformers knows, and what travels to the workers.

raycap caption photos/ --model smolvlm --captioner.prompt "Name the colours." --out captions/
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from raycap.captioners.generation import Generation
from raycap.captioners.presets import PRESETS
from raycap.captioners.protocol import CaptionerOptions, Placement
from raycap.captioners.stages import Stage, columns_of, columns_read, fixed_texts, identity_of
from raycap.device import FloatName, PrecisionName
from raycap.errors import UserError
from raycap.images.intake import Intake

if TYPE_CHECKING:
    from raycap.captioners.huggingface.captioner import HuggingFaceCaptioner

COLUMNS = pa.schema(
    [
        ("tokens_in", pa.int64()),  # of the picture and the prompt
        ("tokens_out", pa.int64()),
        ("finish_reason", pa.string()),  # stop; length: the caption was cut off
    ]
)
# Pictures per second of one worker, about. Chunks are cut by it.
_RATES = {"chat": 2.0, "prefix": 8.0, "task": 4.0}


@dataclass(frozen=True)
class HuggingFaceModel(Generation):
    """A model that transformers knows, in this process or in Ray workers. --model is the name of
    a preset (blip, smolvlm, qwen-vl, ...), of a model on the Hugging Face hub, or a folder."""

    dialect: Literal["auto", "chat", "prefix", "task"] = "auto"
    """How the model is asked: in a chat, with the beginning of the caption, or with the name of a
    task such as <CAPTION>. auto: by its family"""
    dtype: FloatName = "auto"
    """fp32, bf16 or fp16. auto: as --precision says"""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """8bit and 4bit need bitsandbytes and a GPU"""
    attention: str = ""
    """sdpa, eager, flash_attention_2, ... Empty: as transformers chooses"""
    adapter: str = ""
    """A LoRA adapter for the model: a folder or OWNER/NAME@REVISION of the hub. Needs peft"""
    base: str = ""
    """Of a captioner that `raycap train --model` made: the folder of its base model, if that is no
    longer where it was"""
    revision: str = ""
    """Branch, tag or commit on the hub. Empty: the main branch as it is when the run starts"""
    max_pixels: int = 0
    """For models that take pictures of any size, or in tiles: at most so many pixels of each
    picture. Fewer are faster. 0: as the model's own processor"""
    batch_tokens: int = 0
    """The most tokens of pictures and captions in one batch. 0: as many as fit into the GPU's
    memory; on a CPU 16384"""
    keep_prompt: bool = False
    """Where the prompt is the beginning of the caption: write it into the caption too"""
    spread: bool = False
    """Divide the model over all GPUs of a worker (--gpus 2)"""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do anything that you can"""
    allow_pickle: bool = False
    """Open weights that are not safetensors. A pickle file can run code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_pixels", "batch_tokens"):
            if getattr(self, name) < 0:
                option = f"--captioner.{name.replace('_', '-')}"
                raise UserError(f"{option} is {getattr(self, name)}: give a number above 0, or 0")
        if self.dialect not in ("auto", "chat", "prefix", "task"):
            raise UserError(f"--captioner.dialect is {self.dialect!r}: give chat, prefix or task")

    def captioner(
        self, model: str, num_captions: int | None, precision: PrecisionName | None
    ) -> HuggingFaceOptions:
        """The captioner that `model` names. Reads its config and processor, not its weights."""
        from raycap.captioners.huggingface.fine_tuned import (
            check_base,
            is_fine_tuned,
            resolve_base,
        )
        from raycap.captioners.huggingface.loading import resolve

        if precision == "int8":
            raise UserError(
                "--precision int8: only captioners that raycap trained have that. Models of "
                "Hugging Face have --captioner.quantize 8bit, on a GPU"
            )
        asked, base, digest = self, model, ""
        has_adapter = "://" not in model and is_fine_tuned(model)
        if has_adapter:
            asked, base, digest = resolve_base(self, model)
        elif self.base:
            raise UserError(
                f"--captioner.base is for captioners that raycap train --model made, and {model} "
                "is none: leave it out"
            )
        preset = PRESETS.get(base)
        options = resolve(
            asked,
            model=preset.model if preset else base,
            preset=preset,
            num_captions=num_captions or 1,
            precision=self.dtype if self.dtype != "auto" else precision or "auto",
        )
        if has_adapter:
            check_base(model, options, digest)
        return options


@dataclass(frozen=True)
class HuggingFaceOptions(CaptionerOptions):
    """A model with all that determines its captions. The weights do not travel: each worker opens
    the folder, or has the hub's files in its cache."""

    asked: HuggingFaceModel
    model: str
    """Folder, or name on the hub."""
    revision: str
    """Commit on the hub; "" for a folder."""
    digest: str
    """Of the folder's files; "" for a model of the hub."""
    sizes: tuple[tuple[str, int], ...]
    """Names and bytes of the folder's files. Workers compare them before they open it."""
    adapter: tuple[str, str]
    """The adapter's folder or name, and its digest or commit; empty for none."""
    family: str
    """`model_type` in its config."""
    dialect: Literal["chat", "prefix", "task"]
    stages: tuple[Stage, ...]
    """The prompts in order."""
    pixels: Intake
    resized: bool
    """Whether `pixels` are just what its own processor would make. It need not resize then."""
    num_captions: int = 1
    precision: PrecisionName = "auto"

    @property
    def prompt(self) -> str:
        """The last prompt, which the caption answers."""
        return self.stages[-1].text

    def identity(self) -> dict[str, Any]:
        asked, last = self.asked, self.stages[-1]
        draws = last.temperature > 0
        seeded = any(stage.temperature > 0 for stage in self.stages)
        return {
            "captioner": "huggingface",
            "model": self.digest or f"{self.model}@{self.revision}",
            "adapter": self.adapter[1],
            "dialect": self.dialect,
            "prompt": self.prompt,
            "system": last.system,
            "max_tokens": last.max_tokens,
            "temperature": last.temperature,
            "top_p": last.top_p if draws else None,
            "seed": asked.seed if seeded else None,
            "stop": list(last.stop),
            "keep_prompt": asked.keep_prompt,
            "num_captions": self.num_captions,
            "quantize": asked.quantize,
            "attention": asked.attention,
            "intake": {"kind": type(self.pixels).__name__, **dataclasses.asdict(self.pixels)},
            **identity_of(self.stages),
        }

    def intake(self) -> Intake:
        return self.pixels

    def columns(self) -> pa.Schema:
        return pa.schema([*columns_of(self.stages), *COLUMNS])

    def columns_read(self) -> tuple[str, ...]:
        return columns_read(self.stages)

    def prompt_texts(self) -> tuple[str, ...]:
        # What begins with the prompt is asked for in the dialect "prefix".
        return () if self.dialect == "prefix" else fixed_texts(self.stages)

    def metadata(self) -> dict[str, str]:
        model = self.digest or f"{self.model}@{self.revision}"
        return {"captioner": f"{model}+{self.adapter[1]}" if self.adapter[1] else model}

    def placement(self) -> Placement:
        rate = _RATES[self.dialect] / len(self.stages)
        return Placement(precision=self.precision, pictures_per_second=rate)

    def in_precision(self, precision: PrecisionName) -> Self:
        return dataclasses.replace(self, precision=precision)

    def open(self, device: str, threads: int | None) -> HuggingFaceCaptioner:
        from raycap.captioners.huggingface.captioner import HuggingFaceCaptioner

        return HuggingFaceCaptioner(self, device, threads)
