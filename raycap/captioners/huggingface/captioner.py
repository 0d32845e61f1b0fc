"""Captions by a model that transformers knows."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raycap.captioners.huggingface.answer_text import AnswerReader, Generated
from raycap.captioners.huggingface.budget import Budget
from raycap.captioners.huggingface.dialects import RAGGED, Inputs, picture_mark
from raycap.captioners.huggingface.drawing import BeamNotes, Draw, Forget, Stop
from raycap.captioners.huggingface.loading import OpenModel, open_model
from raycap.captioners.huggingface.options import HuggingFaceOptions
from raycap.captioners.prompts import Unanswerable
from raycap.captioners.protocol import Alternative, Captioner, Prediction
from raycap.captioners.stages import Answer, Question, Stage, reason_of, values_of_columns
from raycap.device import choose_precision
from raycap.errors import UserError
from raycap.images.intake import Fit, Square

# About so many pixels are one token of a picture, and letters one of a prompt, for the size of
# batches.
_PIXELS_PER_TOKEN = 28 * 28
_LETTERS_PER_TOKEN = 4
# A CPU has no exception for memory that runs out: the system ends the process.
_TOKENS_ON_CPU = 16_384
_WITHOUT_END = 1e15


@dataclass(frozen=True)
class _Request:
    number: int  # of its picture, as predict was given it
    picture: NDArray[np.uint8]  # [H, W, 3]
    question: Question
    sha256: str
    cost: float  # tokens, about


@dataclass(frozen=True)
class _Reply:
    """What became of a request."""

    answers: tuple[Generated, ...] = ()
    """The surest first."""
    error: str = ""


class _Row:
    """A picture with what it has been asked so far."""

    def __init__(self, picture: NDArray[np.uint8], row: Mapping[str, Any]) -> None:
        # From Arrow pictures are read-only, and torch warns of that.
        self.picture, self.row = np.array(picture), row
        self.sha256 = str(row.get("sha256") or "")
        self.answers: dict[str, Answer] = {}
        self.others: tuple[Alternative, ...] = ()
        self.score = 0.0
        self.tokens_in: int | None = 0
        self.tokens_out = 0
        self.was_cut = False
        self.error_of_answer = ""  # why the last answer did not fit
        self.error = ""

    def prediction(self, stages: Sequence[Stage]) -> Prediction:
        if self.error:
            return Prediction(error=self.error)
        return Prediction(
            self.answers[stages[-1].name].text,
            self.score,
            self.others,
            {
                **values_of_columns(stages, self.answers),
                "tokens_in": self.tokens_in,
                "tokens_out": self.tokens_out,
                "finish_reason": "length" if self.was_cut else "stop",
            },
        )


class HuggingFaceCaptioner(Captioner):
    """A model on one device. It raises UserError if it cannot caption an empty picture: then it
    is asked in the wrong way, and every row would fail."""

    def __init__(
        self,
        options: HuggingFaceOptions,
        device: str = "auto",
        threads: int | None = None,
        opened: OpenModel | None = None,
    ) -> None:
        """`opened` is the model, where it is open already."""
        super().__init__(options.intake())
        self.prompts = tuple(stage.name for stage in options.stages)
        if threads:
            torch.set_num_threads(threads)
        self.options = options
        if opened is None:
            opened = open_model(options, choose_precision(device, options.precision))
        self.model, self.processor, self.precision = opened
        self.device = self.model.device
        self.inputs = Inputs(
            self.processor, options.family, options.dialect, options.asked.system, options.resized
        )
        self._mark = picture_mark(self.processor)
        keeps_prompt = options.dialect == "prefix" and options.asked.keep_prompt
        self._reader = AnswerReader(
            self.model, self.inputs.tokenizer, options.family, keeps_prompt
        )
        on_cpu = self.device.type == "cpu"
        most = options.asked.batch_tokens or (_TOKENS_ON_CPU if on_cpu else _WITHOUT_END)
        self.budget = Budget(most)
        self._check()

    def predict(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Prediction]:
        asked = [_Row(*each) for each in zip(pictures, rows, strict=True)]
        for stage in self.options.stages:
            self._ask(stage, asked)
        return [row.prediction(self.options.stages) for row in asked]

    def _ask(self, stage: Stage, rows: Sequence[_Row]) -> None:
        """One prompt about all pictures that have not failed, until their answers fit."""
        stages = self.options.stages
        waiting = [number for number, row in enumerate(rows) if not row.error]
        for number_of_try in range(stage.tries):
            requests = []
            for number in waiting:
                row = rows[number]
                try:
                    question = stage.question(row.row, row.answers, number_of_try)
                    if self._mark and self._mark in question.prompt:
                        raise Unanswerable(f"it holds {self._mark!r}, the mark of a picture")
                except Unanswerable as fault:
                    row.error = reason_of(stages, stage, str(fault), always=True)
                    continue
                cost = self._cost(row.picture, question)
                requests.append(_Request(number, row.picture, question, row.sha256, cost))
            waiting = []
            for number, reply in self._replies(requests).items():
                row = rows[number]
                error = reply.error
                if not error and stage.structure is None and not reply.answers[0].text:
                    error = "no caption: the model's answer is empty"
                if error:
                    row.error = reason_of(stages, stage, error)
                elif not self._take(stage, row, reply.answers):
                    waiting.append(number)
            if not waiting:
                return
        for number in waiting:
            rows[number].error = reason_of(
                stages, stage, rows[number].error_of_answer, always=True
            )

    def _take(self, stage: Stage, row: _Row, answers: Sequence[Generated]) -> bool:
        """Returns whether an answer fits, which the row then has."""
        tokens_in = answers[0].tokens_in
        both_known = row.tokens_in is not None and tokens_in is not None
        row.tokens_in = (row.tokens_in or 0) + (tokens_in or 0) if both_known else None
        row.tokens_out += answers[0].tokens_out
        fitting = [each for each in answers if each.text and stage.fits(each.text)]
        if not fitting:
            row.error_of_answer = _misfit(stage, answers[0])
            return False
        first, *others = fitting
        row.answers[stage.name] = stage.answer(first.text)
        row.score = first.score
        row.others = tuple(Alternative(stage.answer(e.text).text, e.score) for e in others)
        row.was_cut = row.was_cut or first.finish_reason == "length"
        return True

    def _cost(self, picture: NDArray[np.uint8], question: Question) -> float:
        """Tokens of a request, about."""
        tokens = np.ceil(picture.shape[0] * picture.shape[1] / _PIXELS_PER_TOKEN)
        # The usual prompt is short beside the rest.
        letters = len(question.prompt) if question.stage.names or question.stage.structure else 0
        return float(tokens + letters // _LETTERS_PER_TOKEN + question.stage.max_tokens)

    def _replies(self, requests: list[_Request]) -> dict[int, _Reply]:
        """By the number of the request."""
        replies: dict[int, _Reply] = {}
        for group in self._groups(requests):
            waiting = sorted(group, key=lambda request: -request.cost)
            while waiting:
                count = self.budget.count([request.cost for request in waiting])
                batch = waiting[:count]
                made = self._reply_to(batch)
                if made is None:
                    continue  # the next batch is smaller
                waiting = waiting[count:]
                for request, reply in zip(batch, made, strict=True):
                    replies[request.number] = reply
        return replies

    def _groups(self, requests: list[_Request]) -> list[list[_Request]]:
        """Requests that may go into one batch: all of one temperature, or those of them with
        pictures of one shape and one prompt."""
        groups: dict[tuple[Any, ...], list[_Request]] = {}
        for request in requests:
            kind: tuple[Any, ...] = (request.question.temperature,)
            if self.options.family not in RAGGED:
                kind = (*kind, request.picture.shape, request.question.prompt)
            groups.setdefault(kind, []).append(request)
        return list(groups.values())

    def _reply_to(self, batch: list[_Request]) -> list[_Reply] | None:
        """The replies; None if memory ran out and a smaller batch may do."""
        cost = batch[0].cost * len(batch)
        try:
            answers = self._answers(batch)
        except Exception as error:  # models of others raise anything
            if "CUDA error" in str(error):
                raise  # the device is unusable until the process ends
            no_memory = _is_lack_of_memory(error)
            reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
            del error  # its traceback keeps the tensors of the batch
        else:
            self.budget.went_well(cost)
            return [_Reply(tuple(each)) for each in answers]
        if no_memory:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) > 1:
                self.budget.ran_out(cost)
                return None
            return [
                _Reply(
                    error="too little memory for this picture: give --captioner.max-pixels or "
                    "--captioner.quantize"
                )
            ]
        if len(batch) == 1:
            return [_Reply(error=f"the model failed: {reason}")]
        # One of them may be at fault: each alone.
        singles = [self._reply_to([request]) for request in batch]
        return [single[0] for single in singles if single is not None]

    def _captions(self, stage: Stage) -> int:
        """How many answers are wanted."""
        return self.options.num_captions if stage is self.options.stages[-1] else 1

    def _answers(self, batch: list[_Request]) -> list[list[Generated]]:
        """For each request its answers, the surest first."""
        question = batch[0].question
        most = question.stage.max_tokens
        captions = self._captions(question.stage)
        if captions == 1 or question.temperature == 0:
            return self._generate(batch, 0, most)
        drawn = [self._generate(batch, number, most) for number in range(captions)]
        of_each = [[each[0] for each in answers] for answers in zip(*drawn, strict=True)]
        return [sorted(answers, key=lambda answer: -answer.score) for answers in of_each]

    @torch.inference_mode()
    def _generate(self, batch: list[_Request], number: int, most: int) -> list[list[Generated]]:
        """For each request the drawn or likeliest answer; with a beam search several."""
        question = batch[0].question
        stage = question.stage
        made = self.inputs(
            [each.picture for each in batch],
            [each.question.prompt for each in batch],
            stage.system,
            stage.start,
        )
        inputs = self.tensors(made)
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        if mask is not None:
            tokens_in: list[int | None] = list(mask.sum(-1).tolist())
        else:
            tokens_in = [None if ids is None else ids.shape[1]] * len(batch)
        beams = self._captions(stage) if question.temperature == 0 else 1
        seeds = [each.question.seed(each.sha256, number) for each in batch]
        draw = Draw(question.temperature, stage.top_p, seeds, most)
        noted: Draw | BeamNotes = draw if beams == 1 else BeamNotes()
        stops: list[Any] = [Stop(stage.stop, self.inputs.tokenizer, noted)] if stage.stop else []
        if beams > 1:
            stops.append(Forget())
        output = self.model.generate(
            **inputs,
            max_new_tokens=most,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            logits_processor=[noted],
            stopping_criteria=stops,
            return_dict_in_generate=True,
            output_scores=beams > 1,  # or it does not say how sure it is of a caption
        )
        sequences = output.sequences[:, noted.prefix :].tolist()
        if beams > 1:
            scores = [[score] for score in output.sequences_scores.tolist()]
        else:
            scores = torch.stack(draw.logs, 1).tolist()  # [B, T]
        answers = []
        for place, (tokens, logs) in enumerate(zip(sequences, scores, strict=True)):
            row = place // beams
            answers.append(self._reader.read(batch[row].question, tokens, logs, tokens_in[row]))
        return [answers[start : start + beams] for start in range(0, len(answers), beams)]

    def _on_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.device, self.precision.dtype)
        return value.to(self.device)

    def tensors(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """What `inputs` has made, on the device of the model and in its precision."""
        return {name: self._on_device(value) for name, value in made.items()}

    def _check(self) -> None:
        """Captions an empty picture with a few tokens. Raises UserError if that fails."""
        intake = self.intake
        wide, high = intake.size_of(96, 64) if isinstance(intake, Fit) else (96, 64)
        if isinstance(intake, Square):
            wide = high = intake.size
        empty = np.full((high, wide, 3), 127, np.uint8)
        try:
            for stage in self.options.stages:
                request = _Request(0, empty, stage.sample_question(), "", 1.0)
                self._generate([request], 0, 4)
        except Exception as error:
            if _is_lack_of_memory(error):
                raise
            options = self.options
            reason = str(error).strip().split("\n")[0][:300]
            raise UserError(
                f"{options.model} (family {options.family!r}) cannot be asked as "
                f"{options.dialect!r}: {type(error).__name__}: {reason}. Give another "
                "--captioner.dialect (chat, prefix or task), or serve the model and give its URL "
                "as --model"
            ) from error


def _misfit(stage: Stage, answer: Generated) -> str:
    """Why an answer does not fit."""
    try:
        stage.answer(answer.text, answer.finish_reason == "length")
    except Unanswerable as fault:
        return str(fault)
    return "the answer is empty"


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
