"""What the user chooses for a model in vLLM, and what travels to the workers.

raycap caption photos/ --captioner vllm --model qwen-vl --out captions/
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raycap.captioners.generation import Generation
from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions
from raycap.captioners.presets import PRESETS
from raycap.captioners.prompts import CAPTION, Prompt
from raycap.captioners.protocol import CaptionerOptions, Placement
from raycap.captioners.stages import Question
from raycap.device import PrecisionName
from raycap.errors import UserError
from raycap.images import Intake

if TYPE_CHECKING:
    from raycap.captioners.vllm.captioner import VllmCaptioner

# Of one worker with a GPU and a model of some billion parameters, roughly.
PICTURES_PER_SECOND = 10.0
# What other options decide.
_DECIDED = ("model", "revision", "dtype", "quantization", "seed")


@dataclass(frozen=True)
class Vllm(Generation):
    """A model of the Hugging Face hub in vLLM's engine, in workers with GPUs of their own. --model
    is the name of a preset (qwen-vl, internvl, ...), of a model on the hub, or a folder."""

    gpus: int = 1
    """GPUs of each worker. The model is divided among them (tensor parallelism)."""
    dtype: str = "auto"
    """Number format of the weights: auto (as they are stored), bfloat16, float16, float32."""
    quantization: str = ""
    """A method that vLLM knows: fp8, awq, bitsandbytes, ... Empty: as the model is stored."""
    adapter: str = ""
    """A LoRA adapter for the model: a folder or OWNER/NAME of the hub."""
    revision: str = ""
    """Branch, tag or commit on the hub. Empty: the main branch as it is when the run starts."""
    max_pixels: int = 0
    """At most so many pixels of each picture, for models that take any size. 0: as the model's
    own processor."""
    max_length: int = 0
    """The most tokens of a prompt with its picture and answer. 0: as the model allows."""
    memory: float = 0.9
    """Share of each GPU's memory that the engine may take."""
    in_flight: int = 256
    """Pictures under way at a time in each worker."""
    engine: str = ""
    """More arguments of vLLM's AsyncEngineArgs, as JSON: {"enforce_eager": true}."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do anything that you can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("gpus", 1), ("max_pixels", 0), ("max_length", 0), ("in_flight", 1)):
            if getattr(self, name) < least:
                option = f"--captioner.{name.replace('_', '-')}"
                raise UserError(f"{option} is {getattr(self, name)}: give at least {least}")
        if not 0 < self.memory <= 1:
            raise UserError(f"--captioner.memory is {self.memory}: give a share such as 0.9")
        self.more_arguments()

    def more_arguments(self) -> dict[str, Any]:
        """What `engine` adds to the engine's arguments."""
        try:
            arguments = json.loads(self.engine or "{}")
        except ValueError as error:
            raise UserError(f"--captioner.engine is not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise UserError('--captioner.engine must be an object such as {"enforce_eager": true}')
        for name in _DECIDED:
            if name in arguments:
                raise UserError(
                    f"--captioner.engine holds {name!r}, which other options decide: leave it out"
                )
        return arguments

    def captioner(
        self, model: str, num_captions: int | None, precision: PrecisionName | None
    ) -> VllmOptions:
        """The captioner that `model` names. Reads its config and processor, not its weights."""
        from raycap.captioners.huggingface.loading import resolve

        if precision not in (None, "auto"):
            raise UserError(
                f"--precision {precision}: vLLM's number format is --captioner.dtype, such as "
                "bfloat16"
            )
        of_caption = self.prompts.get(CAPTION)
        temperature = self.temperature
        if isinstance(of_caption, Prompt) and of_caption.temperature is not None:
            temperature = of_caption.temperature
        if num_captions is not None and num_captions > 1 and temperature == 0:
            raise UserError(
                f"--num-captions {num_captions} with --captioner.temperature 0 would give the "
                "same caption each time: give --captioner.temperature 0.7"
            )
        preset = PRESETS.get(model)
        shared = {each.name: getattr(self, each.name) for each in fields(Generation)}
        asked = HuggingFaceModel(
            **shared,
            adapter=self.adapter,
            revision=self.revision,
            max_pixels=self.max_pixels,
            trust_remote_code=self.trust_remote_code,
        )
        found = resolve(
            asked, preset.model if preset else model, preset, num_captions or 1, "auto"
        )
        if found.dialect != "chat":
            raise UserError(
                f"{found.model} is of the family {found.family!r}, which is not asked in a chat: "
                "give --captioner huggingface"
            )
        return VllmOptions(self, found)


@dataclass(frozen=True)
class VllmOptions(CaptionerOptions):
    """A model with all that determines its captions."""

    asked: Vllm
    model: HuggingFaceOptions

    def identity(self) -> dict[str, Any]:
        # How the engine is fed and where it runs changes no caption, apart from the rounding that
        # depends on its neighbours in a batch.
        return {
            **self.model.identity(),
            "captioner": "vllm",
            "dtype": self.asked.dtype,
            "quantize": self.asked.quantization,
            "max_length": self.asked.max_length,
            "engine": self.asked.more_arguments(),
        }

    def intake(self) -> Intake:
        return self.model.intake()

    def columns(self) -> pa.Schema:
        return self.model.columns()

    def columns_read(self) -> tuple[str, ...]:
        return self.model.columns_read()

    def prompt_texts(self) -> tuple[str, ...]:
        return self.model.prompt_texts()

    def metadata(self) -> dict[str, str]:
        return self.model.metadata()

    def placement(self) -> Placement:
        rate = PICTURES_PER_SECOND / len(self.model.stages)
        return Placement(gpus=self.asked.gpus, pictures_per_second=rate)

    def open(self, device: str, threads: int | None) -> VllmCaptioner:
        from raycap.captioners.vllm.captioner import VllmCaptioner

        return VllmCaptioner(self)

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's AsyncEngineArgs."""
        asked, model = self.asked, self.model
        arguments: dict[str, Any] = {
            "model": model.model,
            "dtype": asked.dtype,
            "tensor_parallel_size": asked.gpus,
            "gpu_memory_utilization": asked.memory,
            "trust_remote_code": asked.trust_remote_code,
            "limit_mm_per_prompt": {"image": 1},
            "seed": asked.seed,
            "max_num_seqs": asked.in_flight,
            "disable_log_stats": True,
        }
        if len(model.stages) == 1 and model.stages[0].structure is None:
            # Each picture is shown once: there is nothing to keep. Else the engine keeps what it
            # made of the picture for the next prompt.
            arguments["mm_processor_cache_gb"] = 0
        if model.revision:
            arguments["revision"] = model.revision
        if asked.quantization:
            arguments["quantization"] = asked.quantization
        if asked.max_length:
            arguments["max_model_len"] = asked.max_length
        if asked.adapter:
            arguments["enable_lora"] = True
        return {**arguments, **asked.more_arguments()}

    def sampling_arguments(self, question: Question, sha256: str) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams for one question about one picture."""
        stage = question.stage
        arguments: dict[str, Any] = {
            "n": self.model.num_captions if stage is self.model.stages[-1] else 1,
            "temperature": question.temperature,
            "max_tokens": stage.max_tokens,
            "stop": list(stage.stop),
            "logprobs": 0,  # of the chosen tokens only: they become the score
        }
        if question.temperature > 0:
            arguments |= {"top_p": stage.top_p, "seed": question.seed(sha256, 0)}
        return arguments
