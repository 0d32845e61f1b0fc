"""Captions by a model that transformers knows."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raycap.captioners.generation import picture_seed
from raycap.captioners.huggingface.budget import Budget
from raycap.captioners.huggingface.dialects import RAGGED, Inputs
from raycap.captioners.huggingface.drawing import BeamNotes, Draw, Forget, Stop, new_tokens
from raycap.captioners.huggingface.loading import load_model, load_processor
from raycap.captioners.huggingface.options import HuggingFaceOptions
from raycap.captioners.protocol import Alternative, Captioner, Prediction
from raycap.device import choose_precision
from raycap.errors import UserError
from raycap.images.intake import Fit, Square

# About so many pixels are one token of a picture, for the size of batches.
_PIXELS_PER_TOKEN = 28 * 28
# A CPU has no exception for memory that runs out: the system ends the process.
_TOKENS_ON_CPU = 16_384
_WITHOUT_END = 1e15


@dataclass(frozen=True)
class _Request:
    number: int  # of its picture, as predict was given it
    picture: NDArray[np.uint8]  # [H, W, 3]
    prompt: str
    sha256: str
    cost: float  # tokens, about


@dataclass(frozen=True)
class _Generated:
    text: str
    score: float
    tokens_in: int | None
    tokens_out: int
    finish_reason: str


class HuggingFaceCaptioner(Captioner):
    """A model on one device. It raises UserError if it cannot caption an empty picture: then it
    is asked in the wrong way, and every row would fail."""

    def __init__(
        self, options: HuggingFaceOptions, device: str = "auto", threads: int | None = None
    ) -> None:
        super().__init__(options.intake())
        if threads:
            torch.set_num_threads(threads)
        self.options = options
        self.asked = options.asked
        self.precision = choose_precision(device, options.precision)
        self.processor = load_processor(options.asked, options.model, options.revision)
        padding = self.processor.tokenizer.pad_token_id
        self.model = load_model(options, self.precision, padding)
        self.device = self.model.device
        self.inputs = Inputs(
            self.processor, options.family, options.dialect, options.asked.system, options.resized
        )
        self.tokenizer = self.inputs.tokenizer
        self.ends = _end_tokens(self.model, self.tokenizer, options.family)
        on_cpu = self.device.type == "cpu"
        most = options.asked.batch_tokens or (_TOKENS_ON_CPU if on_cpu else _WITHOUT_END)
        self.budget = Budget(most)
        self._check()

    def predict(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Prediction]:
        requests = [
            _Request(
                number,
                np.array(picture),  # from Arrow they are read-only, and torch warns of that
                self.options.prompt,
                str(row.get("sha256") or ""),
                np.ceil(picture.shape[0] * picture.shape[1] / _PIXELS_PER_TOKEN)
                + self.asked.max_tokens,
            )
            for number, (picture, row) in enumerate(zip(pictures, rows, strict=True))
        ]
        predictions: dict[int, Prediction] = {}
        for group in self._groups(requests):
            waiting = sorted(group, key=lambda request: -request.cost)
            while waiting:
                count = self.budget.count([request.cost for request in waiting])
                batch = waiting[:count]
                made = self._predict_batch(batch)
                if made is None:
                    continue  # the next batch is smaller
                waiting = waiting[count:]
                for request, prediction in zip(batch, made, strict=True):
                    predictions[request.number] = prediction
        return [predictions[number] for number in range(len(requests))]

    def _groups(self, requests: list[_Request]) -> list[list[_Request]]:
        """Requests that may go into one batch: all, or those with pictures of one shape."""
        if self.options.family in RAGGED:
            return [requests] if requests else []
        groups: dict[tuple[Any, ...], list[_Request]] = {}
        for request in requests:
            groups.setdefault((request.picture.shape, request.prompt), []).append(request)
        return list(groups.values())

    def _predict_batch(self, batch: list[_Request]) -> list[Prediction] | None:
        """The predictions; None if memory ran out and a smaller batch may do."""
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
            return [self._prediction(each) for each in answers]
        if no_memory:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) > 1:
                self.budget.ran_out(cost)
                return None
            return [
                Prediction(
                    error="too little memory for this picture: give --captioner.max-pixels or "
                    "--captioner.quantize"
                )
            ]
        if len(batch) == 1:
            return [Prediction(error=f"the model failed: {reason}")]
        # One of them may be at fault: each alone.
        singles = [self._predict_batch([request]) for request in batch]
        return [single[0] for single in singles if single is not None]

    def _prediction(self, answers: list[_Generated]) -> Prediction:
        first, *others = answers
        if not first.text:
            return Prediction(error="no caption: the model's answer is empty")
        return Prediction(
            first.text,
            first.score,
            tuple(Alternative(other.text, other.score) for other in others if other.text),
            {
                "tokens_in": first.tokens_in,
                "tokens_out": first.tokens_out,
                "finish_reason": first.finish_reason,
            },
        )

    def _answers(self, batch: list[_Request]) -> list[list[_Generated]]:
        """For each request its answers, the surest first."""
        if self.options.num_captions == 1 or self.asked.temperature == 0:
            return self._generate(batch, 0, self.asked.max_tokens)
        drawn = [
            self._generate(batch, number, self.asked.max_tokens)
            for number in range(self.options.num_captions)
        ]
        of_each = [[each[0] for each in answers] for answers in zip(*drawn, strict=True)]
        return [sorted(answers, key=lambda answer: -answer.score) for answers in of_each]

    @torch.inference_mode()
    def _generate(self, batch: list[_Request], number: int, most: int) -> list[list[_Generated]]:
        """For each request the drawn or likeliest answer; with a beam search several."""
        made = self.inputs([each.picture for each in batch], [each.prompt for each in batch])
        inputs = {name: self._on_device(value) for name, value in made.items()}
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        if mask is not None:
            tokens_in: list[int | None] = list(mask.sum(-1).tolist())
        else:
            tokens_in = [None if ids is None else ids.shape[1]] * len(batch)
        asked, beams = self.asked, 1
        if asked.temperature == 0:
            beams = self.options.num_captions
        seeds = [picture_seed(asked.seed, each.sha256, number) for each in batch]
        draw = Draw(asked.temperature, asked.top_p, seeds, most)
        noted: Draw | BeamNotes = draw if beams == 1 else BeamNotes()
        stops: list[Any] = [Stop(asked.stop, self.tokenizer, noted)] if asked.stop else []
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
        answers = [
            self._answer(tokens, logs, tokens_in[place // beams])
            for place, (tokens, logs) in enumerate(zip(sequences, scores, strict=True))
        ]
        return [answers[start : start + beams] for start in range(0, len(answers), beams)]

    def _answer(self, row: list[int], logs: list[float], tokens_in: int | None) -> _Generated:
        tokens = new_tokens(row, self.ends, self.tokenizer.pad_token_id)
        cut = self._cut(tokens)
        stopped = cut is not None or bool(tokens and tokens[-1] in self.ends)
        if cut is None:
            text = self._text(tokens)
        else:
            text, tokens = cut
        if self.options.dialect == "prefix" and self.asked.keep_prompt and text:
            text = f"{self.options.prompt} {text}".strip()
        kept = logs[: len(tokens)]  # a beam search has one score for all of them
        score = sum(kept) / max(1, len(kept))
        return _Generated(text, score, tokens_in, len(tokens), "stop" if stopped else "length")

    def _cut(self, tokens: list[int]) -> tuple[str, list[int]] | None:
        """The text before the first stop text, and the tokens up to it; None if there is none."""
        if not any(stop in self._text(tokens) for stop in self.asked.stop):
            return None
        for count in range(1, len(tokens) + 1):
            text = self._text(tokens[:count])
            found = [text.find(stop) for stop in self.asked.stop if stop in text]
            if found:
                return text[: min(found)].strip(), tokens[:count]
        return None

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def _on_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.device, self.precision.dtype)
        return value.to(self.device)

    def _check(self) -> None:
        """Captions an empty picture with a few tokens. Raises UserError if that fails."""
        intake = self.intake
        wide, high = intake.size_of(96, 64) if isinstance(intake, Fit) else (96, 64)
        if isinstance(intake, Square):
            wide = high = intake.size
        empty = np.full((high, wide, 3), 127, np.uint8)
        try:
            self._generate([_Request(0, empty, self.options.prompt, "", 1.0)], 0, 4)
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


def _end_tokens(model: Any, tokenizer: Any, family: str) -> set[int]:
    """The tokens that end an answer."""
    settings = getattr(model, "generation_config", None)
    found = [getattr(settings, "eos_token_id", None), tokenizer.eos_token_id]
    inner = getattr(getattr(model, "language_model", None), "generation_config", None)
    found.append(getattr(inner, "eos_token_id", None))
    if family in ("blip", "git", "vision-encoder-decoder"):
        found.append(tokenizer.sep_token_id)
    if family == "blip":
        found.append(model.config.text_config.sep_token_id)
    ends: set[int] = set()
    for each in found:
        if each is not None:
            ends.update([each] if isinstance(each, int) else each)
    return ends


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
