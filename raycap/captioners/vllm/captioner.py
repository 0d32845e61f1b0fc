"""A model in vLLM's engine, opened: each picture is a request, and the engine batches them as it
goes."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raycap.captioners.asynchronous import AsyncCaptioner
from raycap.captioners.huggingface.dialects import Inputs, picture_mark
from raycap.captioners.huggingface.loading import load_processor
from raycap.captioners.prompts import Unanswerable
from raycap.captioners.protocol import Alternative, Prediction
from raycap.captioners.stages import Answer, Question, Stage, reason_of, values_of_columns
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
        stages = self._options.model.stages
        image = Image.fromarray(picture)
        answers: dict[str, Answer] = {}
        outputs: list[Any] = []
        said = _Said("", None, "", ())
        was_cut = False
        for stage in stages:
            try:
                said, answers[stage.name] = await self._ask(stage, image, row, answers, outputs)
            except _Refused as fault:
                return Prediction(error=reason_of(stages, stage, str(fault)))
            except Unanswerable as fault:
                return Prediction(error=reason_of(stages, stage, str(fault), always=True))
            was_cut = was_cut or said.finish_reason == "length"
        return Prediction(
            answers[stages[-1].name].text,
            said.score,
            said.others,
            extras={
                **values_of_columns(stages, answers),
                "tokens_in": sum(len(each.prompt_token_ids or ()) for each in outputs),
                "tokens_out": sum(len(e.token_ids) for each in outputs for e in each.outputs),
                "finish_reason": "length" if was_cut else said.finish_reason,
            },
        )

    async def _ask(
        self,
        stage: Stage,
        image: Image.Image,
        row: Mapping[str, Any],
        earlier: Mapping[str, Answer],
        outputs: list[Any],
    ) -> tuple["_Said", Answer]:
        """One prompt, until an answer fits. What the engine gave is added to `outputs`."""
        fault: Unanswerable | None = None
        for number in range(stage.tries):
            question = stage.question(row, earlier, number)
            if self._mark and self._mark in question.prompt:
                raise Unanswerable(f"it holds {self._mark!r}, the mark of a picture")
            outputs.append(await self._generate(question, image, str(row.get("sha256") or "")))
            said = _best(outputs[-1], stage)
            try:
                return said, stage.answer(said.text, said.finish_reason == "length")
            except Unanswerable as found:
                fault = found
        assert fault is not None
        raise fault

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
            raise _Refused(f"vLLM refused the picture: {error}") from None
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


class _Refused(Exception):
    """Why the engine does not take a question."""


@dataclass(frozen=True)
class _Said:
    """The best of the texts that were answered to one prompt."""

    text: str
    score: float | None
    finish_reason: str
    others: tuple[Alternative, ...]


def _best(answer: Any, stage: Stage) -> _Said:
    """Texts that fit come before others, and those with a higher score before others."""
    found = [(output.text.strip(), _score(output), output) for output in answer.outputs]
    if all(score is not None for _, score, _ in found):
        found.sort(key=lambda each: -(each[1] or 0.0))
    found = [each for each in found if each[0] and stage.fits(each[0])] or found[:1]
    (text, score, best), others = found[0], found[1:]
    if not text:
        raise _Refused("the answer is empty")
    if stage.start:
        text = _joined(stage.start, best.text)
    alternatives = tuple(
        Alternative(
            _joined(stage.start, output.text) if stage.start else stage.answer(other).text,
            other_score,
        )
        for other, other_score, output in others
    )
    return _Said(text, score, best.finish_reason or "", alternatives)


def _joined(start: str, rest: str) -> str:
    """The whole answer. The engine gives what comes behind its start, with its space."""
    return f"{start}{rest}".strip()


def _score(output: Any) -> float | None:
    """Mean log-probability of the tokens."""
    if output.cumulative_logprob is None or not output.token_ids:
        return None
    return float(output.cumulative_logprob) / len(output.token_ids)
