"""What a model thinks of the words of given captions, when it is asked just as for captioning.

    asked  <picture> Describe this picture.        a    dog   runs  <end>
    reads  <picture> Describe this picture.        a    dog   runs
    predicts                                  a    dog  runs  <end>

Only the words of the caption and its end are predicted: the prompt is not learned.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raycap.captioners.huggingface.answer_text import end_tokens
from raycap.captioners.huggingface.dialects import RAGGED
from raycap.errors import UserError

if TYPE_CHECKING:
    from raycap.captioners.huggingface.captioner import HuggingFaceCaptioner

# Families that are not asked in a chat, and whose words are known to be predicted here as they are
# in captioning; tests/test_fine_tuning.py compares them.
KNOWN = ("blip", "git", "vision-encoder-decoder", "florence2")
# Of a position that holds no word.
NO_WORD = -100
# In the place of an answer, to see what a chat template puts around one.
_ANSWER = "ANSWER"


class Scored(NamedTuple):
    """The predictions for the words of captions, and the words themselves."""

    logits: Tensor  # [B, T, V]
    words: Tensor  # [B, T]; NO_WORD behind the end


def check_family(model: str, family: str, dialect: str) -> None:
    """Raises UserError for a family whose way to read given words is not known."""
    if dialect != "chat" and family not in KNOWN:
        raise UserError(
            f"{model} is of the family {family!r}, which cannot be fine-tuned here: take a model "
            f"that chats (smolvlm, qwen-vl, ...) or one of {', '.join(KNOWN)}"
        )


class GivenWords:
    """Reads given captions with the model of a captioner."""

    def __init__(self, captioner: HuggingFaceCaptioner) -> None:
        self.captioner = captioner
        self._family, self._dialect = captioner.options.family, captioner.options.dialect
        self._tokenizer, self._model = captioner.inputs.tokenizer, captioner.model
        self._question = captioner.options.stages[-1].sample_question()
        self._before, self._end = self._around_an_answer()
        self._padding = self._tokenizer.pad_token_id or 0
        parameters = inspect.signature(type(self._model).forward).parameters
        self._cuts_logits = "logits_to_keep" in parameters

    def tokens(self, caption: str) -> list[int]:
        """The tokens that the model should answer, with the one that ends the answer."""
        # The end and beginning that a tokenizer of an encoder-decoder adds are generated too.
        whole = self._family == "florence2"
        text = self._before + caption.strip()
        tokens = list(self._tokenizer(text, add_special_tokens=whole)["input_ids"])
        return tokens if tokens[-1:] == [self._end] else [*tokens, self._end]

    def together(self, pictures: Sequence[np.ndarray]) -> list[list[int]]:
        """The places of pictures that may go into one batch, as in captioning."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            shape = () if self._family in RAGGED else picture.shape
            groups.setdefault(shape, []).append(place)
        return list(groups.values())

    def __call__(
        self, pictures: Sequence[np.ndarray], captions: Sequence[Sequence[int]]
    ) -> Scored:
        """The predictions for captions, given as tokens, of these pictures."""
        stage = self._question.stage
        prompts = [self._question.prompt] * len(pictures)
        inputs = self.captioner.tensors(
            self.captioner.inputs(pictures, prompts, stage.system, stage.start)
        )
        device = self.captioner.device
        longest = max(len(caption) for caption in captions)
        words = torch.full((len(captions), longest), NO_WORD)
        for row, caption in enumerate(captions):
            words[row, : len(caption)] = torch.tensor(caption)
        words = words.to(device)
        read = words[:, :-1].masked_fill(words[:, :-1] == NO_WORD, self._padding)
        is_read = words[:, :-1] != NO_WORD
        inputs = self._with_words(inputs, read, is_read)
        if self._cuts_logits:
            inputs["logits_to_keep"] = longest
        logits: Tensor = self._model(**inputs, use_cache=False).logits
        # The last token before the caption predicts its first word.
        return Scored(logits[:, -longest:], words)

    def _with_words(self, inputs: dict[str, Any], read: Tensor, is_read: Tensor) -> dict[str, Any]:
        """The inputs with the words that the model reads behind those of the prompt."""
        rows = len(read)
        if self._family in ("florence2", "vision-encoder-decoder"):
            started = _column(self._decoder_start(), rows, read)
            prompt = inputs.pop("decoder_input_ids", started[:, :0])
            return {**inputs, "decoder_input_ids": torch.cat([started, prompt, read], 1)}
        if "input_ids" not in inputs:
            ids = self._model.generation_config.bos_token_id
            prompt = _column(ids, rows, read)
        else:
            prompt = inputs["input_ids"]
        if self._family == "blip":
            begin = _column(self._model.config.text_config.bos_token_id, rows, read)
            # Without the token that ends a text, as its own `generate` does it.
            stop = prompt.shape[1] - 1 if "input_ids" in inputs else 1
            prompt = torch.cat([begin, prompt[:, 1:stop]], 1)
            if "attention_mask" in inputs:
                inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
        longer = {"input_ids": torch.cat([prompt, read], 1)}
        for name, value in inputs.items():
            # Such as which tokens are of a picture: none of those behind the prompt.
            is_of_tokens = isinstance(value, Tensor) and value.shape == prompt.shape
            if is_of_tokens and name != "input_ids":
                more = is_read if name == "attention_mask" else torch.zeros_like(is_read)
                longer[name] = torch.cat([value, more.to(value.dtype)], 1)
        return {**inputs, **longer}

    def _decoder_start(self) -> int:
        settings, config = self._model.generation_config, self._model.config
        for found in (
            settings.decoder_start_token_id,
            getattr(config, "decoder_start_token_id", None),
            getattr(getattr(config, "text_config", None), "decoder_start_token_id", None),
            settings.bos_token_id,
        ):
            if found is not None:
                return int(found)
        raise UserError(
            f"{self.captioner.options.model} does not say with which token its captions begin "
            "(decoder_start_token_id): it cannot be fine-tuned here"
        )

    def _around_an_answer(self) -> tuple[str, int]:
        """What comes between the prompt and an answer, such as a space, and the token that ends
        one."""
        ends = end_tokens(self._model, self._tokenizer, self._family)
        usual = self._tokenizer.eos_token_id
        if self._family == "blip":
            usual = self._model.config.text_config.sep_token_id
        elif self._family == "git":
            usual = self._tokenizer.sep_token_id
        elif usual not in ends and ends:
            usual = min(ends)
        if usual is None:
            raise UserError(
                f"{self.captioner.options.model} has no token that ends a caption: it cannot be "
                "fine-tuned here"
            )
        if self._dialect != "chat":
            return "", usual
        before, after = self.captioner.inputs.text_around(_ANSWER)
        behind = self._tokenizer(after, add_special_tokens=False)["input_ids"]
        return before, next((token for token in behind if token in ends), usual)


def _column(token: int, rows: int, like: Tensor) -> Tensor:
    return like.new_full((rows, 1), token)
