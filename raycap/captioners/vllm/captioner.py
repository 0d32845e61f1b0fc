"""A model in vLLM's engine, opened: each picture is a request, and the engine batches them as it
goes."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raycap.captioners.asking import Candidate, Refused, ask_prompts
from raycap.captioners.asynchronous import AsyncCaptioner
from raycap.captioners.huggingface.dialects import Inputs, picture_mark
from raycap.captioners.huggingface.loading import load_processor
from raycap.captioners.prompts import Unanswerable
from raycap.captioners.protocol import Prediction
from raycap.captioners.stages import Question, Stage
from raycap.captioners.vllm.options import VllmOptions
from raycap.errors import UserError


class VllmCaptioner(AsyncCaptioner):
    """Holds the engine, on all GPUs that this process sees."""

    def __init__(self, options: VllmOptions) -> None:
        super().__init__(options.intake(), options.asked.in_flight)
        self._options = options
        self._numbers = itertools.count()
        model = options.model
        processor = load_processor(model.asked, model.model, model.revision)
        self.prompts = tuple(stage.name for stage in model.stages)
        self._inputs = Inputs(processor, model.family, "chat", model.asked.system, model.resized)
        self._mark = picture_mark(processor)
        self._engine = self.run(_start_engine(options))
        self._adapter = _adapter(options)

    async def predict_one(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> Prediction:
        image, sha256 = Image.fromarray(picture), str(row.get("sha256") or "")
        outputs: list[Any] = []

        async def ask(question: Question) -> list[Candidate]:
            if self._mark and self._mark in question.prompt:
                raise Unanswerable(f"it holds {self._mark!r}, the mark of a picture")
            outputs.append(await self._generate(question, image, sha256))
            return _candidates(outputs[-1], question.stage)

        prediction = await ask_prompts(self._options.model.stages, row, ask)
        if prediction.error:
            return prediction
        tokens = {
            "tokens_in": sum(len(each.prompt_token_ids or ()) for each in outputs),
            "tokens_out": sum(len(e.token_ids) for each in outputs for e in each.outputs),
        }
        return replace(prediction, extras={**prediction.extras, **tokens})

    async def _generate(self, question: Question, image: Image.Image, sha256: str) -> Any:
        """What the engine gives for one question."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stage = question.stage
        sampling = SamplingParams(
            **self._options.sampling_arguments(question, sha256),
            **_guide(stage),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request = {
            "prompt": self._inputs.text(question.prompt, stage.system) + stage.start,
            "multi_modal_data": {"image": image},
        }
        answer: Any = None
        try:
            async for output in self._engine.generate(
                request, sampling, str(next(self._numbers)), lora_request=self._adapter
            ):
                answer = output  # there is one: the final one
        except ValueError as error:  # such as a prompt that is longer than the model allows
            raise Refused(f"vLLM refused the picture: {error}") from None
        # What else the engine raises is no fault of this picture. It ends the worker, and another
        # one makes the chunk.
        return answer

    async def end(self) -> None:
        self._engine.shutdown()


async def _start_engine(options: VllmOptions) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(
            f"--captioner vllm needs vLLM ({error}): pip install 'raycap[vllm]' on each machine "
            "with GPUs"
        ) from error
    try:
        arguments = AsyncEngineArgs(**options.engine_arguments())
    except TypeError as error:
        raise UserError(
            f"this version of vLLM does not take these arguments ({error}): see "
            "--captioner.engine, or install a newer one"
        ) from error
    return AsyncLLM.from_engine_args(arguments)


def _adapter(options: VllmOptions) -> Any:
    if not options.asked.adapter:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, options.model.adapter[0])


def _guide(stage: Stage) -> dict[str, Any]:
    """The argument of SamplingParams that lets only fitting answers through."""
    if stage.structure is None:
        return {}
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(json=stage.structure.schema)}


def _candidates(answer: Any, stage: Stage) -> list[Candidate]:
    """The texts of an answer that are not empty, each with the first words that it continues."""
    found = [
        # The engine gives what comes behind the first words, with its space.
        Candidate(
            f"{stage.start}{output.text}".strip(), _score(output), output.finish_reason or ""
        )
        for output in answer.outputs
        if output.text.strip()
    ]
    if not found:
        raise Refused("the answer is empty")
    return found


def _score(output: Any) -> float | None:
    """Mean log-probability of the tokens."""
    if output.cumulative_logprob is None or not output.token_ids:
        return None
    return float(output.cumulative_logprob) / len(output.token_ids)
