"""A model in vLLM's engine, opened: each picture is a request, and the engine batches them as it
goes."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raycap.captioners.asynchronous import AsyncCaptioner
from raycap.captioners.generation import picture_seed
from raycap.captioners.huggingface.dialects import Inputs
from raycap.captioners.huggingface.loading import load_processor
from raycap.captioners.protocol import Alternative, Prediction
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
        inputs = Inputs(processor, model.family, "chat", model.asked.system, model.resized)
        self._prompt = inputs.text(model.prompt)
        self._engine = self.run(_start_engine(options))
        self._adapter = _adapter(options)

    async def predict_one(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> Prediction:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        seed = picture_seed(self._options.asked.seed, row.get("sha256", ""), 0)
        sampling = SamplingParams(
            **self._options.sampling_arguments(seed), output_kind=RequestOutputKind.FINAL_ONLY
        )
        request = {
            "prompt": self._prompt,
            "multi_modal_data": {"image": Image.fromarray(picture)},
        }
        answer: Any = None
        try:
            async for output in self._engine.generate(
                request, sampling, str(next(self._numbers)), lora_request=self._adapter
            ):
                answer = output  # there is one: the final one
        except ValueError as error:  # such as a prompt that is longer than the model allows
            return Prediction(error=f"vLLM refused the picture: {error}")
        # What else the engine raises is no fault of this picture. It ends the worker, and another
        # one makes the chunk.
        return _prediction(answer)

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


def _prediction(answer: Any) -> Prediction:
    found = [(output.text.strip(), _score(output), output) for output in answer.outputs]
    if all(score is not None for _, score, _ in found):
        found.sort(key=lambda each: -(each[1] or 0.0))
    (text, score, best), others = found[0], found[1:]
    if not text:
        return Prediction(error="the answer is empty")
    tokens_out = sum(len(output.token_ids) for output in answer.outputs)
    return Prediction(
        text,
        score,
        tuple(Alternative(other, other_score) for other, other_score, _ in others),
        extras={
            "tokens_in": len(answer.prompt_token_ids or ()),
            "tokens_out": tokens_out,
            "finish_reason": best.finish_reason or "",
        },
    )


def _score(output: Any) -> float | None:
    """Mean log-probability of the tokens."""
    if output.cumulative_logprob is None or not output.token_ids:
        return None
    return float(output.cumulative_logprob) / len(output.token_ids)
